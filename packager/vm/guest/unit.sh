# The package, and the unit under systemd.

test_installation() {
    check "the package installs and its postinst says what to do" installs
    check "the unit is enabled and not started" is_enabled_not_started
    check "what is installed is root's and nobody else may write it" installed_is_roots
}

installs() {
    dpkg -i /mnt/machines.deb >/tmp/dpkg 2>&1 || { cat /tmp/dpkg; return 1; }
    grep -q "put the keys that this node trusts into /etc/machines/machinesd.toml" /tmp/dpkg || { cat /tmp/dpkg; return 1; }
}

is_enabled_not_started() {
    is is-enabled "$(systemctl is-enabled machinesd)" enabled
    is is-active "$(systemctl is-active machinesd || true)" inactive
}

installed_is_roots() {
    local foreign
    foreign=$(dpkg -L machines | while read -r path; do find "$path" -maxdepth 0 \( ! -user root -o -perm /022 \) ! -type l; done)
    is "what others may write" "$foreign" ""
}

test_the_unit() {
    mkdir -p "$own_machines"
    check "it starts: systemd is told when it is ready" starts
    check "the control socket is its owner's alone" socket_is_private
    check "the state directory is root's and nobody else may write it" state_is_private
    check "the daemon works in a group of its own below the delegated one" daemon_has_its_group
    check "a reload takes changed settings and keeps the process" reloads
    check "a reload of broken settings keeps it running" reload_of_nonsense
    check "agents see the host's mounts" no_mount_namespace
    check "a daemon that hangs is restarted by the watchdog" watchdog
}

starts() {
    systemctl start machinesd || { journalctl -u machinesd --no-pager -n 5; return 1; }
    is is-active "$(systemctl is-active machinesd)" active
    is Type "$(systemctl show -p Type --value machinesd)" notify
    machinesd status
}

socket_is_private() {
    is "its mode and owner" "$(stat -c '%a %U %G' /run/machines/machinesd.sock)" "600 root root"
    is "its directory's" "$(stat -c '%a %U %G' /run/machines)" "755 root root"
    if setpriv --reuid nobody --clear-groups machinesd status; then echo "nobody may ask"; return 1; fi
}

state_is_private() {
    is "what others may write" "$(find /var/lib/machines /etc/machines \( ! -user root -o -perm /022 \) ! -type l)" ""
    is "secrets that others may read" "$(find /var/lib/machines -name '*.db*' -perm /004)" ""
}

daemon_has_its_group() {
    is Delegate "$(systemctl show -p Delegate --value machinesd)" yes
    is "the daemon's group" "$(cut -d : -f 3 "/proc/$(main_process)/cgroup")" /system.slice/machinesd.service/machinesd
    is "controllers for commands" "$(tr ' ' '\n' <"$group/cgroup.subtree_control" | grep -cx 'memory\|pids')" 2
    agent placed "{command: sh -c 'cat /proc/self/cgroup', timeout: 20s}"
    outcome placed | grep -q "machinesd.service/command-[0-9]" || { outcome placed; return 1; }
    forget placed
}

port_answers() {
    : </dev/tcp/127.0.0.1/8098
}

reloads() {
    local before
    before=$(main_process)
    cp /etc/machines/machinesd.toml /tmp/good.toml
    sed -i 's/^listen = ""/listen = "127.0.0.1:8098"/' /etc/machines/machinesd.toml
    systemctl reload machinesd
    eventually 20 "the HTTP listener of the new settings" port_answers
    is "the process" "$(main_process)" "$before"
    is is-active "$(systemctl is-active machinesd)" active
    cp /tmp/good.toml /etc/machines/machinesd.toml
    systemctl reload machinesd
}

reload_of_nonsense() {
    local before
    before=$(main_process)
    cp /etc/machines/machinesd.toml /tmp/good.toml
    echo 'nonsense = ' >>/etc/machines/machinesd.toml
    systemctl reload machinesd || true
    sleep 3
    cp /tmp/good.toml /etc/machines/machinesd.toml
    is "the process" "$(main_process)" "$before"
    machinesd status
    systemctl reload machinesd
}

no_mount_namespace() {
    agent mounts "{command: readlink /proc/self/ns/mnt, timeout: 20s}"
    local got
    got=$(outcome mounts)
    case $got in *"$(readlink /proc/1/ns/mnt)"*) ;; *) echo "$got"; return 1 ;; esac
    forget mounts
}

drop_in() {
    mkdir -p /etc/systemd/system/machinesd.service.d
    printf '[Service]\n%s\n' "$1" >/etc/systemd/system/machinesd.service.d/test.conf
    systemctl daemon-reload
    systemctl restart machinesd
}

no_drop_in() {
    rm -f /etc/systemd/system/machinesd.service.d/test.conf
    systemctl daemon-reload
    systemctl restart machinesd
}

