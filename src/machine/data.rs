//! The data of a machine: JSON values by name, shared by its watchers, kept in `machine_data.json` across restarts and
//! upgrades, and the bytes that values from outside came as in `machine_data_raw.json` beside it, so that a signature over
//! them is verified over exactly them, also after a restart. A snapshot is cheap, so that checks read without a lock.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::fs::FileError;

/// The file in the machine's data directory.
pub const FILE_NAME: &str = "machine_data.json";

/// The file beside it with the bytes of items that came from outside, by name, as base64. The first file stays as the
/// reference has it; what is here counts only as long as it still means the value there.
const RAW_FILE_NAME: &str = "machine_data_raw.json";

/// The files that a machine's data is read from.
pub const FILE_NAMES: [&str; 2] = [FILE_NAME, RAW_FILE_NAME];

/// All data of one machine together may be this large as JSON, in bytes.
pub const MAXIMUM_BYTES: usize = 8 * 1024 * 1024;

/// Text from outside that nests deeper than this stays text.
const MAXIMUM_DEPTH: usize = 64;
/// Text from outside with more objects, lists and commas than this stays text.
const MAXIMUM_PARTS: usize = 50_000;

/// One value, and the exact bytes it came as, because signatures cover bytes, not values.
#[derive(Debug, Clone, PartialEq)]
pub struct Item {
    pub value: Value,
    raw: Option<Bytes>,
}

/// Bytes from outside that are no text. They are never made one: what reads it would read something else than was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is not UTF-8 text: byte 0x{byte:02x} at offset {offset}")]
pub struct NotText {
    /// From 0.
    pub offset: usize,
    pub byte: u8,
}

impl Item {
    /// A value that never was a text.
    pub fn new(value: Value) -> Self {
        Self { value, raw: None }
    }

