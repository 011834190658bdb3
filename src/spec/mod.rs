//! The signed specification: envelope, keys, trust and the machines it lists. No I/O but the entropy for new keys.
//!
//! The order is the protection: size, strict envelope, signature over the exact decoded bytes, and only then is
//! anything of the payload interpreted. Keys of the envelope other than `machines` and `signature` are ignored, which
//! leaves room for the release beside them.

mod envelope;
mod error;
mod in_force;
mod keys;
mod managed_machine;
mod pack;
mod place;
mod raw;
mod trust;

use crate::digest::Sha256Digest;

pub use error::{EntryProblem, SpecificationError};
pub use in_force::TrustInForce;
pub use keys::{EXAMPLE_PUBLIC_KEY, KeyError, PublicKey, SecretKey};
pub use managed_machine::{Credentials, ManagedMachine, Source};
pub use pack::{PackWarning, Packed, pack, pack_form};
pub use trust::Trust;

/// Bounds of the work that a specification may ask for.
#[derive(Debug, Clone)]
pub struct Limits {
    pub envelope_bytes: usize,
    pub machines: usize,
}

impl Default for Limits {
    /// 1 MiB, which is also what a NATS server takes as one message, and 10,000 machines.
    fn default() -> Self {
        Self { envelope_bytes: 1024 * 1024, machines: 10_000 }
    }
}

/// A specification whose signature held (or was not asked for) and whose every entry is valid. Only [`verify`] makes
/// one.
#[derive(Debug, Clone)]
pub struct VerifiedSpecification {
    digest: Sha256Digest,
    signed_by: Option<PublicKey>,
    machines: Vec<ManagedMachine>,
}

impl VerifiedSpecification {
    /// SHA-256 of the decoded payload: what was signed.
    pub fn digest(&self) -> Sha256Digest {
        self.digest
    }
    /// The trusted key that signed it; `None` where anyone's is taken, whether or not it has a signature.
    pub fn signed_by(&self) -> Option<&PublicKey> {
        self.signed_by.as_ref()
    }
    /// In the order of the list; may be empty.
    pub fn machines(&self) -> &[ManagedMachine] {
        &self.machines
    }
}

/// The two forms of specifications that the reference knows. They hold the same kind of list, but neither is ever taken
/// for the other: each has its own field in the envelope, and its signature covers other bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Form {
    /// `machines`, with a signature over the decoded bytes.
    #[default]
    Machines,
    /// `plugins`, with a signature over the base64 text. Its matches can look at facts.
    Plugins,
}

impl Form {
    /// The field of the envelope that has the list.
    pub fn field(self) -> &'static str {
        match self {
            Self::Machines => "machines",
            Self::Plugins => "plugins",
        }
    }

    /// What a `match` may use.
    fn scope(self) -> &'static crate::expr::Scope {
        match self {
            Self::Machines => &crate::expr::Scope::MATCH,
            Self::Plugins => &crate::expr::Scope::PLUGINS_MATCH,
        }
    }
}

/// Takes the exact bytes of an envelope through: size, strict JSON, base64 and hex, signature over the decoded bytes,
/// and only then parsing and validation of every entry.
///
/// # Errors
/// The first failed step; for the entries, every problem of every entry.
pub fn verify(envelope: &[u8], trust: &Trust, limits: &Limits) -> Result<VerifiedSpecification, SpecificationError> {
    verify_form(Form::Machines, envelope, trust, limits)
}

/// As [`verify`], for an envelope of either form.
///
/// # Errors
/// As there, and when the envelope is of the other form.
pub fn verify_form(
    form: Form,
    envelope: &[u8],
    trust: &Trust,
    limits: &Limits,
) -> Result<VerifiedSpecification, SpecificationError> {
    // Not a byte of what nobody vouches for is read.
    if *trust == Trust::Nobody {
        return Err(SpecificationError::NoTrustedKey);
    }
    let envelope = envelope::Envelope::read(envelope, limits.envelope_bytes, form)?;
    let signed_by = match trust {
        Trust::Anyone | Trust::Nobody => None,
        Trust::Keys(keys) => Some(envelope.signed_by(keys)?),
    };
    let machines = managed_machine::validate(&envelope.payload, limits.machines, form.scope())?;
    Ok(VerifiedSpecification { digest: Sha256Digest::of(&envelope.payload), signed_by, machines })
}

/// Which of the keys signed the envelope, without looking into the payload: for an operator's question, not for a node.
///
/// # Errors
/// When it is malformed, not signed, or signed by none of them.
pub fn inspect_signature(envelope: &[u8], keys: &[PublicKey]) -> Result<PublicKey, SpecificationError> {
    envelope::Envelope::read(envelope, Limits::default().envelope_bytes, Form::Machines)?.signed_by(keys)
}
