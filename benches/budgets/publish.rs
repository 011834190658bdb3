//! From the moment that a specification with a new agent is put into the store, to the end of that agent's first check.

use std::time::{Duration, Instant};

use machines::archive::Built;
use machines::control::Span;
use machines::spec::SecretKey;
use tokio::sync::mpsc;

use crate::nats::NatsServer;
use crate::node::{BUCKET, Daemon, KEY, Node, running};
use crate::table::{NOT_MEASURED, Row, Verdict};
use crate::{fleet, percentile, runtime, web};

const ROUNDS: usize = 50;
/// Agents that are on the node already.
const OTHERS: usize = 10;
const BUDGET: Duration = Duration::from_millis(100);

pub fn measure() -> Vec<Row> {
    let archives = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let url = web::serve(archives.path());
    let agents: Vec<Built> = (0..ROUNDS + OTHERS)
        .map(|index| fleet::archive_of_100_kilobytes(archives.path(), &format!("agent{index}"), index as u64))
        .collect();
    let server = NatsServer::start();
    vec![row("NATS", &server.url(), &agents, &url), row("embedded", "local", &agents, &url)]
}

fn row(store: &str, kv_url: &str, agents: &[Built], archives_url: &str) -> Row {
    let times = runtime().block_on(rounds(kv_url, agents, archives_url));
    let (half, most) = (percentile(&times, 50), percentile(&times, 95));
    let milliseconds = |time: Duration| time.as_secs_f64() * 1000.0;
    Row {
        what: format!("put -> first watcher runs, {store}"),
        budget: "<= 100 ms".to_owned(),
        measured: format!("p50 {:.1}, p95 {:.1} ms", milliseconds(half), milliseconds(most)),
        peer: NOT_MEASURED.to_owned(),
        verdict: Verdict::of(most <= BUDGET),
        method: format!(
            "{ROUNDS} rounds on a running daemon with {OTHERS} agents: put a signed list with one more agent (100 KB \
             over http) and without the oldest; ends with the event of its exec watcher's first run, command included"
        ),
    }
}

async fn rounds(kv_url: &str, agents: &[Built], archives_url: &str) -> Vec<Duration> {
    let key = SecretKey::generate().unwrap();
    let node = Node::new(kv_url, &format!("[sync]\nenabled = true\n{}", fleet::trust(&key)));
    let store = node.store().await;
    let bucket = store.bucket(BUCKET).unwrap();
    let entry = |built: &Built| {
        fleet::entry(built, &format!("{archives_url}/{}", built.path.file_name().unwrap().to_string_lossy()))
    };
    let entries: Vec<_> = agents.iter().map(entry).collect();
    let list = |round: usize| fleet::envelope(&key, &entries[round..round + OTHERS]);

    bucket.put(KEY, list(0)).await.unwrap();
    let daemon = node.start();
    daemon.until(Duration::from_millis(10), |status| running(status) == OTHERS).await;
    let mut firsts = follow(&daemon);
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        // Until the daemon has nothing left to do: measured is the answer to a change, not to a queue of them.
        tokio::time::sleep(Duration::from_millis(400)).await;
        let name = agents[round + OTHERS - 1].name.as_str();
        let envelope = list(round);
        let started = Instant::now();
        bucket.put(KEY, envelope).await.unwrap();
        let seen = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                let (machine, at) = firsts.recv().await.unwrap();
                if machine == name {
                    return at;
                }
            }
        });
        times.push(seen.await.unwrap_or_else(|_| panic!("{name} did not run")) - started);
    }
    times
}

/// The machines whose exec watchers have run, and when we learned of it.
fn follow(daemon: &Daemon) -> mpsc::UnboundedReceiver<(String, Instant)> {
    let (sender, receiver) = mpsc::unbounded_channel();
    let client = daemon.client.clone();
    tokio::spawn(async move {
        let ended = client.events(Span::Follow, |line| {
            let at = Instant::now();
            let event: serde_json::Value = serde_json::from_str(line).unwrap();
            if event["type"] == "io.choria.machine.watcher.exec.v1.state" {
                let machine = event["data"]["machine"].as_str().unwrap().to_owned();
                return sender.send((machine, at)).is_ok();
            }
            true
        });
        // It ends with the daemon.
        _ = ended.await;
    });
    receiver
}
