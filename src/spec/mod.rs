//! The signed specification: envelope, keys, trust and the machines it lists. No I/O but the entropy for new keys.
//!
//! The order is the protection: size, strict envelope, signature over the exact decoded bytes, and only then is
//! anything of the payload interpreted. Keys of the envelope other than `machines` and `signature` are ignored, which
//! leaves room for the release beside them.

mod envelope;
mod error;
mod keys;
mod managed_machine;
mod pack;
mod place;
mod raw;
mod trust;

use crate::digest::Sha256Digest;

pub use error::{EntryProblem, SpecificationError};
pub use keys::{EXAMPLE_PUBLIC_KEY, KeyError, PublicKey, SecretKey};
pub use managed_machine::{Credentials, ManagedMachine, Source};
pub use pack::{PackWarning, Packed, pack};
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
    /// The trusted key that signed it; `None` when no key is trusted, whether or not it has a signature.
    pub fn signed_by(&self) -> Option<&PublicKey> {
        self.signed_by.as_ref()
    }
    /// In the order of the list; may be empty.
    pub fn machines(&self) -> &[ManagedMachine] {
        &self.machines
    }
}

/// Takes the exact bytes of an envelope through: size, strict JSON, base64 and hex, signature over the decoded bytes,
/// and only then parsing and validation of every entry.
///
/// # Errors
/// The first failed step; for the entries, every problem of every entry.
pub fn verify(envelope: &[u8], trust: &Trust, limits: &Limits) -> Result<VerifiedSpecification, SpecificationError> {
    let envelope = envelope::Envelope::read(envelope, limits.envelope_bytes)?;
    let signed_by = match trust {
        Trust::Unsigned => None,
        Trust::Keys(keys) => Some(envelope.signed_by(keys)?),
    };
    let machines = managed_machine::validate(&envelope.payload, limits.machines)?;
    Ok(VerifiedSpecification { digest: Sha256Digest::of(&envelope.payload), signed_by, machines })
}

/// Which of the keys signed the envelope, without looking into the payload: for an operator's question, not for a node.
///
/// # Errors
/// When it is malformed, not signed, or signed by none of them.
pub fn inspect_signature(envelope: &[u8], keys: &[PublicKey]) -> Result<PublicKey, SpecificationError> {
    envelope::Envelope::read(envelope, Limits::default().envelope_bytes)?.signed_by(keys)
}
