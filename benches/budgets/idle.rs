//! What a daemon costs that has nothing to do, and how fast it gets there.

use std::path::Path;
use std::time::Duration;

use machines::archive::Built;
use machines::spec::SecretKey;

use crate::nats::NatsServer;
use crate::node::{BUCKET, Daemon, KEY, Node, running};
use crate::table::{NOT_MEASURED, Row, Verdict};
use crate::{fleet, median, runtime};

const STARTS: usize = 9;
const START_BUDGET: Duration = Duration::from_millis(300);
/// After this, every watcher has had its first check, and each then has one check within the next minute: the first
/// repetition comes after 30 s to 60 s, the second a minute later.
const SETTLING: Duration = Duration::from_secs(30);
const WINDOW: Duration = Duration::from_secs(60);

/// From the start of the process until the status says that all of 100 machines run.
pub fn measure_start() -> Vec<Row> {
    let local = Node::new("local", "[sync]\nenabled = false\n");
    for index in 0..100 {
        let name = format!("machine{index}");
        let directory = local.path("machines.d").join(&name);
        fleet::write_machine(&directory, &fleet::small_definition(&name), &[]);
    }
    let archives = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let key = SecretKey::generate().unwrap();
    let managed = Node::new("local", &fleet::trust(&key));
    let entries: Vec<_> = (0..100u64)
        .map(|index| fleet::archive_of_100_kilobytes(archives.path(), &format!("machine{index}"), index))
        .map(|built| fleet::entry(&built, &fleet::file_source(&built.path)))
        .collect();
    runtime().block_on(async {
        let store = managed.store().await;
        store.bucket(BUCKET).unwrap().put(KEY, fleet::envelope(&key, &entries)).await.unwrap();
    });
    managed.once();
    let row = |what: &str, node: &Node, method: &str| {
        let times = starts(node);
        let (time, worst) = (median(&times), times.iter().max().unwrap());
        Row {
            what: format!("start -> 100 machines run, {what}"),
            budget: "<= 300 ms".to_owned(),
            measured: format!("median {} ms, worst {}", time.as_millis(), worst.as_millis()),
            peer: NOT_MEASURED.to_owned(),
            verdict: Verdict::of(time <= START_BUDGET),
            method: format!("{STARTS} starts of the process, until /v1/status shows all 100 with a state; {method}"),
        }
    };
    vec![
        thousand_started(),
        row("local", &local, "directories in local_dir, one exec watcher each"),
        row("managed", &managed, "installed by sync, 100 KB each, every file verified before its machine runs"),
    ]
}

/// As many watchers as the memory is measured with. No budget speaks of it: a figure to know.
fn thousand_started() -> Row {
    let archives = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let node = fleet_of(1_000, "local", &tool(archives.path()));
    let run = |_| {
        let begun = std::time::Instant::now();
        runtime().block_on(async {
            node.start().until(Duration::from_millis(20), |status| running(status) >= 1_000).await;
            begun.elapsed()
        })
    };
    let times: Vec<Duration> = (0..3).map(run).collect();
    Row {
        what: "start -> 1,000 machines, 5,000 watchers".to_owned(),
        budget: "none".to_owned(),
        measured: format!("median {} ms", median(&times).as_millis()),
        peer: NOT_MEASURED.to_owned(),
        verdict: Verdict::NoBudget,
        method: "3 starts of the process, until /v1/status shows all with a state; embedded store".to_owned(),
    }
}

/// What the archive watchers keep.
fn tool(directory: &Path) -> Built {
    let files = [("bin/tool", vec![7; 20_000]), ("tool.conf", b"a = 1\n".to_vec())];
    fleet::archive(directory, "tool", "name: tool\n", &files)
}

fn starts(node: &Node) -> Vec<Duration> {
    let runtime = runtime();
    let start = |_| {
        runtime.block_on(async { node.start().until(Duration::from_millis(2), |status| running(status) == 100).await })
    };
    (0..STARTS).map(start).collect()
}

