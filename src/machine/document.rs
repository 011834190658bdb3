//! YAML text → a JSON value with the place of every node in the text, so that every later judgement of a value can
//! point at its line and column. Duplicate keys and anything over the budget are refused here.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use serde_saphyr::Spanned;

use crate::suggest::nearest;

use super::problem::{Place, Problem};
use super::rule::{INVALID_YAML, UNKNOWN_KEY};

/// A definition larger than this is refused, in bytes.
pub const MAXIMUM_BYTES: u64 = 1024 * 1024;

/// Objects and lists in each other go this deep. Each level takes stack, of which the daemon's threads have 2 MiB.
const MAXIMUM_DEPTH: usize = 24;

/// A parsed document.
#[derive(Debug, Clone, Default)]
pub struct Document {
    pub value: Value,
    /// By JSON pointer (`/watchers/0/name`). A key's own place is under its pointer with `#` before the last part.
    places: BTreeMap<String, Place>,
}

impl Document {
    /// Parses the text of one YAML document.
    ///
    /// # Errors
    /// The first syntax fault, with its place.
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let options = serde_saphyr::options! { budget: serde_saphyr::budget! { max_depth: MAXIMUM_DEPTH } };
        let tree: Spanned<Tree> = serde_saphyr::from_str_with_options(text, options).map_err(|error| {
            let place = error.location().map(|location| Place {
                line: usize::try_from(location.line()).unwrap_or(1),
                column: usize::try_from(location.column()).unwrap_or(1),
            });
            Problem::new(place, first_line(&error.without_snippet().to_string())).rule(INVALID_YAML)
        })?;
        let mut places = BTreeMap::new();
        let value = flatten(tree, &mut String::new(), &mut places);
        Ok(Self { value, places })
    }

    /// Where the value at this pointer stands, or else its nearest parent.
    pub fn place(&self, pointer: &str) -> Option<Place> {
        let mut pointer = pointer;
        loop {
            if let Some(place) = self.places.get(pointer) {
                return Some(*place);
            }
            pointer = pointer.rsplit_once('/')?.0;
        }
    }

    /// Where the key of the entry at this pointer stands.
    pub fn key_place(&self, pointer: &str) -> Option<Place> {
        let (parent, key) = pointer.rsplit_once('/')?;
        self.places.get(&format!("{parent}/#{key}")).copied().or_else(|| self.place(pointer))
    }

    /// The part below a pointer, as a document of its own with the places kept.
    pub fn part(&self, pointer: &str) -> Self {
        let value = self.value.pointer(pointer).cloned().unwrap_or_default();
        // All that is below stands together: a part costs as much as it holds, not as the whole does.
        let below = format!("{pointer}/");
        let inside = self.places.range(below.clone()..).take_while(|(key, _)| key.starts_with(&below));
        let relative = |key: &str| key.strip_prefix(pointer).unwrap_or_default().to_owned();
        let mut places: BTreeMap<String, Place> = inside.map(|(key, place)| (relative(key), *place)).collect();
        if let Some(place) = self.places.get(pointer) {
            places.insert(String::new(), *place);
        }
        Self { value, places }
    }

    /// The same, with an empty object in place of nothing.
    #[must_use]
    pub fn or_empty_object(mut self) -> Self {
        if self.value.is_null() {
            self.value = Value::Object(Map::new());
        }
        self
    }

    /// Reads the value into a type; a fault is placed where it is in the text.
    ///
    /// # Errors
    /// The first value that does not fit the type.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        serde_path_to_error::deserialize(&self.value).map_err(|error| {
            let pointer = pointer(error.path());
            let message = error.inner().to_string();
            match unknown_field(&message) {
                Some((field, known)) => {
                    // The path stops at the object; the field's own name leads to the key.
                    let key = match pointer.strip_suffix(&format!("/{field}")) {
                        Some(_) => pointer.clone(),
                        None => format!("{pointer}/{field}"),
                    };
                    let problem =
                        Problem::new(self.key_place(&key), format!("unknown key {field:?}")).rule(UNKNOWN_KEY);
                    match nearest(field, known.iter().copied()) {
                        Some(meant) => problem.help(format!("did you mean {meant:?}?")),
                        None if known.is_empty() => problem.help("this takes no properties"),
                        None => problem.help(format!("known are: {}", known.join(", "))),
                    }
                }
                None => {
                    let field = pointer.rsplit('/').next().unwrap_or_default();
                    let message = if field.is_empty() { message } else { format!("{field}: {message}") };
                    Problem::new(self.place(&pointer), message)
                }
            }
        })
    }
}

fn pointer(path: &serde_path_to_error::Path) -> String {
    use serde_path_to_error::Segment;
    let parts = path.iter().map(|segment| match segment {
        Segment::Seq { index } => format!("/{index}"),
        Segment::Map { key } => format!("/{key}"),
        Segment::Enum { variant } => format!("/{variant}"),
        Segment::Unknown => String::new(),
    });
    parts.collect()
}

