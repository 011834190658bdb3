//! The data of a machine: JSON values by name, shared by its watchers, kept in `machine_data.json` across restarts and
//! upgrades. A snapshot is cheap, so that checks read without a lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::fs::FileError;

/// The file in the machine's data directory.
pub const FILE_NAME: &str = "machine_data.json";

/// All data of one machine together may be this large as JSON, in bytes.
pub const MAXIMUM_BYTES: usize = 8 * 1024 * 1024;

/// Text from outside that nests deeper than this stays text.
const MAXIMUM_DEPTH: usize = 64;
/// Text from outside with more objects, lists and commas than this stays text.
const MAXIMUM_PARTS: usize = 50_000;

/// One value. `raw` keeps the exact text it was parsed from, because signatures cover bytes, not values.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub value: Value,
    pub raw: Option<Arc<str>>,
}

impl Item {
    /// A value that never was a text.
    pub fn new(value: Value) -> Self {
        Self { value, raw: None }
    }

    /// A text from outside: what looks like a JSON object or array and is one becomes that, everything else stays a
    /// text. The exact text is kept either way.
    pub fn from_text(text: &str) -> Self {
        let looks_like_json = matches!(text.trim_start().chars().next(), Some('{' | '['));
        let parsed = (looks_like_json && is_modest(text)).then(|| serde_json::from_str(text).ok()).flatten();
        Self { value: parsed.unwrap_or_else(|| Value::String(text.to_owned())), raw: Some(text.into()) }
    }

    /// The exact text that was stored, or else the value as JSON (a text as it is).
    pub fn text(&self) -> String {
        match (&self.raw, &self.value) {
            (Some(raw), _) => raw.to_string(),
            (None, Value::String(text)) => text.clone(),
            (None, value) => value.to_string(),
        }
    }
}

/// Whether JSON text makes a value of a size and a depth that can be held and saved: a parsed value takes up to a hundred
/// times the memory of its text, and this text may come from anyone who can write to the store.
fn is_modest(text: &str) -> bool {
    let (mut depth, mut parts) = (0usize, 0usize);
    let (mut in_string, mut escaped) = (false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => (depth, parts) = (depth + 1, parts + 1),
            b'}' | b']' => depth = depth.saturating_sub(1),
            b',' => parts += 1,
            _ => {}
        }
        if depth > MAXIMUM_DEPTH || parts > MAXIMUM_PARTS {
            return false;
        }
    }
    true
}

/// A change that a check asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Set(String, Item),
    Delete(String),
}

/// A point-in-time view.
pub type Snapshot = Arc<BTreeMap<String, Item>>;

/// The data of one machine.
#[derive(Debug, Default)]
pub struct Data {
    items: Snapshot,
}

/// A change that is not made.
#[derive(Debug, thiserror::Error)]
#[error("data item {name:?} was not stored: all data of a machine may have {MAXIMUM_BYTES} bytes")]
pub struct TooLarge {
    name: String,
}

impl Data {
    /// Reads what an earlier run has kept. A corrupt file is moved aside, never overwritten in silence: the second
    /// value says what happened.
    pub fn load(directory: &Path) -> (Self, Option<String>) {
        let path = directory.join(FILE_NAME);
        if !path.exists() {
            return (Self::default(), None);
        }
        let parsed = crate::fs::read_plain(&path, 2 * MAXIMUM_BYTES as u64)
            .map_err(|error| format!("{error}: {}", error.source))
            .and_then(|content| {
                serde_json::from_slice::<Map<String, Value>>(&content).map_err(|error| error.to_string())
            });
        match parsed {
            Ok(map) => {
                let items = map.into_iter().map(|(name, value)| (name, Item::new(value))).collect();
                (Self { items: Arc::new(items) }, None)
            }
            Err(reason) => {
                let aside = directory.join(format!("{FILE_NAME}.corrupt"));
                let moved = match crate::fs::rename(&path, &aside) {
                    Ok(()) => format!("it is kept as {}", aside.display()),
                    Err(error) => error.to_string(),
                };
                (Self::default(), Some(format!("could not read {}: {reason}; {moved}", path.display())))
            }
        }
    }

    /// The data as it is now.
    pub fn snapshot(&self) -> Snapshot {
        Arc::clone(&self.items)
    }

    /// Makes the changes and returns the names of those that made a difference.
    ///
    /// # Errors
    /// The first change that would go over the limit; the changes before it are made.
    pub fn apply(&mut self, changes: Vec<Change>) -> (Vec<String>, Result<(), TooLarge>) {
        let mut changed = Vec::new();
        if changes.is_empty() {
            return (changed, Ok(()));
        }
        // Once, not for each change: a command may print a hundred thousand items.
        let mut total: usize = self.items.iter().map(|(name, item)| size(name, item)).sum();
        for change in changes {
            match change {
                Change::Set(name, item) if self.items.get(&name) == Some(&item) => drop((name, item)),
                Change::Set(name, item) => {
                    let before = self.items.get(&name).map_or(0, |before| size(&name, before));
                    let after = total.saturating_sub(before).saturating_add(size(&name, &item));
                    if after > MAXIMUM_BYTES {
                        return (changed, Err(TooLarge { name: name.chars().take(80).collect() }));
                    }
                    total = after;
                    Arc::make_mut(&mut self.items).insert(name.clone(), item);
                    changed.push(name);
                }
                Change::Delete(name) => {
                    if let Some(item) = self.items.get(&name) {
                        total = total.saturating_sub(size(&name, item));
                        Arc::make_mut(&mut self.items).remove(&name);
                        changed.push(name);
                    }
                }
            }
        }
        (changed, Ok(()))
    }
}

