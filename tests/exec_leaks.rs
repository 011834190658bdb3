//! The promise that the runs of a command leave nothing in the daemon's process. In a program of its own, with this test
//! only: descriptors and children are counted for the whole process.

#![cfg(test)]

mod engine;
mod support;

use engine::{Lab, watcher};
use support::eventually;

/// Four at a time, since the shortest interval is half a second.
const WATCHERS: usize = 4;

#[tokio::test]
async fn runs_leave_no_open_descriptors_and_no_dead_processes() {
    let lab = Lab::new().await;
    run(&lab, 2).await;
    eventually("the reaping of the first runs", || async { children() == 0 }).await;
    let before = descriptors();
    run(&lab, 20).await;
    eventually("the reaping of every run", || async { children() == 0 }).await;
    // The last pipes are closed by the tasks that read them, perhaps a moment after their command was reaped.
    eventually("no more descriptors than before", || async { descriptors() <= before }).await;
}

/// Runs a machine until its commands have ended so often, good and bad ends and one at its time limit among them.
async fn run(lab: &Lab, times: u64) {
    let commands = ["sh -c 'echo x; exit 0'", "sh -c 'echo x >&2; exit 1'", "no-such-command", "sleep 60"];
    let watchers: String = commands[..WATCHERS]
        .iter()
        .enumerate()
        .map(|(index, command)| {
            format!(
                "  - name: run{index}\n    type: exec\n    state_match: [A]\n    interval: 500ms\n    properties:\n      \
                 command: {command}\n      timeout: 200ms\n"
            )
        })
        .collect();
    let text = format!(
        "name: runner\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: again, from: [A], destination: \
         A}}\nwatchers:\n{watchers}"
    );
    let handle = lab.spawn_real(&text);
    let remote = handle.remote.clone();
    let checks = |index: usize| watcher(&remote.status(), &format!("run{index}")).checks;
    eventually("the runs", || async {
        (0..WATCHERS).all(|index| checks(index) > 0) && (0..WATCHERS).map(checks).sum::<u64>() >= times
    })
    .await;
    handle.stop().await;
}

fn descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

/// The processes that this one has started and not waited for, alive or dead.
fn children() -> usize {
    let own = std::process::id().to_string();
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let stats = processes.filter_map(|entry| std::fs::read_to_string(entry.path().join("stat")).ok());
    stats
        .filter(|stat| stat.rsplit(')').next().unwrap_or_default().split_whitespace().nth(1) == Some(own.as_str()))
        .count()
}
