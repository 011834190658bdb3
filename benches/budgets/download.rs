//! Fetching, verifying, unpacking and flushing a large archive, against the tools that a person would use.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use machines::archive::Built;
use machines::spec::SecretKey;

use crate::fleet::{self, Noise};
use crate::node::{BUCKET, KEY, Node};
use crate::table::{Row, Verdict};
use crate::{median, runtime, web};

const ROUNDS: usize = 5;
const BUDGET: f64 = 0.8;
const NAME: &str = "large";

pub fn measure() -> Vec<Row> {
    let archives = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let built = large_archive(archives.path());
    let megabytes = std::fs::metadata(&built.path).unwrap().len() as f64 / 1e6;
    let expanded = built.files.iter().map(|file| file.bytes).sum::<u64>() as f64 / 1e6;
    let url = format!("{}/{NAME}-1.0.0.tgz", web::serve(archives.path()));
    let (mut ours, mut peers, mut flushed) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        ours.push(machinesd(&built, &url));
        let (unflushed, and_flushed) = tools(&url);
        peers.push(unflushed);
        flushed.push(and_flushed);
    }
    let seconds = |times: &[Duration]| median(times).as_secs_f64();
    let row = |what: &str, budget: &str, peers: &[Duration], verdict: Verdict, method: String| Row {
        what: what.to_owned(),
        budget: budget.to_owned(),
        measured: format!("{:.2} s = {:.2} x", seconds(&ours), seconds(&ours) / seconds(peers)),
        peer: format!("{:.2} s", seconds(peers)),
        verdict,
        method,
    };
    let met = Verdict::of(seconds(&ours) <= BUDGET * seconds(&peers));
    let method = format!(
        "{megabytes:.0} MB, {expanded:.0} MB unpacked into {} files, two thirds noise, one third text; medians of \
         {ROUNDS} turns; ours: `machinesd run --once`, flushed; peer: curl | tee >(sha256sum), tar xzf, sha256sum -c, \
         not flushed",
        built.files.len()
    );
    vec![
        row("200 MB: fetch, verify, unpack, fsync", "<= 0.8 x", &peers, met, method),
        row("  the same, peer flushed too", "", &flushed, Verdict::NoBudget, "the peer ends with `sync -f`".to_owned()),
    ]
}

fn large_archive(output: &Path) -> Built {
    let sources = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut noise = Noise::new(7);
    let mut files = Vec::new();
    // A few large files and many small ones, as in a packed runtime.
    let sizes = std::iter::repeat_n(8_000_000, 15).chain(std::iter::repeat_n(250_000, 220)).chain([1_000; 300]);
    for (index, size) in sizes.enumerate() {
        let name = format!("lib/part{}/file{index}.dat", index % 20);
        files.push((name, noise.bytes(size)));
    }
    for index in 0..60 {
        files.push((format!("share/text{index}.log"), noise.text(1_400_000)));
    }
    let files: Vec<(&str, Vec<u8>)> = files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    fleet::write_machine(sources.path(), &fleet::small_definition(NAME), &files);
    fleet::build_archive(sources.path(), NAME, output)
}

fn machinesd(built: &Built, url: &str) -> Duration {
    let key = SecretKey::generate().unwrap();
    let node = Node::new("local", &fleet::trust(&key));
    runtime().block_on(async {
        let store = node.store().await;
        let envelope = fleet::envelope(&key, &[fleet::entry(built, url)]);
        store.bucket(BUCKET).unwrap().put(KEY, envelope).await.unwrap();
    });
    // What others have written must not be flushed on our time.
    rustix::fs::sync();
    node.once()
}

/// The time until all is verified, and the time until it is also on the disk.
fn tools(url: &str) -> (Duration, Duration) {
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = format!(
        "set -euo pipefail; curl -sf {url} | tee >(sha256sum > sum) > archive.tgz; tar xzf archive.tgz; cd {NAME}; \
         sha256sum --quiet -c SHA256SUMS"
    );
    rustix::fs::sync();
    let run = |script: &str| {
        let status = Command::new("bash").args(["-c", script]).current_dir(directory.path()).status().unwrap();
        assert!(status.success(), "{script}: {status}");
    };
    let started = Instant::now();
    run(&script);
    let unflushed = started.elapsed();
    run("sync -f .");
    (unflushed, started.elapsed())
}
