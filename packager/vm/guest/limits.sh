# Limits and the kill, with the delegated group and without: what holds where. The expectation of each line is what the
# documents say, so that a line that holds less, or more, fails.

programs=$here/programs
# What was measured, by the name of the line; and the table.
declare -A in_a_group
rows=()

test_limits() {
    local row
    check "the status says that commands have a delegated group" told cgroup
    limits cgroup
    drop_in 'Delegate=no'
    check "the status says that there is none" told processes
    limits processes
    no_drop_in
    if [ -n "$only" ]; then return; fi
    note "| limit | delegated cgroup | without |"
    note "|---|---|---|"
    for row in "${rows[@]}"; do
        note "$row"
    done
}

told() {
    local got
    got=$(machinesd status --format json | jq -r '.. | objects | select(has("by") and has("gaps")) | .by' | head -n 1)
    is "what bounds commands" "$got" "$1"
}

# limits MEANS: all lines, and in the second round the table.
limits() {
    line "$1" "memory of one process" holds holds is_refused "{command: $programs/hog private 200, memory: 64MiB, timeout: 60s}"
    line "$1" "memory of processes that are each within it" holds holds is_refused \
        "{command: $programs/hog family 40, memory: 64MiB, timeout: 60s}"
    line "$1" "memory in a memfd" holds open is_refused "{command: $programs/hog memfd 200, memory: 64MiB, timeout: 60s}"
    line "$1" "memory in /dev/shm" holds open is_refused "{command: $programs/hog shm 200, memory: 64MiB, timeout: 60s}"
    line "$1" "tasks of a user: a fork bomb" holds holds is_bounded "{command: $programs/bomb, user: nobody, tasks: 20, timeout: 6s}"
    line "$1" "tasks of root: a fork bomb" holds refused is_bounded "{command: $programs/bomb, tasks: 20, timeout: 6s}"
    line "$1" "cpu of one process" holds holds is_out_of_time "{command: $programs/burn one, cpu: 2s, timeout: 60s}"
    line "$1" "cpu of children that are waited for" holds holds is_out_of_time "{command: $programs/burn waited, cpu: 2s, timeout: 60s}"
    line "$1" "cpu of short children that nobody waits for" holds open is_out_of_time \
        "{command: $programs/burn unwaited, cpu: 2s, timeout: 40s}"
    line "$1" "kill: a chain of forks with own sessions and no environment, as nobody" holds holds chain_is_gone \
        "{command: $programs/chain /tmp/chain/beats, user: nobody, timeout: 15s}"
    line "$1" "kill: the same, as root" holds holds chain_is_gone "{command: $programs/chain /tmp/chain/beats, timeout: 15s}"
    line "$1" "kill: the same, as root, after killing its parent" holds open chain_is_gone \
        "{command: $programs/chain /tmp/chain/beats kill, timeout: 15s}"
    line "$1" "kill: the same, as root, after leaving its group" open holds chain_is_gone \
        "{command: $programs/chain /tmp/chain/beats move, timeout: 15s}"
}

# line MEANS "NAME" WITH WITHOUT JUDGE "PROPERTIES"
line() {
    local means=$1 name=$2 with=$3 without=$4 expected
    if [ "$means" = cgroup ]; then expected=$with; else expected=$without; fi
    echo "not measured" >/tmp/measured
    check "$name ($means): $expected" judged "$expected" "${@:5}"
    if [ "$means" = cgroup ]; then
        in_a_group[$name]=$(cat /tmp/measured)
    else
        rows+=("| $name | ${in_a_group[$name]} | $(cat /tmp/measured) |")
    fi
}

# judged EXPECTED JUDGE "PROPERTIES": the judge prints holds, open or refused, and then why.
judged() {
    local got
    forget limited
    eventually 20 "the agent of before is gone" is_forgotten
    got=$("$2" "$3")
    forget limited
    echo "${got%% *}" >/tmp/measured
    [ "${got%% *}" = "$1" ] || { echo "$got"; return 1; }
}

is_forgotten() {
    [ -z "$(state limited)" ]
}

is_refused() {
    local got
    agent limited "$1"
    got=$(outcome limited 120)
    rm -f /dev/shm/hog
    case $got in
        FAILED*"took longer"*) echo "open $got" ;;
        FAILED*) echo "holds $got" ;;
        *) echo "open $got" ;;
    esac
}

is_out_of_time() {
    local got
    agent limited "$1"
    got=$(outcome limited 120)
    case $got in *"processor time"*) echo "holds $got" ;; *) echo "open $got" ;; esac
}

is_bounded() {
    local got most=0 now
    agent limited "$1"
    for _ in $(seq 40); do
        now=$(with_word programs/bomb)
        [ "$now" -le "$most" ] || most=$now
        sleep 0.1
    done
    got=$(outcome limited 60)
    eventually 20 "the end of the bomb" none_has programs/bomb || { echo "open something is left"; return; }
    case $got in
        *"does not bind a command that runs as root"*) echo "refused $got" ;;
        # The tasks of the limit, and a supervisor.
        *) if [ "$most" -le 22 ] && [ "$most" -gt 2 ]; then echo "holds $got"; else echo "open $most processes: $got"; fi ;;
    esac
}

beats() {
    stat -c %s /tmp/chain/beats
}

chain_is_gone() {
    local got before
    rm -rf /tmp/chain
    mkdir -m 0777 /tmp/chain
    : >/tmp/chain/beats
    chmod 0666 /tmp/chain/beats
    agent limited "$1"
    eventually 30 "the chain" test -s /tmp/chain/beats || { echo "nothing $(of limited .)"; return; }
    got=$(outcome limited 60)
    sleep 1
    before=$(beats)
    sleep 2
    if [ "$(beats)" -eq "$before" ]; then got="holds $before links; $got"; else got="open it goes on; $got"; fi
    # The chain ends by itself when its file is gone.
    rm -rf /tmp/chain
    sleep 1
    echo "$got"
}
