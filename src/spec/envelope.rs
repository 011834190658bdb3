//! The envelope: `{"machines": "<base64>", "signature": "<hex>"}`, or the same with `plugins`. In: the exact bytes that were published. Out: the
//! decoded payload, still untrusted, and the signature. Nothing of the payload is interpreted here.

use std::collections::HashSet;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};

use super::Form;
use super::error::SpecificationError;
use super::keys::PublicKey;

/// The envelope with its fields decoded.
pub(super) struct Envelope {
    form: Form,
    /// The list, decoded; what the signature of the `machines` form covers.
    pub(super) payload: Vec<u8>,
    /// Its text in the envelope; what the signature of the `plugins` form covers.
    encoded: String,
    pub(super) signature: Option<[u8; 64]>,
}

impl Envelope {
    pub(super) fn read(bytes: &[u8], limit_bytes: usize, form: Form) -> Result<Self, SpecificationError> {
        if bytes.len() > limit_bytes {
            return Err(SpecificationError::TooLarge { bytes: bytes.len(), limit_bytes });
        }
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let mut fields = Fields { form, list: None, signature: None, other_form: false };
        let result = serde::Deserializer::deserialize_map(&mut reader, EnvelopeVisitor(&mut fields));
        result.and_then(|()| reader.end()).map_err(|error| SpecificationError::envelope(&error))?;
        let encoded = match (form, fields.list, fields.other_form) {
            // Its one signature could be meant for either list.
            (_, Some(_), true) => return Err(SpecificationError::BothForms),
            (_, Some(encoded), false) => encoded,
            (Form::Machines, None, true) => return Err(SpecificationError::PluginsForm),
            (Form::Plugins, None, true) => return Err(SpecificationError::MachinesForm),
            (Form::Machines, None, false) => return Err(SpecificationError::NoMachines),
            (Form::Plugins, None, false) => return Err(SpecificationError::NoPlugins),
        };
        let payload = STANDARD.decode(&encoded).map_err(|error| SpecificationError::base64(form, &error))?;
        // An empty signature is what the reference's own structure reads as none.
        let signature = match fields.signature.as_deref() {
            None | Some("") => None,
            Some(text) => Some(read_signature(text)?),
        };
        Ok(Self { form, payload, encoded, signature })
    }

    /// Which of the keys made the signature.
    pub(super) fn signed_by(&self, keys: &[PublicKey]) -> Result<PublicKey, SpecificationError> {
        let signature = self.signature.as_ref().ok_or(SpecificationError::Unsigned)?;
        let (covered, not_covered) = match self.form {
            Form::Machines => (self.payload.as_slice(), self.encoded.as_bytes()),
            Form::Plugins => (self.encoded.as_bytes(), self.payload.as_slice()),
        };
        if let Some(key) = keys.iter().find(|key| key.verifies(covered, signature)) {
            return Ok(*key);
        }
        if keys.iter().any(|key| key.verifies(not_covered, signature)) {
            return Err(match self.form {
                Form::Machines => SpecificationError::SignatureCoversText,
                Form::Plugins => SpecificationError::SignatureCoversBytes,
            });
        }
        let keys = keys.iter().map(PublicKey::to_hex).collect::<Vec<_>>().join(", ");
        Err(SpecificationError::SignatureInvalid { keys })
    }
}

fn read_signature(text: &str) -> Result<[u8; 64], SpecificationError> {
    if text.len() != 128 {
        let reason = format!("it has {} characters; an ed25519 signature has 128", text.chars().count());
        return Err(SpecificationError::SignatureEncoding { reason });
    }
    let mut bytes = [0u8; 64];
    hex::decode_to_slice(text, &mut bytes).map_err(|_| SpecificationError::SignatureEncoding {
        reason: "it has characters that are not hexadecimal digits".to_owned(),
    })?;
    Ok(bytes)
}

struct Fields {
    form: Form,
    list: Option<String>,
    signature: Option<String>,
    /// The field of the other form is there too.
    other_form: bool,
}

struct EnvelopeVisitor<'a>(&'a mut Fields);

impl<'de> Visitor<'de> for EnvelopeVisitor<'_> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "an object with \"{}\" and \"signature\"", self.0.form.field())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        let field = self.0.form.field();
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                list if list == field && !seen.contains(field) => self.0.list = map.next_value()?,
                "signature" if !seen.contains("signature") => self.0.signature = map.next_value()?,
                // The reference reads keys without regard to case, so that it would take this one for the real one.
                _ if is_misspelt(&key, field) => {
                    let message = format!("key {key:?} must be written {:?}", key.to_ascii_lowercase());
                    return Err(A::Error::custom(message));
                }
                _ => {
                    if !seen.contains(&key) {
                        map.next_value_seed(Strict)?;
                    }
                }
            }
            self.0.other_form |= key != field && ["machines", "plugins"].contains(&key.as_str());
            refuse_duplicate(&mut seen, key)?;
        }
        Ok(())
    }
}

fn is_misspelt(key: &str, field: &str) -> bool {
    [field, "signature"].iter().any(|known| key != *known && key.eq_ignore_ascii_case(known))
}

/// Two readers of an object with a key twice may take different ones.
pub(super) fn refuse_duplicate<E: serde::de::Error>(seen: &mut HashSet<String>, key: String) -> Result<(), E> {
    if seen.contains(&key) {
        let key: String = key.chars().take(80).collect();
        return Err(E::custom(format!("key {key:?} appears twice in one object")));
    }
    seen.insert(key);
    Ok(())
}

/// A value of an unknown key: ignored, but not allowed to hold duplicate keys. The parser's depth limit (128) bounds
/// the recursion.
struct Strict;

impl<'de> DeserializeSeed<'de> for Strict {
    type Value = ();
    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Strict {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a JSON value")
    }
    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }
    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }
    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }
    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }
    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while sequence.next_element_seed(Strict)?.is_some() {}
        Ok(())
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut seen = HashSet::new();
        while let Some(key) = map.next_key::<String>()? {
            refuse_duplicate(&mut seen, key)?;
            map.next_value_seed(Strict)?;
        }
        Ok(())
    }
}
