//! Facts: those that every node has, and those of the facts files. In: the kernel, `/etc/os-release`, `/proc` and the
//! files. Out: one JSON object.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::NodeError;
use crate::names::Identity;

const FACTS_LIMIT_BYTES: u64 = 4 * 1024 * 1024;
const SYSTEM_FILE_LIMIT_BYTES: u64 = 256 * 1024;

/// The facts that every node has. What the system doesn't tell is left out, so that it can be told from an empty text.
pub(super) fn built_in(identity: &Identity) -> Map<String, Value> {
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

/// # Errors
/// When the file can't be read, is not JSON, or is not an object.
pub(super) fn read(path: &Path) -> Result<Map<String, Value>, NodeError> {
    let content = crate::fs::read(path, FACTS_LIMIT_BYTES).map_err(NodeError::FactsFile)?;
    let found = match serde_json::from_slice(&content) {
        Ok(Value::Object(facts)) => return Ok(facts),
        Ok(Value::Array(_)) => "an array",
        Ok(Value::String(_)) => "a string",
        Ok(Value::Number(_)) => "a number",
        Ok(Value::Bool(_) | Value::Null) => "a bare literal",
        Err(error) => {
            let (line, column) = (error.line(), error.column());
            let message = error.to_string();
            // The library appends the place, which the message has already.
            let reason = message.split(" at line ").next().unwrap_or(&message).to_owned();
            return Err(NodeError::FactsSyntax { path: path.to_owned(), line, column, reason });
        }
    };
    Err(NodeError::FactsNotAnObject { path: path.to_owned(), found })
}

/// Merges `over` into `base`; the parser's depth limit (128) bounds the recursion.
pub(super) fn merge(base: &mut Map<String, Value>, over: Map<String, Value>) {
    for (key, value) in over {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (_, value) => {
                base.insert(key, value);
            }
        }
    }
}