/// What an item takes, in memory or in the file, whichever is more. Names count: a command may print ever new ones.
fn size(name: &str, item: &Item) -> usize {
    let json = serde_json::to_string(name).map_or(name.len(), |name| name.len()) + item.value.to_string().len();
    json.max(name.len() + item.raw.as_ref().map_or(0, |raw| raw.len()))
}

/// The data as one JSON object.
pub fn to_json(snapshot: &Snapshot) -> Value {
    Value::Object(snapshot.iter().map(|(name, item)| (name.clone(), item.value.clone())).collect())
}

/// Where the data of a machine is kept.
pub fn path(directory: &Path) -> PathBuf {
    directory.join(FILE_NAME)
}

/// Writes a snapshot durably. Only its owner may read it: data often holds what should not be seen.
///
/// # Errors
/// When the file can't be written; the old one then stands.
pub fn save(directory: &Path, snapshot: &Snapshot) -> Result<(), FileError> {
    crate::fs::create_directory(directory, 0o755)?;
    crate::fs::write(&path(directory), to_json(snapshot).to_string().as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_from_outside_is_parsed_when_it_is_json_and_kept_exactly() {
        let item = Item::from_text(" {\"a\": 1} ");
        assert_eq!(item.value, json!({"a": 1}));
        assert_eq!(item.text(), " {\"a\": 1} ");
        assert_eq!(Item::from_text("{nope").value, json!("{nope"));
        assert_eq!(Item::from_text("5").value, json!("5"));
        assert_eq!(Item::from_text("[\"[[[\\\"[\"]").value, json!(["[[[\"["]));
    }

    #[test]
    fn text_that_would_make_a_monster_stays_text() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let wide = format!("[{}0]", "0,".repeat(MAXIMUM_PARTS));
        for text in [deep, wide] {
            assert_eq!(Item::from_text(&text).value, Value::String(text.clone()));
        }
    }

    #[test]
    fn only_differences_count_as_changes() {
        let mut data = Data::default();
        let set = |value: Value| Change::Set("a".to_owned(), Item::new(value));
        assert_eq!(data.apply(vec![set(json!(1))]).0, ["a"]);
        assert!(data.apply(vec![set(json!(1))]).0.is_empty());
        assert_eq!(data.apply(vec![Change::Delete("a".to_owned())]).0, ["a"]);
        assert!(data.apply(vec![Change::Delete("a".to_owned())]).0.is_empty());
    }

    #[test]
    fn survives_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut data = Data::default();
        data.apply(vec![Change::Set("a".to_owned(), Item::new(json!({"b": [1]})))]).1.unwrap();
        save(directory.path(), &data.snapshot()).unwrap();
        let (data, warning) = Data::load(directory.path());
        assert_eq!(warning, None);
        assert_eq!(to_json(&data.snapshot()), json!({"a": {"b": [1]}}));
    }

    #[test]
    fn a_corrupt_file_is_kept_aside_with_a_warning() {
        let directory = tempfile::tempdir().unwrap();
        crate::fs::write(&path(directory.path()), b"{broken", 0o600).unwrap();
        let (data, warning) = Data::load(directory.path());
        assert!(data.snapshot().is_empty());
        assert!(warning.unwrap().contains("it is kept as"));
        assert!(directory.path().join("machine_data.json.corrupt").exists());
    }

    #[test]
    fn a_pipe_in_the_place_of_the_file_does_not_hang() {
        let directory = tempfile::tempdir().unwrap();
        let path = path(directory.path());
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::RUSR).unwrap();
        let (data, warning) = Data::load(directory.path());
        assert!(data.snapshot().is_empty());
        assert!(warning.unwrap().contains("it is not a regular file"));
    }

    #[test]
    fn the_size_is_bounded() {
        let mut data = Data::default();
        let big = Item::new(Value::String("x".repeat(MAXIMUM_BYTES)));
        let error = data.apply(vec![Change::Set("big".to_owned(), big)]).1.unwrap_err();
        assert!(error.to_string().contains("\"big\" was not stored"), "{error}");
    }

    #[test]
    fn names_count_and_what_was_taken_can_be_read_again() {
        let mut data = Data::default();
        let name = |index: usize| format!("{index}{}", "x".repeat(1024 * 1024));
        for index in 0..7 {
            assert!(data.apply(vec![Change::Set(name(index), Item::new(Value::Null))]).1.is_ok());
        }
        let refused = data.apply(vec![Change::Set(name(7), Item::new(Value::Null))]).1.unwrap_err().to_string();
        assert!(refused.len() < 200, "{refused}");
        // Each of these takes six bytes in the file.
        let control = Item::from_text(&"\u{1}".repeat(MAXIMUM_BYTES / 4));
        assert!(Data::default().apply(vec![Change::Set("control".to_owned(), control)]).1.is_err());
    }

    #[test]
    fn a_command_that_prints_very_many_items_holds_up_nothing() {
        let many = |value: u64| {
            let set = |index| Change::Set(format!("item{index}"), Item::new(Value::from(value)));
            (0..100_000).map(set).collect::<Vec<_>>()
        };
        let mut data = Data::default();
        for value in [1, 2] {
            let (changed, stored) = data.apply(many(value));
            assert!(stored.is_ok() && changed.len() == 100_000);
        }
    }
}
