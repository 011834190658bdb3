//! Whose specifications a node accepts. In: the settings and the key compiled into the program. Out: the trusted keys.

use serde::Serialize;

use super::keys::{KeyError, PublicKey};

/// Whose specifications a node accepts. That there is no key is never a permission: a setting that was forgotten, or a
/// variable that came up empty, must not let whoever can write to the store command the node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Trust {
    /// Nobody's: no key is configured. Nothing of any specification is taken.
    Nobody,
    /// Those signed by one of these keys. Never empty.
    Keys(Vec<PublicKey>),
    /// Anyone's, signed or not: the settings file says so in as many words. Warned about at each start.
    Anyone,
}

impl Trust {
    /// Trust in the keys of the settings; an empty list trusts nobody.
    ///
    /// # Errors
    /// When one of them is malformed, weak, or the example key. One bad key refuses all, since leaving it out could
    /// leave none.
    pub fn from_settings(public_keys: &[String]) -> Result<Self, KeyError> {
        let mut keys = Vec::new();
        for (index, text) in public_keys.iter().enumerate() {
            let key = trusted(text).map_err(|error| in_list(error, index, public_keys))?;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        Ok(if keys.is_empty() { Self::Nobody } else { Self::Keys(keys) })
    }

    /// As [`Self::from_settings`], but a key that was compiled in (`option_env!("MACHINES_PUBLIC_KEY")`) is the only
    /// one: the settings can neither add to it nor do without it.
    ///
    /// # Errors
    /// As there, and when the compiled-in key is bad or the settings name another one.
    pub fn with_compiled_in(compiled_in: Option<&str>, public_keys: &[String]) -> Result<Self, KeyError> {
        let Some(compiled_in) = compiled_in else {
            return Self::from_settings(public_keys);
        };
        // An empty variable in a build script must not quietly produce a program that trusts anyone.
        if compiled_in.trim().is_empty() {
            return Err(KeyError::CompiledInEmpty);
        }
        let key = trusted(compiled_in)?;
        for (index, text) in public_keys.iter().enumerate() {
            let configured = trusted(text).map_err(|error| in_list(error, index, public_keys))?;
            if configured != key {
                // It may be the seed of a private key.
                let configured = configured.to_hex().chars().take(8).collect();
                let compiled_in = key.to_hex();
                return Err(KeyError::CompiledInDiffers { compiled_in, configured });
            }
        }
        Ok(Self::Keys(vec![key]))
    }

    /// As `[trust] allow_unsigned = true` wants it: anyone's specifications are taken.
    ///
    /// # Errors
    /// Beside keys. One of the two settings is a mistake, and which one it is can't be known.
    pub fn allow_unsigned(self) -> Result<Self, KeyError> {
        match self {
            Self::Nobody | Self::Anyone => Ok(Self::Anyone),
            Self::Keys(_) => Err(KeyError::UnsignedBesideKeys),
        }
    }

    /// This trust of the node, or else that of a machine which names a key of its own.
    #[must_use]
    pub fn or<'a>(&'a self, own: &'a Self) -> &'a Self {
        match (self, own) {
            (Self::Nobody | Self::Anyone, Self::Keys(_)) => own,
            _ => self,
        }
    }
}

/// As the text itself is not repeated, its place is told where there are several.
fn in_list(error: KeyError, index: usize, list: &[String]) -> KeyError {
    if list.len() == 1 { error } else { KeyError::InList { number: index + 1, source: Box::new(error) } }
}

fn trusted(text: &str) -> Result<PublicKey, KeyError> {
    let key = PublicKey::from_hex(text)?;
    if key.is_example() { Err(KeyError::Example) } else { Ok(key) }
}
