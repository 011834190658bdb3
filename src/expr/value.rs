//! Values of the expression language, and how messages and traces show them.

use std::fmt;

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
