//! The promise that a managed machine runs on, files and all, while its successor can't be run: a real host over what a
//! real reconciler installs, without the time for which unused copies are kept otherwise.

#![cfg(test)]

mod engine;
mod support;
mod sync_world;

use std::sync::Arc;
use std::time::Duration;

use engine::Lab;
use machines::host;
use machines::machine::watcher::Services;
use machines::sync::Settings;
use support::{eventually, within};
use sync_world::World;

fn definition(version: &str, property: &str) -> String {
    format!(
        "name: facts\nversion: {version}\ninitial_state: A\ntransitions:\n  - {{name: go, from: [A], destination: \
         A}}\nwatchers:\n  - {{name: it, type: timer, state_match: [A], properties: {{{property}: 1h}}}}\n"
    )
}

#[tokio::test]
async fn a_machine_keeps_its_files_while_its_successor_can_not_be_run_and_no_longer() {
    let world = World::new();
    let node = Arc::new(world.open_with(Settings { keep_unused: Duration::ZERO, ..world.settings() }));
    let version = |version, property| world.publish_definition("facts", version, &definition(version, property));
    let (first, broken, mended) = (version("1.0.0", "timer"), version("2.0.0", "tiemr"), version("3.0.0", "timer"));
    assert!(world.reconcile(&node, std::slice::from_ref(&first)).await.converged());

    let lab = Lab::new().await;
    let services = Services { sync: Some(Arc::clone(&node)), ..Services::clone(&lab.services) };
    let (host, task) = host::start(host::Setup {
        local_directory: None,
        managed_directory: Some(world.path("state/machines")),
        data_directory: lab.path("data"),
        built_in: Vec::new(),
        kinds: machines::watchers::KINDS,
        services: Arc::new(services),
        bus: lab.bus.clone(),
        rescan: host::RESCAN,
    });
    let machine = || host.reports().into_iter().find_map(|report| report.machine);
    let runs = |version: &'static str| machine().is_some_and(|machine| machine.version.as_str() == version);
    eventually("the first version", || async { runs("1.0.0") }).await;
    let running = machine().unwrap();

    assert!(world.reconcile(&node, std::slice::from_ref(&broken)).await.converged());
    host.rescan();
    eventually("the refusal of the second", || async {
        host.reports()[0].problem.as_ref().is_some_and(|problem| problem.contains("unknown key \"tiemr\""))
    })
    .await;
    for _ in 0..3 {
        assert!(world.reconcile(&node, std::slice::from_ref(&broken)).await.converged());
    }
    assert_eq!(machine().unwrap().id, running.id, "the first version runs on");
    assert_eq!(world.text("facts/run.sh"), "echo 2.0.0\n");
    let kept = |entry: &serde_json::Value| world.store().iter().any(|copy| entry["checksum"] == copy.as_str());
    assert!(kept(&first), "from its own files: {:?}", world.store());

    assert!(world.reconcile(&node, std::slice::from_ref(&mended)).await.converged());
    host.rescan();
    eventually("the third version", || async { runs("3.0.0") }).await;
    for _ in 0..2 {
        assert!(world.reconcile(&node, std::slice::from_ref(&mended)).await.converged());
    }
    assert!(kept(&mended) && !kept(&first) && !kept(&broken), "{:?}", world.store());
    within("the stop", host.stop()).await;
    within("the end of the task", task).await.unwrap();
}
