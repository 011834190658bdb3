//! The promises about what a command may do: it is ended without a survivor whatever it tries, runs as the user that it
//! was given, and keeps within its limits. With real processes; a program of its own, because its memory is measured.

#![cfg(test)]

mod engine;
mod support;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Lab, watcher};
use machines::machine::status::WatcherStatus;
use machines::machine::watcher::Services;
use machines::process::System;
use serde_json::json;
use support::eventually;

/// A lab whose commands are confined by the real program.
async fn lab() -> Lab {
    let lab = Lab::new().await;
    // Another user must get to the machine's directory.
    open_to_all(lab.directory.path());
    let helper = PathBuf::from(env!("CARGO_BIN_EXE_machinesd"));
    let commands = Arc::new(System::with_helper(helper));
    let services = Arc::new(Services { commands, ..Services::clone(&lab.services) });
    Lab { services, ..lab }
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

fn text(properties: &str) -> String {
    let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: good, from: [A], destination: \
         GOOD}}\n  - {{name: bad, from: [A], destination: BAD}}\nwatchers:\n  - name: run\n    type: exec\n    \
         state_match: [A]\n    success_transition: good\n    fail_transition: bad\n    properties:\n{properties}"
    )
}

/// Runs a script to the end of its check.
async fn run(lab: &Lab, script: &str, properties: &str) -> WatcherStatus {
    let directory = lab.machine_directory("runner");
    open_to_all(&directory);
    std::fs::write(directory.join("script"), script).unwrap();
    let handle = lab.spawn_real(&text(&format!("command: sh script\n{properties}")));
    let remote = handle.remote.clone();
    eventually("the end of the command", || async { watcher(&remote.status(), "run").checks > 0 }).await;
    let status = watcher(&handle.remote.status(), "run");
    handle.stop().await;
    status
}

/// Processes that carry the mark of a test in their command line or environment.
fn alive(mark: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let own = std::process::id().to_string();
    entries
        .filter(|entry| entry.file_name().to_str() != Some(&own))
        .filter_map(|entry| {
            let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            let environment = String::from_utf8_lossy(&read("environ")).into_owned();
            (line.contains(mark) || environment.contains(mark)).then_some(line)
        })
        .collect()
}

