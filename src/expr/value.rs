//! Values of the expression language, and how messages and traces show them.

use std::fmt;

use serde_json::Value as Json;

use super::error::Problem;
use super::limits;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Nil,
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    Array(Vec<Value>),
    /// Keys are unique; the parser sees to it.
    Map(Vec<(String, Value)>),
}

impl Value {
    /// Equality of the language: an integer equals a float of the same value, maps have no order, and values of
    /// different types are unequal rather than an error.
    #[expect(clippy::cast_precision_loss, clippy::float_cmp, reason = "the language compares numbers as floats")]
    pub(super) fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Integer(left), Self::Float(right)) => *left as f64 == *right,
            (Self::Float(left), Self::Integer(right)) => *left == *right as f64,
            (Self::Array(left), Self::Array(right)) => {
                left.len() == right.len() && left.iter().zip(right).all(|(left, right)| left.equals(right))
            }
            (Self::Map(left), Self::Map(right)) => {
                left.len() == right.len()
                    && left.iter().all(|(key, left)| {
                        right.iter().any(|(other_key, right)| key == other_key && left.equals(right))
                    })
            }
            (left, right) => left == right,
        }
    }

    pub(super) fn member(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Map(entries) => entries.iter().find(|(name, _)| name == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The type and, where it is short, the value.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Nil => "nil".to_owned(),
            Self::Boolean(value) => value.to_string(),
            Self::Integer(_) | Self::Float(_) => format!("the number {self}"),
            Self::Text(_) => format!("the string {self}"),
            Self::Array(_) => "an array".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }
}

/// How much of facts and data an evaluation may still take in.
pub(super) struct Budget {
    bytes: usize,
}

impl Default for Budget {
    fn default() -> Self {
        Self { bytes: limits::VALUE_BYTES }
    }
}

impl Budget {
    /// The JSON value as a value of the language. The depth of JSON that anyone can hand in is bounded by its parser.
    pub(super) fn copy(&mut self, json: &Json) -> Result<Value, Problem> {
        let text = match json {
            Json::String(text) => text.len(),
            Json::Object(map) => map.keys().map(String::len).sum(),
            _ => 0,
        };
        let cost = text.saturating_add(size_of::<(String, Value)>());
        self.bytes = self.bytes.checked_sub(cost).ok_or(Problem::TooMuchData)?;
        Ok(match json {
            Json::Null => Value::Nil,
            Json::Bool(value) => Value::Boolean(*value),
            Json::Number(number) => match number.as_i64() {
                Some(integer) => Value::Integer(integer),
                None => Value::Float(number.as_f64().unwrap_or_default()),
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => Value::Array(items.iter().map(|item| self.copy(item)).collect::<Result<_, _>>()?),
            Json::Object(map) => {
                let entries = map.iter().map(|(key, value)| Ok((key.clone(), self.copy(value)?)));
                Value::Map(entries.collect::<Result<_, _>>()?)
            }
        })
    }
}

impl fmt::Display for Value {
    /// As written in an expression; long texts are cut, control characters escaped.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nil => formatter.write_str("nil"),
            Self::Boolean(value) => write!(formatter, "{value}"),
            Self::Integer(value) => write!(formatter, "{value}"),
            Self::Float(value) => write!(formatter, "{value:?}"),
            Self::Text(text) => {
                let short: String = text.chars().take(120).collect();
                write!(formatter, "{short:?}")
            }
            Self::Array(items) => {
                formatter.write_str("[")?;
                for (index, item) in items.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(formatter, "{separator}{item}")?;
                }
                formatter.write_str("]")
            }
            Self::Map(entries) => {
                formatter.write_str("{")?;
                for (index, (key, value)) in entries.iter().enumerate() {
                    let separator = if index == 0 { "" } else { ", " };
                    write!(formatter, "{separator}{key:?}: {value}")?;
                }
                formatter.write_str("}")
            }
        }
    }
}