is_another() {
    local now
    now=$(main_process)
    [ "$now" -ne 0 ] && [ "$now" -ne "$1" ] && machinesd status
}

# 30 s are the unit's; here 8, so that the test is short.
watchdog() {
    local before
    drop_in 'WatchdogSec=8s
TimeoutStopSec=3s'
    sleep 10
    before=$(main_process)
    is "restarts while it is well" "$(systemctl show -p NRestarts --value machinesd)" 0
    kill -STOP "$before"
    eventually 60 "another process" is_another "$before"
    is restarts "$(systemctl show -p NRestarts --value machinesd)" 1
    no_drop_in
}

test_commands() {
    check "a command with a user is that user, with no new privileges" user_of_commands
    check "a command without one is root and may gain privileges" root_commands
    check "a command with a user may write its own data directory" data_directory_of_a_user
}

user_of_commands() {
    agent user "{command: sh -c 'id -un; grep NoNewPrivs /proc/self/status', user: nobody, timeout: 20s}"
    local got
    got=$(outcome user)
    case $got in "DONE: nobody"*NoNewPrivs:*1*) ;; *) echo "$got"; return 1 ;; esac
    forget user
}

root_commands() {
    agent root "{command: sh -c 'id -un; grep NoNewPrivs /proc/self/status', timeout: 20s}"
    local got
    got=$(outcome root)
    case $got in "DONE: root"*NoNewPrivs:*0*) ;; *) echo "$got"; return 1 ;; esac
    forget root
}

data_directory_of_a_user() {
    agent data "{command: sh -c 'echo x >\$MACHINE_DATA_DIR/made && ls -l \$MACHINE_DATA_DIR/made', user: nobody, timeout: 20s}"
    local got
    got=$(outcome data)
    case $got in DONE:*nobody*) ;; *) echo "$got"; return 1 ;; esac
    is "what else others may write in the state directory" \
        "$(find /var/lib/machines \( ! -user root -o -perm /022 \) ! -type l ! -path '/var/lib/machines/data/*/user-*')" ""
    forget data
}

test_ends() {
    check "after SIGKILL it comes back with its agents, and nothing of before is left" killed
    check "a restart ends what an agent disowned, as the unit says" restart_and_disowned
    check "a stop of the unit leaves nothing" stop_leaves_nothing
}

long_agent() {
    agent "$1" "{command: sh -c 'cp \$WATCHER_DATA /tmp/seen; echo \$WATCHER_DATA >/tmp/file; setsid -f env -i sleep $2; exec sleep $2', timeout: 1h$3}"
    eventually 30 "the command of $1" sh -c "[ \$(pgrep -fc 'sleep $2') -ge 2 ]"
}

killed() {
    local before file
    long_agent long 98765 ""
    before=$(main_process)
    file=$(cat /tmp/file)
    [ -e "$file" ] || { echo "no $file"; return 1; }
    systemctl kill --kill-whom=main -s KILL machinesd
    eventually 60 "another daemon" is_another "$before"
    eventually 30 "the agent's command, once" sh -c "[ \$(pgrep -xfc 'sleep 98765') -eq 2 ]"
    [ ! -e "$file" ] || { echo "$file is left"; return 1; }
    is "directories of commands" "$(find /run /dev/shm /tmp -maxdepth 2 -name 'machines-commands-*' | wc -l)" 1
    forget long
    eventually 30 "the end of the commands" none_has "sleep 98765"
}

restart_and_disowned() {
    long_agent left 98764 ", disown: true"
    systemctl restart machinesd
    eventually 30 "the agent's command, once" sh -c "[ \$(pgrep -xfc 'sleep 98764') -eq 2 ]"
    forget left
    sleep 2
    systemctl restart machinesd
    is "disowned processes after the restart" "$(with_word 'sleep 98764')" 0
}

stop_leaves_nothing() {
    long_agent stopped 98763 ""
    systemctl stop machinesd
    is "processes" "$(with_word 'sleep 98763')" 0
    [ ! -e "$group" ] || { echo "$group is left: $(cat "$group/cgroup.events")"; return 1; }
    is "runtime files" "$(ls /run/machines 2>/dev/null)" ""
    is "files of commands" "$(find /dev/shm /tmp /run -maxdepth 2 -name 'machines-commands-*')" ""
    systemctl start machinesd
    forget stopped
}

test_removal() {
    check "the package's removal stops the daemon and keeps what is the operator's" removal
}

removal() {
    agent kept "{command: \"true\"}"
    dpkg -r machines >/tmp/dpkg 2>&1 || { cat /tmp/dpkg; return 1; }
    is is-active "$(systemctl is-active machinesd || true)" inactive
    [ -e "$own_machines/kept/machine.yaml" ] && [ -e /etc/machines/machinesd.toml ] && [ -e /var/lib/machines ]
}
