//! The promises of the exec watcher, kept with real processes: what a command is given, what its output and its end
//! mean, and that nothing of it is left when it takes too long or its machine stops.

#![cfg(test)]

mod engine;
mod support;

use std::cell::Cell;
use std::path::Path;
use std::time::{Duration, Instant};

use engine::{Lab, watcher};
use machines::machine::runner::Handle;
use machines::machine::status::WatcherStatus;
use serde_json::json;
use support::eventually;

/// A machine whose watcher runs in A: success leads to GOOD, failure to BAD.
fn text(properties: &str) -> String {
    let properties: String = properties.lines().map(|line| format!("      {line}\n")).collect();
    format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: good, from: [A], destination: \
         GOOD}}\n  - {{name: bad, from: [A], destination: BAD}}\nwatchers:\n  - name: run\n    type: exec\n    \
         state_match: [A]\n    success_transition: good\n    fail_transition: bad\n    properties:\n{properties}"
    )
}

/// A script in the machine's directory. It is run by a shell that stands for it, because a program that has just been
/// written may be busy while other tests start theirs.
fn script(lab: &Lab, content: &str) {
    std::fs::write(lab.machine_directory("runner").join("script"), content).unwrap();
}

/// Runs to the end of the first check.
async fn run(lab: &Lab, properties: &str) -> (Handle, WatcherStatus) {
    let handle = lab.spawn_real(&text(properties));
    let remote = handle.remote.clone();
    eventually("the end of the command", || async { watcher(&remote.status(), "run").checks > 0 }).await;
    let status = watcher(&handle.remote.status(), "run");
    (handle, status)
}

async fn run_script(content: &str, properties: &str) -> (Lab, Handle, WatcherStatus) {
    let lab = Lab::new().await;
    script(&lab, content);
    let (handle, status) = run(&lab, &format!("command: sh script\ntimeout: 20s\n{properties}")).await;
    (lab, handle, status)
}

fn is_alive(pid: &str) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.trim()).join("stat")).unwrap_or_default();
    stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().next()).is_some_and(|state| state != "Z")
}

/// Reads what a script has written to a file in the machine's directory, once it is there.
async fn written(lab: &Lab, name: &str) -> String {
    let path = lab.machine_directory("runner").join(name);
    eventually("a file of the script", || async {
        std::fs::read_to_string(&path).is_ok_and(|content| content.ends_with('\n'))
    })
    .await;
    std::fs::read_to_string(&path).unwrap()
}

#[tokio::test]
async fn exit_code_0_is_success_and_any_other_end_a_failure_that_says_how() {
    let (_lab, handle, status) = run_script("echo fine", "").await;
    assert_eq!((status.outcome, status.last_error, status.detail.as_deref()), ("success", None, Some("fine")));
    assert_eq!(handle.remote.status().state.as_str(), "GOOD");
    let (_lab, handle, status) = run_script("echo what is wrong >&2; exit 7", "").await;
    let expected = "sh script: exited with code 7; it printed: what is wrong";
    assert_eq!((status.outcome, status.last_error.as_deref()), ("error", Some(expected)));
    assert_eq!(handle.remote.status().state.as_str(), "BAD");
    let (_lab, _handle, status) = run_script("kill -SEGV $$", "").await;
    assert_eq!(status.last_error.as_deref(), Some("sh script: was ended by signal 11"));
}

