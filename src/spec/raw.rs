//! Entries as they are written, before validation. In: the payload, whose signature held. Out: one raw entry for each
//! element of the list. Only broken JSON stops the reading: what is wrong with an entry is collected in it, so that an
//! operator sees every problem at once.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// The keys of an entry, in the order of the reference.
pub(super) const FIELDS: [&str; 9] =
    ["name", "source", "username", "password", "verify", "verify_checksum", "checksum", "match", "governor"];

/// The text of each of [`FIELDS`] that is there, and what was wrong on the way.
#[derive(Debug, Default)]
pub(super) struct RawEntry<'a> {
    values: [Option<Cow<'a, str>>; FIELDS.len()],
    pub(super) problems: Vec<(Option<&'static str>, String)>,
    /// It has no keys at all, so that none of them is missing.
    pub(super) not_an_object: bool,
}

impl RawEntry<'_> {
    /// The value of a key; `None` also for an empty text, which the reference can't tell from an absent key.
    pub(super) fn get(&self, field: &str) -> Option<&str> {
        let values = FIELDS.iter().zip(&self.values);
        let (_, value) = values.into_iter().find(|(name, _)| **name == field)?;
        value.as_deref().filter(|value| !value.is_empty())
    }
}

pub(super) fn read(payload: &[u8]) -> Result<Vec<RawEntry<'_>>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_slice(payload);
    let entries = reader.deserialize_seq(ListVisitor)?;
    reader.end()?;
    Ok(entries)
}

struct ListVisitor;

impl<'de> Visitor<'de> for ListVisitor {
    type Value = Vec<RawEntry<'de>>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a list of machines")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = sequence.next_element()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

impl<'de> Deserialize<'de> for RawEntry<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor)
    }
}

struct EntryVisitor;

fn not_an_object(found: &str) -> RawEntry<'static> {
    let problem = format!("it is {found}; it must be an object with \"name\" and \"source\"");
    RawEntry { problems: vec![(None, problem)], not_an_object: true, ..RawEntry::default() }
}

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = RawEntry<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a machine")
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(not_an_object("null"))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(not_an_object("true or false"))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(not_an_object("a number"))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(not_an_object("a number"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(not_an_object("a number"))
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(not_an_object("a string"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(not_an_object("a list"))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entry = RawEntry::default();
        let mut seen = [false; FIELDS.len()];
        while let Some(Text(key)) = map.next_key()? {
            let mut slots = FIELDS.iter().zip(entry.values.iter_mut().zip(&mut seen));
            let Some((field, (value, seen))) = slots.find(|(field, _)| **field == key) else {
                map.next_value::<IgnoredAny>()?;
                let shown: String = key.chars().take(80).collect();
                // A misspelt "match" that is ignored installs the machine on every node.
                let help = crate::suggest::did_you_mean(&key, &FIELDS);
                entry.problems.push((None, format!("unknown key {shown:?}; {help}")));
                continue;
            };
            let given: Given<'de> = map.next_value()?;
            if std::mem::replace(seen, true) {
                entry.problems.push((Some(field), "the key appears twice".to_owned()));
                continue;
            }
            match given {
                Given::Text(text) => *value = Some(text),
                Given::Null => {}
                Given::Other(found) => {
                    entry.problems.push((Some(field), format!("it is {found}; it must be a string")));
                }
            }
        }
        Ok(entry)
    }
}

/// A text borrowed from the payload where it has no escapes.
struct Text<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for Text<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.deserialize_str(GivenVisitor)? {
            Given::Text(text) => Ok(Self(text)),
            Given::Null | Given::Other(_) => Err(serde::de::Error::custom("a key must be a string")),
        }
    }
}

/// What was written for a key.
enum Given<'a> {
    Text(Cow<'a, str>),
    Null,
    Other(&'static str),
}

impl<'de> Deserialize<'de> for Given<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(GivenVisitor)
    }
}

struct GivenVisitor;

impl<'de> Visitor<'de> for GivenVisitor {
    type Value = Given<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a string")
    }
    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Given::Text(Cow::Borrowed(text)))
    }
    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Given::Text(Cow::Owned(text.to_owned())))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Given::Null)
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Given::Other("true or false"))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Given::Other("a number"))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Given::Other("a number"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Given::Other("a number"))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Self::Value, A::Error> {
        while sequence.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Given::Other("a list"))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
        Ok(Given::Other("an object"))
    }
}
