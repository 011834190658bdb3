//! Makes envelopes. In: the operator's list of machines and, to sign it, a private key. Out: the envelope on one line,
//! exactly as the reference's `mms pack` prints it, and what the operator should know about it.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::keys::SecretKey;
use super::managed_machine::{ManagedMachine, Source, validate};
use super::{Form, Limits, SpecificationError};
use crate::names::MachineName;

/// An envelope that every node with default limits can take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packed {
    /// One line, without a line end.
    pub envelope: String,
    pub warnings: Vec<PackWarning>,
}

/// What is allowed, but worth a second look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PackWarning {
    /// No key was given.
    Unsigned,
    /// The key is the one of the documentation.
    ExampleKey,
    /// The list has no machines.
    Empty,
    /// The password can be read by everyone who can read the bucket.
    ReadablePassword { name: MachineName },
    /// The archive travels in clear text.
    PlainHttp { name: MachineName },
    /// The password travels in clear text.
    PasswordOverPlainHttp { name: MachineName },
}

impl fmt::Display for PackWarning {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsigned => write!(
                formatter,
                "the specification is not signed: nodes take it only where allow_unsigned = true stands in their \
                 settings, and there from anybody who can write to the bucket; sign it with --key-file"
            ),
            Self::ExampleKey => write!(
                formatter,
                "the key is that of the example in the documentation, which is known to the world: machinesd refuses \
                 it; make a pair of your own with \"mms keys\""
            ),
            Self::Empty => write!(
                formatter,
                "the list is empty: nodes hold it instead of removing every machine, until it is allowed there"
            ),
            Self::ReadablePassword { name } => write!(
                formatter,
                "the password of \"{name}\" can be read by everyone who can read the bucket; use one that can do no \
                 more than download this archive"
            ),
            Self::PlainHttp { name } => {
                write!(
                    formatter,
                    "the source of \"{name}\" is http://: its checksum protects it, but anyone can see it"
                )
            }
            Self::PasswordOverPlainHttp { name } => {
                write!(
                    formatter,
                    "the source of \"{name}\" is http://: its password travels in clear text; use https://"
                )
            }
        }
    }
}

/// Validates the list as a node does and packs exactly its bytes, signed when there is a key.
///
/// # Errors
/// All problems of the list, with line and column, or an envelope over the default size limit.
pub fn pack(payload: &[u8], key: Option<&SecretKey>) -> Result<Packed, SpecificationError> {
    pack_form(Form::Machines, payload, key)
}

/// As [`pack`], for either form.
///
/// # Errors
/// As there.
pub fn pack_form(form: Form, payload: &[u8], key: Option<&SecretKey>) -> Result<Packed, SpecificationError> {
    let limits = Limits::default();
    let machines = validate(payload, limits.machines, form.scope())?;
    let encoded = STANDARD.encode(payload);
    let field = form.field();
    let signature = key.map(|key| match form {
        Form::Machines => key.sign(payload),
        Form::Plugins => key.sign(encoded.as_bytes()),
    });
    let envelope = match signature {
        Some(signature) => format!(r#"{{"{field}":"{encoded}","signature":"{}"}}"#, hex::encode(signature)),
        None => format!(r#"{{"{field}":"{encoded}"}}"#),
    };
    if envelope.len() > limits.envelope_bytes {
        return Err(SpecificationError::TooLarge { bytes: envelope.len(), limit_bytes: limits.envelope_bytes });
    }
    Ok(Packed { envelope, warnings: warnings(&machines, key) })
}

fn warnings(machines: &[ManagedMachine], key: Option<&SecretKey>) -> Vec<PackWarning> {
    let mut warnings = Vec::new();
    match key {
        None => warnings.push(PackWarning::Unsigned),
        Some(key) if key.public_key().is_example() => warnings.push(PackWarning::ExampleKey),
        Some(_) => {}
    }
    if machines.is_empty() {
        warnings.push(PackWarning::Empty);
    }
    for machine in machines {
        let name = machine.name.clone();
        let plain = matches!(&machine.source, Source::Http(url) if url.expose().scheme() == "http");
        if machine.credentials.is_some() {
            warnings.push(PackWarning::ReadablePassword { name: name.clone() });
        }
        match (plain, &machine.credentials) {
            (true, Some(_)) => warnings.push(PackWarning::PasswordOverPlainHttp { name }),
            (true, None) => warnings.push(PackWarning::PlainHttp { name }),
            (false, _) => {}
        }
    }
    warnings
}
