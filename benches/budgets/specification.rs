//! The decision about a specification with 10,000 entries, in this process: the same library, without disk or network.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use base64::Engine as _;
use machines::digest::Sha256Digest;
use machines::names::Identity;
use machines::node::Node;
use machines::spec::{Limits, SecretKey, Trust, verify};
use machines::sync::plan::{Condition, Installed, Inventory, Matching, Policy, Wanted, plan};
use machines::sync::{Purge, Removals};
use serde_json::json;

use crate::median;
use crate::table::{NOT_MEASURED, Row, Verdict};

const ENTRIES: usize = 10_000;
const ROUNDS: usize = 11;
const BUDGET: Duration = Duration::from_millis(250);

pub fn measure() -> Vec<Row> {
    let key = SecretKey::generate().unwrap();
    let envelope = envelope(&key);
    let trust = Trust::Keys(vec![key.public_key()]);
    let node = Node::discover(Some(Identity::new("web17.dc1.example.net").unwrap()), &[]).unwrap();
    let inventory = inventory();
    let mut times = Vec::new();
    let mut kept = 0;
    for _ in 0..ROUNDS {
        let started = Instant::now();
        let limits = Limits { envelope_bytes: envelope.len(), machines: ENTRIES };
        let specification = verify(&envelope, &trust, &limits).unwrap();
        let verified = started.elapsed();
        let answer = |result| match result {
            Ok(true) => Matching::Matches,
            Ok(false) => Matching::DoesNotMatch,
            Err(error) => panic!("{error}"),
        };
        let wanted: Vec<Wanted> = specification
            .machines()
            .iter()
            .map(|machine| Wanted {
                name: machine.name.clone(),
                checksum: machine.checksum,
                verify_checksum: machine.verify_checksum,
                matching: answer(machine.matcher.evaluate(&node).result),
            })
            .collect();
        let policy = Policy { purge: Purge::Unknown, removals: Removals::Allowed, hold_removals_over_percent: 50 };
        let plan = plan(&wanted, &inventory, policy);
        times.push((started.elapsed(), verified));
        kept = wanted.iter().filter(|entry| entry.matching == Matching::Matches).count();
        assert_eq!(plan.steps.len(), ENTRIES);
    }
    let (time, verified) = median(&times);
    vec![Row {
        what: "10,000 entries: verify, match, plan".to_owned(),
        budget: "<= 250 ms".to_owned(),
        measured: format!("{} ms (verify {})", time.as_millis(), verified.as_millis()),
        peer: NOT_MEASURED.to_owned(),
        verdict: Verdict::of(time <= BUDGET),
        method: format!(
            "{:.1} MB envelope, in process, one thread, median of {ROUNDS}; 1,000 entries without an expression, \
             3,000 share 51, 6,000 have one of their own, each with a regular expression; {kept} match",
            envelope.len() as f64 / 1e6
        ),
    }]
}

/// What an operator of several sites writes: some for all, some for roles, most for one host or one rack.
fn expression(index: usize) -> Option<String> {
    Some(match (index % 10, index / 10 % 17) {
        (0, _) => return None,
        (1, site) => format!("identity('^web[0-9]+\\\\.dc{site}\\\\.example\\\\.net$')"),
        (2, role) => format!("has_file('/etc/role{role}') || identity('^(db|cache){role}-[0-9]+\\\\.')"),
        (3, role) => format!("has_command('tool{role}') && !identity('canary')"),
        (4, _) => format!("identity('^web{index}\\\\.dc1\\\\.example\\\\.net$')"),
        (5, _) => format!("identity('^(db|cache)[0-9]+\\\\.rack{index}\\\\.') && has_directory('/etc')"),
        (6, _) => format!("identity('^web[0-9]+\\\\.dc1\\\\.') && has_file('/etc/marker{index}')"),
        (7, _) => format!("identity('(?i)^node{index}') || identity('^spare-{index}-[a-f0-9]{{8}}$')"),
        (8, _) => format!("identity('\\\\.dc{index}\\\\.example\\\\.net$') && !identity('^canary')"),
        _ => format!("identity('^[a-z]+{index}\\\\.')"),
    })
}

fn name(index: usize) -> String {
    format!("agent{index}")
}

fn envelope(key: &SecretKey) -> Vec<u8> {
    let entries: Vec<_> = (0..ENTRIES)
        .map(|index| {
            let mut entry = json!({
                "name": name(index),
                "source": format!("https://artifacts.example.net/agents/{}-1.0.0.tgz", name(index)),
                "checksum": Sha256Digest::of(name(index).as_bytes()).to_string(),
                "verify_checksum": Sha256Digest::of(format!("list {index}").as_bytes()).to_string(),
            });
            if let Some(expression) = expression(index) {
                entry["match"] = expression.into();
            }
            entry
        })
        .collect();
    let payload = serde_json::to_vec(&entries).unwrap();
    let encoded = base64::engine::general_purpose::STANDARD.encode(&payload);
    format!(r#"{{"machines":"{encoded}","signature":"{}"}}"#, hex::encode(key.sign(&payload))).into_bytes()
}

/// A node that has 200 of the agents, half of them in another version.
fn inventory() -> Inventory {
    let installed = (0..200).map(|index| {
        let checksum = if index % 2 == 0 { name(index) } else { "another".to_owned() };
        let installed = Installed {
            checksum: Sha256Digest::of(checksum.as_bytes()),
            verify_checksum: Some(Sha256Digest::of(format!("list {index}").as_bytes())),
            condition: Condition::Sound,
        };
        (machines::names::MachineName::new(&name(index)).unwrap(), installed)
    });
    Inventory { machines: installed.collect(), foreign: BTreeMap::new() }
}
