//! What the daemon owes to the commands that it runs, over its own end: leaves of a cgroup, files, orphans; and how it says
//! what bounds them. With the real program.

#![cfg(test)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use support::cgroup::Cgroup;
use support::daemon::Daemon;
use support::{eventually, unwrapped};

fn machine(root: &Path, name: &str, script: &str, more: &str) -> PathBuf {
    let directory = root.join("local").join(name);
    fs::create_dir_all(&directory).unwrap();
    fs::write(directory.join("script"), script).unwrap();
    let text = format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: A\ntransitions: [{{name: again, from: [A], destination: A}}]\n\
         watchers:\n  - name: run\n    type: exec\n    state_match: [A]\n{more}    properties:\n      command: sh \
         script\n      timeout: 10m\n"
    );
    fs::write(directory.join("machine.yaml"), text).unwrap();
    directory
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn is_alive(pid: &str) -> bool {
    Path::new("/proc").join(pid.trim()).exists()
}

#[tokio::test]
async fn after_a_kill_the_next_daemon_ends_what_ran_and_lets_go_on_what_was_left_on_purpose() {
    let (root, cgroup) = (tempfile::tempdir().unwrap(), Cgroup::new());
    let mut daemon = Daemon::new(root.path(), "node1", "local");
    daemon.set("process", "cgroup", cgroup.path.to_str().unwrap());
    daemon.start().await;
    // Only the first start of each leaves one.
    let runner = machine(root.path(), "runner", "test -e pid || { echo $$ >pid; exec sleep 600; }", "");
    let service = machine(root.path(), "service", "test -e pid || { sleep 600 & echo $! >pid; }", "");
    let pids = || (read(&runner.join("pid")), read(&service.join("pid")));
    eventually("both commands", || async { pids().0.ends_with('\n') && pids().1.ends_with('\n') }).await;
    daemon
        .until("the service is left", |status| {
            let machines = status["machines"].as_array().unwrap().iter();
            machines
                .filter(|it| it["machine"]["name"] == "service")
                .any(|it| it["machine"]["watchers"][0]["checks"] == 1)
        })
        .await;
    let (running, left) = pids();
    daemon.kill();
    assert!(is_alive(&running) && is_alive(&left), "nobody ends them");
    daemon.start().await;
    eventually("the end of what ran", || async { !is_alive(&running) }).await;
    assert!(is_alive(&left));
    daemon.terminate();
    assert!(is_alive(&left));
}

#[tokio::test]
async fn status_and_why_say_what_bounds_commands_here() {
    let (root, cgroup) = (tempfile::tempdir().unwrap(), Cgroup::new());
    machine(root.path(), "runner", "true", "");
    let mut daemon = Daemon::new(root.path(), "node1", "local");
    daemon.set("process", "cgroup", "off");
    daemon.start().await;
    daemon.until("it runs", |status| status["machines"].as_array().unwrap().len() > 1).await;
    let status = daemon.status().await;
    let expected = serde_json::json!({
        "by": "processes", "directory": null, "because": "[process] cgroup is \"off\"",
        "gaps": ["memory", "cpu", "tasks", "kill"],
    });
    assert_eq!(status["commands"], expected);
    let printed = unwrapped(&daemon.run(&["why", "runner"]).out);
    assert!(printed.contains("commands: bounded by rlimits and /proc: [process] cgroup is \"off\""), "{printed}");
    assert!(printed.contains("but: memory counts what processes hold, looked at 5 times a second"), "{printed}");
    daemon.terminate();
    daemon.set("process", "cgroup", cgroup.path.to_str().unwrap());
    daemon.start().await;
    daemon.until("it runs", |status| status["machines"].as_array().unwrap().len() > 1).await;
    let printed = unwrapped(&daemon.run(&["why", "runner"]).out);
    assert!(printed.contains(&format!("bounded by the cgroup {}", cgroup.path.display())), "{printed}");
    daemon.terminate();
    daemon.set("process", "cgroup", "/nonexistent");
    let printed = daemon.run_to_the_end(&["run"]);
    assert!(
        printed.err.contains(
            "/nonexistent is no cgroup of a mounted hierarchy of version 2; set cgroup under [process] to one"
        ),
        "{printed:?}"
    );
    daemon.set("process", "cgroup", "machines");
    let printed = daemon.run_to_the_end(&["run"]);
    let message = "cgroup: \"machines\" is not \"auto\", \"off\" or the absolute path of a cgroup";
    assert!(printed.code == Some(2) && printed.err.contains(message), "{printed:?}");
}