fn peak_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1_024
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ignores_the_end_hides_in_other_sessions_and_floods_is_gone_at_the_time_limit() {
    let lab = lab().await;
    let before = peak_bytes();
    let mark = format!("survivor-{}", std::process::id());
    // It ignores the polite signal; a grandchild keeps the pipe, one has a session of its own, one is an orphan in a
    // session of its own; then a gibibyte.
    let script = format!(
        "trap '' TERM\n\
         sh -c 'trap \"\" TERM; while :; do sleep 1; done' {mark} &\n\
         setsid sh -c 'trap \"\" TERM; while :; do sleep 1; done' {mark} &\n\
         (setsid sh -c 'trap \"\" TERM; (while :; do sleep 1; done) & while :; do sleep 1; done' {mark} &)\n\
         head -c 1073741824 /dev/zero\n\
         while :; do sleep 1; done\n"
    );
    let begun = Instant::now();
    let properties = format!("timeout: 15s\nenvironment: [\"MARK={mark}\"]");
    let status = run(&lab, &script, &properties).await;
    assert_eq!(
        status.last_error.as_deref().map(|error| &error[..46]),
        Some("sh script: took longer than 15s and was killed")
    );
    assert!(begun.elapsed() < Duration::from_secs(50), "{:?}", begun.elapsed());
    assert_eq!(alive(&mark), Vec::<String>::new());
    let grown = peak_bytes().saturating_sub(before);
    println!("resident memory at its peak grew by {grown} bytes");
    assert!(grown < 64 * 1024 * 1024, "{grown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_the_machine_leaves_no_session_behind() {
    let lab = lab().await;
    let mark = format!("stopped-{}", std::process::id());
    let directory = lab.machine_directory("runner");
    std::fs::write(directory.join("script"), "(setsid sleep 600 &); touch begun; sleep 600").unwrap();
    let properties = format!("command: sh script\ntimeout: 10m\nenvironment: [\"MARK={mark}\"]");
    let handle = lab.spawn_real(&text(&properties));
    eventually("the begin", || async { directory.join("begun").exists() }).await;
    handle.stop().await;
    assert_eq!(alive(&mark), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_runs_as_the_user_it_was_given_with_its_groups_umask_and_readable_files() {
    let lab = lab().await;
    let script = "id -un; id -gn; umask; echo $USER; cat $WATCHER_DATA $WATCHER_FACTS >/dev/null && echo readable\n\
                  echo x > made; stat -c '%U %a' made\n";
    let status = run(&lab, script, "timeout: 20s\nuser: nobody\numask: \"0027\"").await;
    let detail = status.detail.unwrap_or_else(|| panic!("{:?}", status.last_error));
    let lines: Vec<&str> = detail.lines().collect();
    assert_eq!(lines[0], "nobody");
    assert_eq!(lines[2..], ["0027", "nobody", "readable", "nobody 640"]);
    let status = run(&lab, "id -u; id -g; id -G", "timeout: 20s\nuser: 65534\ngroup: 12").await;
    assert_eq!(status.detail.as_deref().unwrap_or_default().lines().collect::<Vec<_>>()[..2], ["65534", "12"]);
    let status = run(&lab, "id -u; id -g; id -G", "timeout: 20s\ngroup: 12").await;
    assert_eq!(status.detail.as_deref(), Some("0\n12\n12"));
    // Who has no entry on the node has no home, least of all the daemon's.
    let status = run(&lab, "echo $HOME $USER $LOGNAME", "timeout: 20s\nuser: 1234567\ngroup: 1234567").await;
    assert_eq!(status.detail.as_deref(), Some("/ 1234567 1234567"));
}

#[tokio::test]
async fn a_user_that_is_not_there_and_a_limit_that_can_not_hold_are_told() {
    let lab = lab().await;
    let cases = [
        ("user: no-such-user", "sh script: there is no user \"no-such-user\" on this node; create it, or correct user"),
        ("group: no-such-group", "there is no group \"no-such-group\" on this node"),
        ("user: 4000000001", "user 4000000001 has no entry on this node, so its group is not known; set group too"),
        ("tasks: 5", "tasks does not bind a command that runs as root, which the kernel exempts from it; set user too"),
    ];
    for (properties, expected) in cases {
        let status = run(&lab, "true", properties).await;
        let error = status.last_error.unwrap();
        assert!(error.contains(expected), "{properties}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_beyond_the_limit_is_refused_also_to_grandchildren_and_to_all_together() {
    let lab = lab().await;
    // A line without an end is kept whole in memory by tail.
    let hog = "head -c 300000000 /dev/zero | tail -n 1 | wc -c";
    let free = run(&lab, hog, "timeout: 60s\nmemory: 2GiB").await;
    assert_eq!(free.detail.as_deref(), Some("300000000"), "{:?}", free.last_error);
    let status = run(&lab, &format!("sh -c '{hog}; exit 3'"), "timeout: 60s\nmemory: 64MiB").await;
    let error = status.last_error.unwrap();
    let refused = error.contains("memory exhausted") || error.contains("more than its limit of 67108864");
    assert!(refused, "{error}");
    // Each of them is within the limit.
    let hogs = "for i in 1 2 3 4; do (head -c 40000000 /dev/zero; sleep 60) | tail -n 1 & done; wait";
    let status = run(&lab, hogs, "timeout: 60s\nmemory: 64MiB").await;
    let error = status.last_error.unwrap();
    assert!(error.contains("bytes of memory, more than its limit of 67108864 and was killed"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_is_bounded_by_its_tasks() {
    let lab = lab().await;
    let mark = format!("bomb-{}", std::process::id());
    let bomb = "sleep 100 & p=$!; sh -c 'while :; do sleep 60 & done' & wait $p";
    let properties = format!("timeout: 5s\nuser: nobody\ntasks: 20\nenvironment: [\"MARK={mark}\"]");
    let directory = lab.machine_directory("runner");
    open_to_all(&directory);
    std::fs::write(directory.join("script"), bomb).unwrap();
    let handle = lab.spawn_real(&text(&format!("command: sh script\n{properties}")));
    let remote = handle.remote.clone();
    let mut most = 0;
    while watcher(&remote.status(), "run").checks == 0 {
        most = most.max(alive(&mark).len());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    handle.stop().await;
    let error = watcher(&remote.status(), "run").last_error.unwrap();
    assert!(most <= 30 && most > 2, "{most}: {error}");
    assert_eq!(alive(&mark), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_burns_the_processor_is_ended_also_when_it_shares_the_work() {
    let lab = lab().await;
    for burner in ["while :; do :; done", "for i in 1 2 3; do sh -c 'while :; do :; done' & done; wait"] {
        let status = run(&lab, burner, "timeout: 60s\ncpu: 1s").await;
        let error = status.last_error.unwrap();
        assert!(error.contains("processor time") && error.contains("limit of 1s"), "{burner}: {error}");
    }
}

#[tokio::test]
async fn values_that_are_looked_up_become_words_and_variables_of_the_moment() {
    let lab = lab().await;
    std::fs::create_dir_all(lab.path("data/runner")).unwrap();
    std::fs::write(lab.path("data/runner/machine_data.json"), "{\"name\": \"a  b\", \"two\": \"c d\"}").unwrap();
    let properties = "command: sh -c 'for w in \"$@\"; do echo \"<$w>\"; done; echo \"$ROLE\"' sh \
                      '{{ lookup \"data.name\" \"\" }}' {{ lookup \"data.two\" \"\" }}\n\
                      environment: ['ROLE={{ lookup \"facts.role\" \"none\" }} {{ lookup \"data.name\" \"\" }}']\ntimeout: 20s";
    let properties = properties.replacen("command: ", "command: >-\n  ", 1);
    let handle = lab.spawn_real(&text(&properties));
    let remote = handle.remote.clone();
    eventually("the end of the command", || async { watcher(&remote.status(), "run").checks > 0 }).await;
    let status = watcher(&remote.status(), "run");
    assert_eq!(status.detail.as_deref(), Some("<a  b>\n<c>\n<d>\nweb a  b"), "{:?}", status.last_error);
    handle.stop().await;
    // What does not make words is an error of the moment.
    std::fs::write(lab.path("data/runner/machine_data.json"), json!({"name": "it's"}).to_string()).unwrap();
    let handle = lab.spawn_real(&text("command: echo {{ lookup \"data.name\" \"\" }}\ntimeout: 20s"));
    let remote = handle.remote.clone();
    eventually("the end of the check", || async { watcher(&remote.status(), "run").checks > 0 }).await;
    let error = watcher(&remote.status(), "run").last_error.unwrap();
    let why = "command \"echo it's\": a value outside of quotes opens a quote that it does not close";
    assert!(error.contains(why), "{error}");
    handle.stop().await;
}

#[test]
fn limits_that_can_not_be_meant_are_refused_with_their_place() {
    let cases = [
        ("umask: \"0888\"", "umask \"0888\" must be octal digits such as \"0027\""),
        ("umask: 27", "umask: "),
        ("memory: 64 megs", "\"64 megs\" is not a size such as 64MiB or 1GiB"),
        ("memory: 0", "memory must be more than 0"),
        ("cpu: 0s", "cpu must be more than 0"),
        ("cpu: long", "cpu: "),
        ("tasks: 0", "tasks must be more than 0"),
        ("user: \"a b\"", "\"a b\" is not a name of a user or group"),
        ("group: -1", "group: "),
        ("environment: ['{{ nope }}']", "calls \"nope\", which is no function"),
    ];
    for (properties, expected) in cases {
        let refused = engine::build(&text(&format!("command: a\n{properties}"))).map(drop).unwrap_err();
        assert!(refused.starts_with("machine.yaml:15:") && refused.contains(expected), "{properties}: {refused}");
    }
    let refused = engine::build(&text("command: '{{ lookup \"a\" '")).map(drop).unwrap_err();
    assert!(refused.starts_with("machine.yaml:14:"), "{refused}");
}
