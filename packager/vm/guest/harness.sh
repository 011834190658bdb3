# What the tests share: checks with a name and a reason, waiting, agents, and what the daemon says of them.

passed=0
failed=0
only=$(sed -n 's/.*machines\.only=\([^ ]*\).*/\1/p' /proc/cmdline)
own_machines=/etc/machines/machines.d
group=/sys/fs/cgroup/system.slice/machinesd.service

note() {
    printf 'note %s\n' "$*"
}

# check "NAME" FUNCTION WORDS…: the function fails at its first command that fails; what it printed is the reason.
check() {
    local name=$1 reason code
    shift
    [[ -z $only || $name =~ $only ]] || return 0
    reason=$(
        set -e
        "$@" 2>&1
    )
    code=$?
    if [ "$code" -eq 0 ]; then
        passed=$((passed + 1))
        printf 'ok %s\n' "$name"
    else
        failed=$((failed + 1))
        printf 'FAILED %s: %s\n' "$name" "$(printf '%s' "${reason:-exit code $code}" | tail -n 5 | tr '\n' ' ')"
        journalctl -u machinesd --no-pager -n 12 -o cat | sed 's/^/    /'
    fi
}

summary() {
    printf '%d passed, %d failed\n' "$passed" "$failed"
}

# is WHAT GOT WANTED
is() {
    [ "$2" = "$3" ] || { printf '%s is "%s", not "%s"\n' "$1" "$2" "$3"; return 1; }
}

# eventually SECONDS "WHAT" COMMAND…: asks again until the answer is yes.
eventually() {
    local until=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || { printf 'not in time: %s\n' "$what"; return 1; }
        sleep 0.2
    done
}

# agent NAME "PROPERTIES": one command, run once; then the agent is in DONE or FAILED.
agent() {
    local name=$1 directory=$own_machines/$1
    mkdir -p "$directory"
    {
        printf 'name: %s\nversion: 1.0.0\ninitial_state: RUN\ntransitions:\n' "$name"
        printf '  - {name: done, from: [RUN], destination: DONE}\n  - {name: failed, from: [RUN], destination: FAILED}\n'
        printf 'watchers:\n  - name: run\n    type: exec\n    state_match: [RUN]\n    success_transition: done\n'
        printf '    fail_transition: failed\n    properties:\n'
        printf '%s\n' "$2" | sed 's/^/      /'
    } >"$directory/new"
    mv "$directory/new" "$directory/machine.yaml"
}

forget() {
    rm -rf "${own_machines:?}/$1"
}

# of NAME FILTER: from what the status says of an agent.
of() {
    machinesd status --format json | jq -r --arg name "$1" ".machines[] | select(.machine.name == \$name) | .machine | $2"
}

state() {
    of "$1" .state
}

is_over() {
    case $(state "$1") in DONE | FAILED) ;; *) return 1 ;; esac
}

# What came of an agent's command: DONE or FAILED, and what it said.
outcome() {
    eventually "${2:-90}" "the end of $1's command" is_over "$1" || return 1
    of "$1" '.state + ": " + (.watchers[0].last_error // .watchers[0].detail // "")' | tr '\n' ' '
}

main_process() {
    systemctl show -p MainPID --value machinesd
}

# How many processes have this word in their command line.
with_word() {
    pgrep -fc -- "$1" || true
}

none_has() {
    [ "$(with_word "$1")" -eq 0 ]
}