#[tokio::test]
async fn the_files_of_a_killed_daemons_commands_are_removed_at_the_next_start() {
    let root = tempfile::tempdir().unwrap();
    let directory = machine(root.path(), "runner", "echo $WATCHER_DATA $WATCHER_FACTS >>paths; exec sleep 600", "");
    let mut daemon = Daemon::new(root.path(), "node1", "local");
    daemon.set("process", "cgroup", "off");
    let paths = || read(&directory.join("paths"));
    daemon.start().await;
    eventually("the command", || async { paths().ends_with('\n') }).await;
    // Another daemon on this node does not touch them.
    let other_root = tempfile::tempdir().unwrap();
    let mut other = Daemon::new(other_root.path(), "node2", "local");
    other.start().await;
    let of_the_dead: Vec<PathBuf> = paths().split_whitespace().map(PathBuf::from).collect();
    assert!(of_the_dead.len() == 2 && of_the_dead.iter().all(|path| path.exists()), "{of_the_dead:?}");
    daemon.kill();
    assert!(of_the_dead.iter().all(|path| path.exists()));
    other.restart().await;
    let left: Vec<_> = of_the_dead.iter().filter(|path| path.exists()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// As the first process of a container.
#[tokio::test]
async fn as_process_1_it_waits_for_orphans_and_commands_keep_their_ends() {
    let root = tempfile::tempdir().unwrap();
    let script = "(sleep 0.2; echo x >>gone) >/dev/null 2>&1 & exit 3";
    let directory = machine(root.path(), "runner", script, "    interval: 500ms\n");
    let mut daemon = Daemon::new(root.path(), "node1", "local");
    daemon.wrapper = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"].map(str::to_owned).to_vec();
    daemon.start().await;
    let gone = || read(&directory.join("gone")).lines().count();
    eventually("the orphans", || async { gone() >= 5 }).await;
    let wrapper = daemon.process();
    let first = read(&PathBuf::from(format!("/proc/{wrapper}/task/{wrapper}/children")));
    let first = first.trim().to_owned();
    // Those that are dead and whose parent, the daemon, has not noticed.
    let dead = || {
        let all = fs::read_dir("/proc").unwrap().filter_map(Result::ok).map(|entry| read(&entry.path().join("stat")));
        let fields = |stat: String| {
            let rest = stat.rsplit(')').next().unwrap_or_default().to_owned();
            rest.split_whitespace().take(2).map(str::to_owned).collect::<Vec<_>>()
        };
        all.map(fields).filter(|fields| *fields == ["Z", first.as_str()]).count()
    };
    eventually("none is left dead", || async { dead() == 0 }).await;
    let status = daemon.status().await;
    let reports = status["machines"].as_array().unwrap();
    let runner = reports.iter().find(|report| report["machine"]["name"] == "runner").unwrap();
    let error = runner["machine"]["watchers"][0]["last_error"].as_str().unwrap();
    assert!(error.contains("exited with code 3"), "{error}");
}

/// Who is in a group of its own is a child of the daemon, and so are its siblings.
#[tokio::test]
async fn what_a_command_starts_as_a_sibling_of_its_own_is_not_left_dead() {
    let (root, cgroup) = (tempfile::tempdir().unwrap(), Cgroup::new());
    let source = "#define _GNU_SOURCE\n#include <sched.h>\n#include <signal.h>\n#include <sys/syscall.h>\n\
                  #include <unistd.h>\nint main(void) { for (int i = 0; i < 20; i++)\n\
                  if (syscall(SYS_clone, CLONE_PARENT | SIGCHLD, 0, 0, 0, 0) == 0) _exit(0);\n\
                  return 0; }\n";
    let directory = machine(root.path(), "runner", "./siblings && echo x >>done", "    interval: 500ms\n");
    fs::write(directory.join("siblings.c"), source).unwrap();
    let compiled =
        std::process::Command::new("cc").args(["-o", "siblings", "siblings.c"]).current_dir(&directory).output();
    assert!(compiled.unwrap().status.success());
    let mut daemon = Daemon::new(root.path(), "node1", "local");
    daemon.set("process", "cgroup", cgroup.path.to_str().unwrap());
    daemon.start().await;
    let runs = || read(&directory.join("done")).lines().count();
    eventually("some runs", || async { runs() >= 4 }).await;
    fs::write(directory.join("script"), "true").unwrap();
    let pid = daemon.process();
    let dead = || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap().filter_map(Result::ok);
        let children = tasks.map(|task| read(&task.path().join("children"))).collect::<String>();
        let stats = children.split_whitespace().map(|child| read(&PathBuf::from(format!("/proc/{child}/stat"))));
        stats.filter(|stat| stat.contains(") Z ")).count()
    };
    eventually("none is left dead", || async { dead() == 0 }).await;
}
