//! Types of properties that more than one kind may have: a user or group by name or number, and a size in bytes.

use std::borrow::Cow;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, Visitor};

use crate::process::Account;

/// A user or a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameOrNumber(Account);

impl NameOrNumber {
    pub fn account(self) -> Account {
        self.0
    }
}

impl<'de> Deserialize<'de> for NameOrNumber {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = NameOrNumber;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name or a number")
            }

            fn visit_u64<E: Error>(self, number: u64) -> Result<NameOrNumber, E> {
                // The largest means "unchanged" to the kernel.
                let number = u32::try_from(number).ok().filter(|number| *number < u32::MAX);
                let number = number.ok_or_else(|| E::custom("the number is too large"))?;
                Ok(NameOrNumber(Account::Number(number)))
            }

            fn visit_i64<E: Error>(self, number: i64) -> Result<NameOrNumber, E> {
                u64::try_from(number).map_err(|_| E::custom("the number is negative")).and_then(|n| self.visit_u64(n))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<NameOrNumber, E> {
                if let Ok(number) = text.parse() {
                    return self.visit_u64(number);
                }
                let is_good = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.@\\$".contains(&byte);
                if text.is_empty() || text.len() > 256 || !text.bytes().all(is_good) {
                    return Err(E::custom(format!("{text:?} is not a name of a user or group")));
                }
                Ok(NameOrNumber(Account::Name(text.to_owned())))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl schemars::JsonSchema for NameOrNumber {
    fn schema_name() -> Cow<'static, str> {
        "NameOrNumber".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": ["string", "integer"], "minimum": 0 })
    }
}

/// A number of bytes: `1048576`, `512KiB`, `64MiB` or `2GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(u64);

impl Size {
    pub fn bytes(self) -> u64 {
        self.0
    }

    fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at_checked(digits)?;
        let factor: u64 = match unit {
            "" | "B" => 1,
            "K" | "KiB" => 1 << 10,
            "M" | "MiB" => 1 << 20,
            "G" | "GiB" => 1 << 30,
            _ => return None,
        };
        number.parse::<u64>().ok()?.checked_mul(factor).map(Self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl Visitor<'_> for Reader {
            type Value = Size;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a size such as 64MiB")
            }

            fn visit_u64<E: Error>(self, bytes: u64) -> Result<Size, E> {
                Ok(Size(bytes))
            }

            fn visit_str<E: Error>(self, text: &str) -> Result<Size, E> {
                Size::parse(text).ok_or_else(|| E::custom(format!("{text:?} is not a size such as 64MiB or 1GiB")))
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl schemars::JsonSchema for Size {
    fn schema_name() -> Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": ["string", "integer"],
            "pattern": "^[0-9]+(B|K|KiB|M|MiB|G|GiB)?$",
            "minimum": 1,
            "description": "A number of bytes, or one with a unit such as 64MiB."
        })
    }
}
