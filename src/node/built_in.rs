//! The facts that every node has. In: the kernel, `/etc/os-release` and `/proc`. Out: one JSON object.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::names::Identity;

const SYSTEM_FILE_LIMIT_BYTES: u64 = 256 * 1024;

/// The facts that every node has. What the system doesn't tell is left out, so that it can be told from an empty text.
pub(super) fn facts(identity: &Identity) -> Map<String, Value> {
    let uname = rustix::system::uname();
    let text = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let mut facts = Map::new();
    facts.insert("identity".into(), identity.as_str().into());
    facts.insert("hostname".into(), text(uname.nodename()).into());
    facts.insert("os".into(), os(&system_file("/etc/os-release")));
    facts.insert("kernel".into(), json!({"name": text(uname.sysname()), "release": text(uname.release())}));
    facts.insert("arch".into(), text(uname.machine()).into());
    if let Ok(count) = std::thread::available_parallelism() {
        facts.insert("cpus".into(), count.get().into());
    }
    if let Some(total_bytes) = memory_bytes(&system_file("/proc/meminfo")) {
        facts.insert("memory".into(), json!({"total_bytes": total_bytes}));
    }
    if let Ok(addresses) = super::addresses::by_interface() {
        facts.insert("addresses".into(), json!(addresses));
    }
    facts
}

fn system_file(path: &str) -> String {
    crate::fs::read_text(Path::new(path), SYSTEM_FILE_LIMIT_BYTES).unwrap_or_default()
}

/// The fields of `os-release(5)` that machines ask for.
pub(super) fn os(os_release: &str) -> Value {
    let wanted = [
        ("ID", "id"),
        ("ID_LIKE", "like"),
        ("NAME", "name"),
        ("VERSION_ID", "version"),
        ("VERSION_CODENAME", "codename"),
        ("PRETTY_NAME", "description"),
    ];
    let mut os = Map::new();
    for line in os_release.lines() {
        let Some((key, value)) = line.trim().split_once('=') else {
            continue;
        };
        let Some((_, name)) = wanted.iter().find(|(wanted, _)| *wanted == key) else {
            continue;
        };
        // The values are shell words, and a value that isn't is kept as it stands.
        let words = shell_words::split(value).unwrap_or_else(|_| vec![value.to_owned()]);
        os.insert((*name).to_owned(), words.join(" ").into());
    }
    Value::Object(os)
}

pub(super) fn memory_bytes(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}