    /// Bytes from outside, kept exactly. Text that looks like a JSON object or array and is one becomes that, every other
    /// stays a text.
    ///
    /// # Errors
    /// When they are not UTF-8.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, NotText> {
        let text = std::str::from_utf8(&bytes).map_err(|error| {
            let offset = error.valid_up_to();
            NotText { offset, byte: bytes.get(offset).copied().unwrap_or_default() }
        })?;
        let looks_like_json = matches!(text.trim_start().chars().next(), Some('{' | '['));
        let parsed = (looks_like_json && is_modest(text)).then(|| serde_json::from_str(text).ok()).flatten();
        Ok(Self { value: parsed.unwrap_or_else(|| Value::String(text.to_owned())), raw: Some(bytes) })
    }

    /// The exact bytes, of what came from outside.
    pub fn raw(&self) -> Option<&Bytes> {
        self.raw.as_ref()
    }

    /// The exact text that was stored, or else the value as JSON (a text as it is).
    pub fn text(&self) -> String {
        match (&self.raw, &self.value) {
            (Some(raw), _) => String::from_utf8_lossy(raw).into_owned(),
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
                let (mut raw, warning) = load_raw(directory);
                let item = |(name, value): (String, Value)| {
                    let raw = raw.remove(&name).and_then(|raw| Item::from_bytes(raw).ok());
                    // Somebody may have written another value since, or a crash came between the two files.
                    let item = raw.filter(|raw| raw.value == value).unwrap_or_else(|| Item::new(value));
                    (name, item)
                };
                (Self { items: Arc::new(map.into_iter().map(item).collect()) }, warning)
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

/// Without them the values are as usable as ever, but for what a signature must cover.
fn load_raw(directory: &Path) -> (BTreeMap<String, Bytes>, Option<String>) {
    let path = directory.join(RAW_FILE_NAME);
    if !path.exists() {
        return (BTreeMap::new(), None);
    }
    let read = crate::fs::read_plain(&path, 2 * MAXIMUM_BYTES as u64)
        .map_err(|error| format!("{error}: {}", error.source))
        .and_then(|content| {
            serde_json::from_slice::<BTreeMap<String, String>>(&content).map_err(|error| error.to_string())
        });
    match read {
        Ok(map) => {
            let decode = |(name, text)| Some((name, Bytes::from(STANDARD.decode(text).ok()?)));
            (map.into_iter().filter_map(decode).collect(), None)
        }
        Err(reason) => (BTreeMap::new(), Some(format!("could not read {}: {reason}", path.display()))),
    }
}

fn save_raw(directory: &Path, snapshot: &Snapshot) -> Result<(), FileError> {
    let path = directory.join(RAW_FILE_NAME);
    let encoded = |(name, item): (&String, &Item)| Some((name.clone(), Value::String(STANDARD.encode(item.raw()?))));
    let raw: Map<String, Value> = snapshot.iter().filter_map(encoded).collect();
    if raw.is_empty() {
        return crate::fs::remove_file(&path);
    }
    crate::fs::write(&path, Value::Object(raw).to_string().as_bytes(), 0o600)
}

/// What an item takes, in memory or in the file, whichever is more. Names count: a command may print ever new ones.
fn size(name: &str, item: &Item) -> usize {
    let json = serde_json::to_string(name).map_or(name.len(), |name| name.len()) + item.value.to_string().len();
    json.max(name.len() + item.raw.as_ref().map_or(0, Bytes::len))
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
    save_raw(directory, snapshot)?;
    crate::fs::write(&path(directory), to_json(snapshot).to_string().as_bytes(), 0o600)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn text_from_outside_is_parsed_when_it_is_json_and_kept_exactly() {
        let from_text = |text: &str| Item::from_bytes(Bytes::copy_from_slice(text.as_bytes())).unwrap();
        let item = from_text(" {\"a\": 1} ");
        assert_eq!(item.value, json!({"a": 1}));
        assert_eq!(item.text(), " {\"a\": 1} ");
        assert_eq!(from_text("{nope").value, json!("{nope"));
        assert_eq!(from_text("5").value, json!("5"));
        assert_eq!(from_text("[\"[[[\\\"[\"]").value, json!(["[[[\"["]));
    }

    #[test]
    fn text_that_would_make_a_monster_stays_text() {
        let deep = format!("{}{}", "[".repeat(65), "]".repeat(65));
        let wide = format!("[{}0]", "0,".repeat(MAXIMUM_PARTS));
        for text in [deep, wide] {
            assert_eq!(Item::from_bytes(text.clone().into()).unwrap().value, Value::String(text.clone()));
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

    fn kept(items: &[(&str, Item)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut data = Data::default();
        let set = |(name, item): &(&str, Item)| Change::Set((*name).to_owned(), item.clone());
        data.apply(items.iter().map(set).collect()).1.unwrap();
        save(directory.path(), &data.snapshot()).unwrap();
        directory
    }

    #[test]
    fn the_exact_bytes_survive_a_restart() {
        // Twice the same key, spaces, an escape: all that a value forgets.
        let published = Bytes::from_static(b" {\"a\": 1, \"a\" :2, \"b\": \"\\u0041\"}\n");
        let directory = kept(&[
            ("json", Item::from_bytes(published.clone()).unwrap()),
            ("text", Item::from_bytes(Bytes::from_static(b"5\r\n")).unwrap()),
            ("own", Item::new(json!({"a": 1}))),
        ]);
        let (data, warning) = Data::load(directory.path());
        assert_eq!(warning, None);
        let items = data.snapshot();
        assert_eq!(items["json"].raw(), Some(&published));
        assert_eq!(items["json"].value, json!({"a": 2, "b": "A"}));
        assert_eq!(items["text"].raw().unwrap().as_ref(), b"5\r\n");
        assert_eq!(items["own"].raw(), None, "what never came as bytes has none");
        // The first file is what it always was, for whoever reads it.
        let file: Value = serde_json::from_slice(&crate::fs::read(&path(directory.path()), 1_000).unwrap()).unwrap();
        assert_eq!(file, json!({"json": {"a": 2, "b": "A"}, "own": {"a": 1}, "text": "5\r\n"}));
    }

    #[test]
    fn bytes_that_do_not_mean_the_value_any_more_do_not_count() {
        let directory = kept(&[("a", Item::from_bytes(Bytes::from_static(b"[1]")).unwrap())]);
        // As an older version writes it, which knows one file.
        crate::fs::write(&path(directory.path()), b"{\"a\": [2]}", 0o600).unwrap();
        let item = Data::load(directory.path()).0.snapshot()["a"].clone();
        assert_eq!((item.value, item.raw), (json!([2]), None));
        crate::fs::write(&directory.path().join(RAW_FILE_NAME), b"{broken", 0o600).unwrap();
        let (data, warning) = Data::load(directory.path());
        assert_eq!(data.snapshot()["a"], Item::new(json!([2])));
        assert!(warning.unwrap().contains("machine_data_raw.json"));
    }

    #[test]
    fn what_no_longer_came_from_outside_leaves_no_bytes_behind() {
        let directory = kept(&[("a", Item::from_bytes(Bytes::from_static(b"[1]")).unwrap())]);
        assert!(directory.path().join(RAW_FILE_NAME).exists());
        let mut data = Data::load(directory.path()).0;
        data.apply(vec![Change::Delete("a".to_owned())]).1.unwrap();
        save(directory.path(), &data.snapshot()).unwrap();
        assert!(!directory.path().join(RAW_FILE_NAME).exists());
    }

    #[test]
    fn bytes_that_are_no_text_are_named_and_never_made_one() {
        let error = Item::from_bytes(Bytes::from_static(b"ab\xffc")).unwrap_err();
        assert_eq!(error.to_string(), "it is not UTF-8 text: byte 0xff at offset 2");
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
        let control = Item::from_bytes("\u{1}".repeat(MAXIMUM_BYTES / 4).into()).unwrap();
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