/// Memory and processor time, of three daemons at once: they are idle, so that they do not disturb each other.
pub fn measure_idle() -> Vec<Row> {
    let server = NatsServer::start();
    let archives = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let tool = tool(archives.path());
    runtime().block_on(async {
        let url = server.url();
        let start = async |machines: usize| {
            let node = fleet_of(machines, &url, &tool);
            _ = node.store().await;
            let daemon = node.start();
            // Seldom: a large answer costs memory, and it is that which is measured.
            daemon.until(Duration::from_secs(2), |status| settled(status, machines)).await;
            (node, daemon)
        };
        let thousand = start(1_000).await;
        let hundred = start(100).await;
        let ten = start(10).await;
        tokio::time::sleep(SETTLING).await;
        let before = (hundred.1.processor_time(), thousand.1.processor_time());
        tokio::time::sleep(WINDOW).await;
        let after = (hundred.1.processor_time(), thousand.1.processor_time());
        let memory = |daemon: &Daemon| daemon.memory_kibibytes() as f64 * 1024.0 / 1e6;
        let share = |before: Duration, after: Duration| (after - before).as_secs_f64() / WINDOW.as_secs_f64() * 100.0;
        let (own, commands) = (share(before.0.0, after.0.0), share(before.0.1, after.0.1));
        let (thousand_own, thousand_commands) = (share(before.1.0, after.1.0), share(before.1.1, after.1.1));
        let kinds = "per machine: exec, 2 kv (poll), archive, at 1m, and a timer";
        let since = SETTLING.as_secs() + WINDOW.as_secs();
        vec![
            memory_row("memory: 10 machines, 50 watchers", 20.0, memory(&ten.1), since, kinds),
            memory_row("memory: 1,000 machines, 5,000 watch.", 96.0, memory(&thousand.1), since, kinds),
            Row {
                what: "processor: 100 machines, 500 watch.".to_owned(),
                budget: "<= 0.3 %".to_owned(),
                measured: format!("{own:.2} % of a core"),
                peer: NOT_MEASURED.to_owned(),
                verdict: Verdict::of(own <= 0.3),
                method: format!(
                    "utime + stime over {} s, NATS connected; {kinds}, so 400 checks; the commands themselves took \
                     {commands:.2} % more",
                    WINDOW.as_secs()
                ),
            },
            Row {
                what: "processor: 1,000 machines, 5,000 watch.".to_owned(),
                budget: "none".to_owned(),
                measured: format!("{thousand_own:.2} % of a core"),
                peer: NOT_MEASURED.to_owned(),
                verdict: Verdict::NoBudget,
                method: format!("as above, 4,000 checks; the commands themselves took {thousand_commands:.2} % more"),
            },
        ]
    })
}

fn memory_row(what: &str, budget: f64, measured: f64, seconds: u64, kinds: &str) -> Row {
    Row {
        what: what.to_owned(),
        budget: format!("<= {budget:.0} MB"),
        measured: format!("{measured:.1} MB"),
        peer: NOT_MEASURED.to_owned(),
        verdict: Verdict::of(measured <= budget),
        method: format!("VmRSS of machinesd, {seconds} s after its first checks, NATS connected; {kinds}"),
    }
}

fn fleet_of(machines: usize, url: &str, tool: &Built) -> Node {
    let node = Node::new(url, "");
    for index in 0..machines {
        let name = format!("machine{index}");
        let target = node.path("tools").join(&name);
        let directory = node.path("machines.d").join(&name);
        fleet::write_machine(&directory, &fleet::idle_definition(&name, tool, Path::new(&target)), &[]);
    }
    node
}

/// Whether every machine runs and every watcher has had its first check.
fn settled(status: &serde_json::Value, machines: usize) -> bool {
    let checked = |watcher: &serde_json::Value| watcher["checks"].as_u64().is_some_and(|checks| checks > 0);
    let reports = status["machines"].as_array().unwrap().iter().filter(|report| report["source"] == "local");
    let settled =
        reports.filter(|report| report["machine"]["watchers"].as_array().is_some_and(|w| w.iter().all(checked)));
    settled.count() == machines
}