#[tokio::test]
async fn a_command_has_the_environment_of_the_reference_and_nothing_else_of_the_daemons() {
    let lab = Lab::new().await;
    let content = "{ pwd; env; echo DATA=$(cat $WATCHER_DATA); echo FACTS=$(cat $WATCHER_FACTS); } > all.part\n\
                   mv all.part all; exit 0";
    script(&lab, content);
    std::fs::create_dir_all(lab.path("data/runner")).unwrap();
    std::fs::write(lab.path("data/runner/machine_data.json"), "{\"a\":{\"b\":1}}").unwrap();
    let properties = "command: sh script\nenvironment: [\"MINE=a b=c\", \"MACHINE_NAME=other\"]\ntimeout: 20s";
    let (_handle, status) = run(&lab, properties).await;
    assert_eq!(status.last_error, None);
    let all = written(&lab, "all").await;
    let lines: Vec<&str> = all.lines().collect();
    let directory = lab.machine_directory("runner").canonicalize().unwrap();
    assert_eq!(lines[0], directory.to_str().unwrap());
    let value = |name: &str| {
        let found = lines.iter().find_map(|line| line.strip_prefix(&format!("{name}=")));
        found.unwrap_or_else(|| panic!("no {name} in {all}"))
    };
    assert_eq!(value("MACHINE_WATCHER_NAME"), "run");
    assert_eq!(value("MACHINE_NAME"), "other", "`environment` comes last");
    assert_eq!(value("MINE"), "a b=c");
    let daemons = std::env::var("PATH").unwrap();
    assert_eq!(value("PATH"), format!("{daemons}:{}", lab.machine_directory("runner").display()));
    assert_eq!(value("MACHINE_DATA_DIR"), lab.path("data/runner").to_str().unwrap());
    assert_eq!(serde_json::from_str::<serde_json::Value>(value("DATA")).unwrap(), json!({"a": {"b": 1}}));
    assert_eq!(serde_json::from_str::<serde_json::Value>(value("FACTS")).unwrap()["role"], "web");
    assert!(!Path::new(value("WATCHER_DATA")).exists() && !Path::new(value("WATCHER_FACTS")).exists());
    // Nothing else: a unit file may set the password of a store. The last four are of the shell.
    let known = [
        "MACHINE_WATCHER_NAME",
        "MACHINE_NAME",
        "MACHINE_DATA_DIR",
        "WATCHER_DATA",
        "WATCHER_FACTS",
        "PATH",
        "MINE",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "LC_ALL",
        "LC_CTYPE",
        "TZ",
        "TMPDIR",
        "PWD",
        "OLDPWD",
        "SHLVL",
        "_",
    ];
    let more = std::env::vars_os().filter(|(name, _)| !known.iter().any(|known| name == known)).count();
    assert!(more > 0, "the test itself has more than that");
    let given = lines[1..].iter().filter_map(|line| Some(line.split_once('=')?.0));
    let leaked: Vec<_> = given.filter(|name| !known.contains(name) && !["DATA", "FACTS"].contains(name)).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

#[tokio::test]
async fn commands_are_found_on_path_in_the_machines_directory_and_relative_to_it() {
    let lab = Lab::new().await;
    let directory = lab.machine_directory("runner");
    std::fs::create_dir(directory.join("sub")).unwrap();
    for link in ["my-echo", "sub/echo"] {
        std::os::unix::fs::symlink("/bin/echo", directory.join(link)).unwrap();
    }
    for command in ["my-echo found", "./my-echo found", "sub/echo found", "/bin/echo found", "echo 'found'"] {
        let (handle, status) = run(&lab, &format!("command: {command}\ntimeout: 20s")).await;
        assert_eq!(status.detail.as_deref(), Some("found"), "{command}: {status:?}");
        handle.stop().await;
    }
}

#[tokio::test]
async fn a_command_that_is_not_there_or_can_not_be_run_is_named() {
    let lab = Lab::new().await;
    let (_handle, status) = run(&lab, "command: no-such-command --flag").await;
    let error = status.last_error.unwrap();
    let expected =
        "no-such-command --flag: there is no command \"no-such-command\" in the machine's directory or on PATH";
    assert!(error.starts_with(expected), "{error}");
    script(&lab, "not executable");
    let (_handle, status) = run(&lab, "command: ./script").await;
    let error = status.last_error.unwrap();
    assert!(error.contains("could not start") && error.contains("script: Permission denied"), "{error}");
    // A file on PATH that can't be run hides none that can.
    let shadow = lab.path("shadow");
    std::fs::create_dir(&shadow).unwrap();
    std::fs::write(shadow.join("true"), "not executable").unwrap();
    let properties = format!("command: \"true\"\ntimeout: 20s\nenvironment: [\"PATH={}:/bin\"]", shadow.display());
    let (_handle, status) = run(&lab, &properties).await;
    assert_eq!((status.outcome, status.last_error), ("success", None));
}

#[tokio::test]
async fn what_fails_over_and_over_is_said_in_short() {
    let lab = Lab::new().await;
    let (_handle, status) = run(&lab, &format!("command: \"false {}\"", "x".repeat(100_000))).await;
    let error = status.last_error.unwrap();
    assert!(
        error.len() < 300 && error.starts_with("false xxx") && error.ends_with("x…: exited with code 1"),
        "{error}"
    );
    // A value that is repeated in an error, and has the half of a password at each end of what is left out.
    let secret = format!("ftp://{}:{}@host/", "u".repeat(5_000), "p".repeat(20_000));
    let properties = format!("command: \"true\"\nenvironment: [\"{{{{ ToLower `{secret}` }}}}\"]");
    let (_handle, status) = run(&lab, &properties).await;
    let error = status.last_error.unwrap();
    assert!(error.len() < 16 * 1024 && error.ends_with("must be NAME=value") && !error.contains("ppp"), "{error}");
}

#[tokio::test]
async fn what_no_kernel_would_take_is_refused_before_it_is_searched_or_made() {
    let lab = Lab::new().await;
    let path = "/nonexistent:".repeat(20_000);
    let (_handle, status) = run(&lab, &format!("command: nothing\nenvironment: [\"PATH={path}\"]")).await;
    let expected =
        "nothing: \"nothing\" is not looked for: PATH has more than 1024 directories; shorten it, or name a path";
    assert_eq!(status.last_error.as_deref(), Some(expected));
    // The path is shown in part.
    let path = format!("{}:{}", "/a".repeat(1_000), "/nonexistent:".repeat(500));
    let (_handle, status) = run(&lab, &format!("command: nothing\nenvironment: [\"PATH={path}\"]")).await;
    let error = status.last_error.unwrap();
    assert!(error.contains("there is no command \"nothing\"") && error.len() < 1_200, "{error}");
    // Many variables of one long value.
    let variables = format!("\"A={}\", ", "x".repeat(10_000)).repeat(250);
    let (_handle, status) = run(&lab, &format!("command: \"true\"\nenvironment: [{variables}]")).await;
    let error = status.last_error.unwrap();
    assert!(error.ends_with("its words and environment have more than 2097152 bytes together"), "{error}");
}

#[tokio::test]
async fn output_becomes_data_when_it_is_a_json_object_of_bounded_size() {
    let (lab, handle, status) = run_script("echo '{\"a\": {\"b\": [1]}, \"c\": \"d\"}'", "parse_as_data: true").await;
    assert_eq!((status.outcome, status.last_error), ("success", None));
    assert_eq!(handle.remote.status().state.as_str(), "GOOD");
    handle.stop().await;
    assert_eq!(lab.saved("runner"), Some(json!({"a": {"b": [1]}, "c": "d"})));
    let cases = [
        ("echo '{\"a\": '", "sh script: its output can't become data: EOF while parsing a value at line"),
        ("echo '[1]'", "its output can't become data: it is JSON, but not an object"),
        ("true", "its output can't become data: EOF while parsing a value"),
        (
            "printf '{\"a\": \"'; head -c 2000000 /dev/zero | tr '\\0' x; printf '\"}'",
            "it is larger than 1048576 bytes",
        ),
        ("printf '{\"a\": \"\\377\"}'", "its output can't become data: invalid unicode code point"),
    ];
    for (content, expected) in cases {
        let (lab, handle, status) = run_script(content, "parse_as_data: true").await;
        let error = status.last_error.unwrap();
        assert!(error.contains(expected), "{content}: {error}");
        assert_eq!(handle.remote.status().state.as_str(), "BAD");
        handle.stop().await;
        assert_eq!(lab.saved("runner"), None, "{content}: nothing is kept");
    }
}

#[tokio::test]
async fn output_that_is_no_text_is_shown_as_well_as_it_can_be() {
    let (_lab, _handle, status) = run_script("printf 'a\\377\\376b'; exit 1", "").await;
    assert_eq!(status.last_error.as_deref(), Some("sh script: exited with code 1; it printed: a\u{fffd}\u{fffd}b"));
}

#[tokio::test]
async fn at_its_time_limit_a_command_is_killed_with_all_it_started() {
    let lab = Lab::new().await;
    // The grandchild ignores the polite signal and holds the pipe.
    script(&lab, "(trap '' TERM; while :; do sleep 1; done) & echo $! > pid; wait");
    let begin = Instant::now();
    let (_handle, status) = run(&lab, "command: sh script\ntimeout: 3s").await;
    let error = status.last_error.unwrap();
    assert_eq!(error, "sh script: took longer than 3s and was killed");
    assert!(begin.elapsed() < support::PATIENCE, "{:?}", begin.elapsed());
    let pid = written(&lab, "pid").await;
    eventually("the end of the grandchild", || async { !is_alive(&pid) }).await;
}

#[tokio::test]
async fn a_command_that_ends_is_not_held_up_by_what_it_left_in_the_background() {
    let begin = Instant::now();
    let (lab, handle, status) = run_script("sleep 600 & echo $! > pid; echo started", "").await;
    assert_eq!((status.outcome, status.detail.as_deref()), ("success", Some("started")));
    assert!(begin.elapsed() < support::PATIENCE, "{:?}", begin.elapsed());
    let pid = written(&lab, "pid").await;
    handle.stop().await;
    assert!(is_alive(&pid), "a command may start a service");
    rustix::process::kill_process(pid_of(&pid), rustix::process::Signal::KILL).unwrap();
}

fn pid_of(text: &str) -> rustix::process::Pid {
    rustix::process::Pid::from_raw(text.trim().parse().unwrap()).unwrap()
}

#[tokio::test]
async fn endless_output_takes_bounded_memory_and_ends_at_the_time_limit() {
    let lab = Lab::new().await;
    let before = resident_bytes();
    let handle = lab.spawn_real(&text("command: cat /dev/zero\ntimeout: 3s"));
    let mut most = 0;
    let remote = handle.remote.clone();
    while watcher(&remote.status(), "run").checks == 0 {
        most = most.max(resident_bytes());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let status = watcher(&remote.status(), "run");
    assert!(status.last_error.unwrap().contains("took longer than 3s and was killed"));
    // Other tests of this program run at the same time; a gigabyte would show all the same.
    assert!(most.saturating_sub(before) < 200 * 1024 * 1024, "{before} -> {most}");
}

/// All of it is read, so that the command comes to its end, and all but its beginning is thrown away.
#[tokio::test]
async fn a_gibibyte_of_output_takes_bounded_memory_and_is_cut_to_its_beginning() {
    let lab = Lab::new().await;
    let before = resident_bytes();
    let properties = "command: head -c 1073741824 /dev/zero\ntimeout: 60s\nparse_as_data: true";
    let handle = lab.spawn_real(&text(properties));
    let most = Cell::new(0);
    let remote = handle.remote.clone();
    eventually("the end of the command", || async {
        most.set(most.get().max(resident_bytes()));
        watcher(&remote.status(), "run").checks > 0
    })
    .await;
    let error = watcher(&remote.status(), "run").last_error.unwrap();
    let expected = "head -c 1073741824 /dev/zero: its output can't become data: it is larger than 1048576 bytes";
    assert_eq!(error, expected, "it came to its end, and what is kept of its output was cut");
    assert!(most.get().saturating_sub(before) < 200 * 1024 * 1024, "{before} -> {}", most.get());
}

fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

#[tokio::test]
async fn stopping_the_machine_kills_the_running_command_and_reaps_it() {
    for drop_it in [false, true] {
        let lab = Lab::new().await;
        script(&lab, "(trap '' TERM; while :; do sleep 1; done) & echo $$ $! > pids; wait");
        let handle = lab.spawn_real(&text("command: sh script\ntimeout: 10m"));
        let pids = written(&lab, "pids").await;
        let begin = Instant::now();
        if drop_it {
            drop(handle);
        } else {
            handle.stop().await;
        }
        assert!(begin.elapsed() < support::PATIENCE, "{:?}", begin.elapsed());
        let (leader, grandchild) = pids.trim().split_once(' ').unwrap();
        eventually("the end of both", || async { !is_alive(leader) && !is_alive(grandchild) }).await;
        eventually("the reaping of the command", || async { !Path::new("/proc").join(leader).exists() }).await;
    }
}

#[tokio::test]
async fn a_disowned_command_outlives_its_machine() {
    let lab = Lab::new().await;
    script(&lab, "echo $$ > pid; exec sleep 600");
    let handle = lab.spawn_real(&text("command: sh script\ntimeout: 10m\ndisown: true"));
    let pid = written(&lab, "pid").await;
    handle.stop().await;
    assert!(is_alive(&pid));
    rustix::process::kill_process(pid_of(&pid), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn each_run_has_files_of_its_own_that_are_gone_after_it() {
    let lab = Lab::new().await;
    script(&lab, "test -s $WATCHER_DATA -a -s $WATCHER_FACTS && echo $WATCHER_DATA $WATCHER_FACTS >>paths");
    let text = text("command: sh script\ntimeout: 20s").replace("success_transition: good", "interval: 500ms");
    let handle = lab.spawn_real(&text);
    let remote = handle.remote.clone();
    eventually("a few runs", || async { watcher(&remote.status(), "run").checks >= 4 }).await;
    assert_eq!(watcher(&remote.status(), "run").last_error, None);
    handle.stop().await;
    let paths = written(&lab, "paths").await;
    let mut paths: Vec<&str> = paths.split_whitespace().collect();
    let count = paths.len();
    assert!(count >= 8, "two for each run: {paths:?}");
    paths.sort_unstable();
    paths.dedup();
    assert_eq!(paths.len(), count, "no two runs share one");
    let left: Vec<&&str> = paths.iter().filter(|path| Path::new(path).exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn success_is_announced_unless_that_is_suppressed_and_failure_always() {
    for (command, suppress, expected) in
        [("\"true\"", false, 1), ("\"true\"", true, 0), ("\"false\"", true, 1), ("\"false\"", false, 1)]
    {
        let lab = Lab::new().await;
        let mut events = lab.events();
        let properties = format!("command: {command}\ntimeout: 20s\nsuppress_success_announce: {suppress}");
        let (handle, _) = run(&lab, &properties).await;
        handle.stop().await;
        let told = events.drain();
        let told: Vec<_> = told.iter().filter(|event| event["data"]["type"] == "exec").collect();
        assert_eq!(told.len(), expected, "{command} {suppress}");
        assert!(told.iter().all(|event| event["data"]["previous_run_time"].as_u64().unwrap() > 0));
    }
}

#[test]
fn commands_that_can_not_be_meant_are_refused_before_anything_runs() {
    let cases = [
        ("command: \"\"", "machine.yaml:14:16: exec watcher \"run\": command is empty"),
        ("command: \"echo 'open\"", "exec watcher \"run\": command \"echo 'open\": missing closing quote"),
        ("command: \"echo \\0\"", "exec watcher \"run\": command must not hold a NUL character"),
        (
            "command: a\nenvironment: [A=1, oops]",
            "machine.yaml:15:26: exec watcher \"run\": environment \"oops\" must be NAME=value",
        ),
        ("command: a\nenvironment: [\"=1\"]", "environment \"=1\" must be NAME=value"),
        ("command: a\nenvironment: [\"A=\\0\"]", "must be NAME=value"),
        ("command: a\ntimeout: 0s", "machine.yaml:15:16: exec watcher \"run\": timeout must be longer than 0s"),
        ("command: a\ntimeout: fast", "exec watcher \"run\": timeout: \"fast\" is not a duration"),
    ];
    for (properties, expected) in cases {
        let refused = engine::build(&text(properties)).map(drop).unwrap_err();
        assert!(refused.contains(expected), "{properties}: {refused}");
    }
}
