//! Servers that stall, and what must not wait for them: other origins, repairs, removals, and newer specifications.

#![cfg(test)]

mod http;
mod support;
mod sync_world;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Answer, Server};
use machines::sync::{Pass, Purge, Reconciler, Removals};
use serde_json::{Value, json};
use support::{eventually, within};
use sync_world::{World, tamper};

/// As a good server begins, at a pace above the minimum that never comes to an end.
fn slow() -> Answer {
    Answer::Drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n".to_vec(), Duration::from_millis(1))
}

fn from(entry: &Value, server: &Server, path: &str) -> Value {
    let mut entry = entry.clone();
    entry["source"] = json!(format!("http://127.0.0.1:{}{path}", server.port));
    entry
}

async fn pass(world: &World, node: &Reconciler, entries: &[Value]) -> Pass {
    node.reconcile(&world.envelope(entries), &world.trust(), Purge::Unknown, Removals::Guarded).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_stalls_holds_up_no_other_origin_no_repair_and_no_removal() {
    let world = World::new();
    let (stalled, good) = (Server::start().await, Server::start().await);
    let node = Arc::new(world.open());
    let old = ["broken", "gone"].map(|name| world.publish(name, "1.0.0"));
    assert!(pass(&world, &node, &old).await.converged());
    tamper(&world.machine("broken/run.sh"), |path| std::fs::write(path, "echo broken\n").unwrap());

    let mut entries: Vec<Value> = (0..12)
        .map(|index| {
            stalled.answer(&format!("/{index}.tgz"), slow());
            // First by name, so that they are first in the queue.
            from(&world.publish(&format!("a{index}"), "1.0.0"), &stalled, &format!("/{index}.tgz"))
        })
        .collect();
    let archive = std::fs::read(world.path("out/broken-1.0.0.tgz")).unwrap();
    // The repair comes from the origin that stalls for others.
    stalled.answer("/broken.tgz", Answer::ok(&archive));
    entries.push(from(&old[0], &stalled, "/broken.tgz"));
    let other = world.publish("other", "1.0.0");
    good.answer("/other.tgz", Answer::ok(&std::fs::read(world.path("out/other-1.0.0.tgz")).unwrap()));
    entries.push(from(&other, &good, "/other.tgz"));

    let running = {
        let (node, envelope, trust) = (Arc::clone(&node), world.envelope(&entries), world.trust());
        tokio::spawn(async move { node.reconcile(&envelope, &trust, Purge::Unknown, Removals::Guarded).await })
    };
    eventually("what comes from another origin", || async { world.machine("other").exists() }).await;
    eventually("the repair", || async { world.text("broken/run.sh") == "echo 1.0.0\n" }).await;
    eventually("the removal", || async { !world.machine("gone").exists() }).await;
    assert!(!running.is_finished(), "the rest waits");
    let asked = stalled.requests().iter().filter(|request| !request.contains("/broken.tgz")).count();
    assert!(asked <= 2, "{asked} downloads from one origin");
    running.abort();
}

/// What is published, and how often it was read.
#[derive(Clone)]
struct Published(Arc<(std::sync::Mutex<Bytes>, AtomicUsize)>);

impl Published {
    fn new(envelope: Vec<u8>) -> Self {
        Self(Arc::new((std::sync::Mutex::new(envelope.into()), AtomicUsize::new(0))))
    }
    fn publish(&self, envelope: Vec<u8>) {
        *self.0.0.lock().unwrap() = envelope.into();
    }
    fn read(&self) -> Bytes {
        self.0.1.fetch_add(1, Ordering::Relaxed);
        self.0.0.lock().unwrap().clone()
    }
    /// As an operator's `machinesd sync` does.
    fn sync(&self, world: &World, node: &Arc<Reconciler>) -> tokio::task::JoinHandle<Pass> {
        let (published, node, trust) = (self.clone(), Arc::clone(node), world.trust());
        tokio::spawn(async move {
            let read = || std::future::ready(Ok::<_, std::convert::Infallible>(Some(published.read())));
            let pass = node.reconcile_published(read, &trust, Purge::Unknown, Removals::Guarded).await;
            pass.unwrap().unwrap()
        })
    }
}

struct Versions {
    stalled: Server,
    old: Vec<u8>,
    new: Vec<u8>,
}

/// A version whose archive never comes, and the one after it.
async fn versions(world: &World) -> Versions {
    let stalled = Server::start().await;
    stalled.answer("/a.tgz", slow());
    let old = world.envelope(&[from(&world.publish("facts", "1.0.0"), &stalled, "/a.tgz")]);
    let new = world.envelope(&[world.publish("facts", "2.0.0")]);
    Versions { stalled, old, new }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operators_pass_gives_way_to_a_newer_specification_and_tells_what_came_of_that() {
    let world = World::new();
    let Versions { stalled, old, new } = versions(&world).await;
    let node = Arc::new(world.open());
    let published = Published::new(old);
    let sync = published.sync(&world, &node);
    eventually("the download that never ends", || async { !stalled.requests().is_empty() }).await;

    published.publish(new.clone());
    let trust = world.trust();
    let watcher = node.reconcile(&new, &trust, Purge::Unknown, Removals::Guarded);
    let pass = within("the newer specification", watcher).await;
    assert!(pass.converged(), "{:?}", pass.complaints());
    assert_eq!(world.text("facts/run.sh"), "echo 2.0.0\n");
    let told = within("the operator's answer", sync).await.unwrap();
    assert!(told.converged(), "{:?}", told.complaints());
    assert_eq!(told.specification, pass.specification);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watchers_pass_gives_way_to_what_an_operator_finds_published_and_does_not_turn_it_back() {
    let world = World::new();
    let Versions { stalled, old, new } = versions(&world).await;
    let node = Arc::new(world.open());
    let watcher = {
        let (node, old, trust) = (Arc::clone(&node), old.clone(), world.trust());
        tokio::spawn(async move { node.reconcile(&old, &trust, Purge::Unknown, Removals::Guarded).await })
    };
    eventually("the download that never ends", || async { !stalled.requests().is_empty() }).await;

    // The watcher's data is behind: it has not heard of the new value.
    let told = within("the operator's answer", Published::new(new).sync(&world, &node)).await.unwrap();
    assert!(told.converged(), "{:?}", told.complaints());
    let pass = within("the watcher's answer", watcher).await.unwrap();
    assert_eq!(pass.specification, told.specification);
    // Nor does it install the old one at its next check, which the change on disk calls for.
    let again = within("the next check", node.reconcile(&old, &world.trust(), Purge::Unknown, Removals::Guarded)).await;
    assert_eq!(again.specification, told.specification);
    assert_eq!(world.text("facts/run.sh"), "echo 2.0.0\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_value_is_read_in_the_turn_and_not_before() {
    let world = World::new();
    let Versions { stalled, old, new } = versions(&world).await;
    let node = Arc::new(world.open());
    let watcher = {
        let (node, old, trust) = (Arc::clone(&node), old.clone(), world.trust());
        tokio::spawn(async move { node.reconcile(&old, &trust, Purge::Unknown, Removals::Guarded).await })
    };
    eventually("the download that never ends", || async { !stalled.requests().is_empty() }).await;
    // The same value, so that it waits for its turn; then another one is published, and the pass that runs is dropped.
    let published = Published::new(old);
    let sync = published.sync(&world, &node);
    eventually("the first look", || async { published.0.1.load(Ordering::Relaxed) == 1 }).await;
    published.publish(new);
    watcher.abort();
    let told = within("the operator's answer", sync).await.unwrap();
    assert!(told.converged(), "{:?}", told.complaints());
    assert_eq!(world.text("facts/run.sh"), "echo 2.0.0\n");
}