/// Takes serde's sentence for an unknown field apart: the field, and the names it expected.
fn unknown_field(message: &str) -> Option<(&str, Vec<&str>)> {
    let rest = message.strip_prefix("unknown field `")?;
    let (field, rest) = rest.split_once('`')?;
    Some((field, rest.split('`').skip(1).step_by(2).collect()))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

/// A YAML node, with the place of each node in it.
enum Tree {
    Scalar(Value),
    Sequence(Vec<Spanned<Tree>>),
    Mapping(Vec<(Spanned<String>, Spanned<Tree>)>),
}

/// Deep nesting is refused by the YAML budget long before this recursion matters.
fn flatten(tree: Spanned<Tree>, pointer: &mut String, places: &mut BTreeMap<String, Place>) -> Value {
    let place = |location: serde_saphyr::Location| Place {
        line: usize::try_from(location.line()).unwrap_or(1),
        column: usize::try_from(location.column()).unwrap_or(1),
    };
    places.insert(pointer.clone(), place(tree.referenced));
    let length = pointer.len();
    match tree.value {
        Tree::Scalar(value) => value,
        Tree::Sequence(items) => {
            let mut values = Vec::with_capacity(items.len());
            for (index, item) in items.into_iter().enumerate() {
                pointer.push_str(&format!("/{index}"));
                values.push(flatten(item, pointer, places));
                pointer.truncate(length);
            }
            Value::Array(values)
        }
        Tree::Mapping(entries) => {
            let mut map = Map::new();
            for (key, item) in entries {
                pointer.push_str(&format!("/#{}", key.value));
                places.insert(pointer.clone(), place(key.referenced));
                pointer.truncate(length);
                pointer.push_str(&format!("/{}", key.value));
                map.insert(key.value, flatten(item, pointer, places));
                pointer.truncate(length);
            }
            Value::Object(map)
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Tree;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a YAML value")
    }
    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }
    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Tree, E> {
        let number = Number::from_f64(value).ok_or_else(|| E::custom("a number must be finite"))?;
        Ok(Tree::Scalar(Value::Number(number)))
    }
    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }
    fn visit_string<E>(self, value: String) -> Result<Tree, E> {
        Ok(Tree::Scalar(value.into()))
    }
    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }
    fn visit_none<E>(self) -> Result<Tree, E> {
        Ok(Tree::Scalar(Value::Null))
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        Tree::deserialize(deserializer)
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element()? {
            items.push(item);
        }
        Ok(Tree::Sequence(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = access.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Mapping(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Exec {
        #[expect(dead_code, reason = "only its presence is tested")]
        command: String,
    }

    #[test]
    fn every_node_knows_its_place() {
        let document = Document::parse("a: 1\nb:\n  - x: true\n    y: \"z\"\n  - 1.5\nc: ~\n").unwrap();
        assert_eq!(document.value, serde_json::json!({"a": 1, "b": [{"x": true, "y": "z"}, 1.5], "c": null}));
        assert_eq!(document.place("/b/0/y"), Some(Place { line: 4, column: 8 }));
        assert_eq!(document.key_place("/b/0/y"), Some(Place { line: 4, column: 5 }));
        assert_eq!(document.place("/b/0/missing"), document.place("/b/0"));
        assert_eq!(document.part("/b/0").place("/y"), Some(Place { line: 4, column: 8 }));
    }

    #[test]
    fn typed_reading_points_at_the_fault() {
        let document = Document::parse("p:\n  comand: ls\n").unwrap();
        let problem = document.part("/p").typed::<Exec>().unwrap_err();
        assert_eq!(problem.message, "unknown key \"comand\"");
        assert_eq!(problem.help.as_deref(), Some("did you mean \"command\"?"));
        assert_eq!(problem.place, Some(Place { line: 2, column: 3 }));
        let document = Document::parse("p:\n  command: 5\n").unwrap();
        let problem = document.part("/p").typed::<Exec>().unwrap_err();
        assert_eq!(problem.message, "command: invalid type: integer `5`, expected a string");
        assert_eq!(problem.place, Some(Place { line: 2, column: 12 }));
    }

    #[test]
    fn refuses_duplicate_keys_and_broken_yaml_with_the_place() {
        let problem = Document::parse("a: 1\na: 2\n").unwrap_err();
        assert!(problem.message.contains("duplicate"), "{problem:?}");
        assert_eq!(problem.place.unwrap().line, 2);
        assert!(Document::parse("a: [1\nb: 2").unwrap_err().place.is_some());
        assert!(Document::parse("a: 1\n---\nb: 2\n").is_err(), "one document only");
    }

    #[test]
    fn refuses_a_billion_laughs_and_deep_nesting() {
        let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..10 {
            let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
            text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
        }
        assert!(Document::parse(&text).is_err());
        assert!(Document::parse(&"[".repeat(100_000)).is_err());
        assert!(Document::parse(&format!("{}{}", "[".repeat(3_000), "]".repeat(3_000))).is_err());
        assert!(Document::parse(&format!("{}{}", "{a: ".repeat(3_000), "}".repeat(3_000))).is_err());
        assert!(Document::parse(&format!("{}b{}", "{a: ".repeat(20), "}".repeat(20))).is_ok());
    }
}
