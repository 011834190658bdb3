//! Ed25519 keys as operators handle them: hexadecimal text in, checked keys out. A public key is 32 bytes, a private
//! key 64 (seed, then public key), as the reference writes them.

use std::fmt;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use zeroize::Zeroizing;

use crate::secret::looks_like_seed;

/// The public key of the worked example in the reference's documentation. Its private key is printed beside it, so a
/// signature by it proves nothing.
pub const EXAMPLE_PUBLIC_KEY: &str = "64031219d4922eed63a5f567303e98607c632139c01bc9fa4ca2514c2d9d30da";

/// An ed25519 public key that is well-formed and not weak. Whether it is trusted is [`super::Trust`]'s matter.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PublicKey(VerifyingKey);

/// An ed25519 private key. Wiped from memory when dropped, hidden in debug output.
pub struct SecretKey(SigningKey);

/// Why a key can't be used. No message repeats what is not a public key for sure.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    #[error("the {kind} has {found} characters{resembles}; it must have {expected} hexadecimal digits")]
    Length { kind: &'static str, found: usize, expected: usize, resembles: Resemblance },
    #[error("the {kind} has characters that are not hexadecimal digits")]
    NotHexadecimal { kind: &'static str },
    #[error(
        "the public key has 64 hexadecimal digits and is no point of the ed25519 curve in its one valid form; check that \
         it was copied whole, and that it is not the seed of a private key"
    )]
    NotAPoint,
    #[error(
        "the public key is weak: signatures that verify with it can be made by anyone; check that it is not the seed of \
         a private key, or make a pair with \"mms keys\""
    )]
    Weak,
    #[error("key {number} of the list: {source}")]
    InList { number: usize, source: Box<Self> },
    #[error("the private key does not belong to the public key in its second half; check that it was copied whole")]
    Inconsistent,
    #[error(
        "public key {EXAMPLE_PUBLIC_KEY} is that of the example in the documentation, whose private key is known to \
         the world; make a pair of your own with \"mms keys\""
    )]
    Example,
    #[error("the public key compiled into this program is empty; build it again with MACHINES_PUBLIC_KEY set or unset")]
    CompiledInEmpty,
    #[error(
        "this program accepts only specifications signed by the compiled-in key {compiled_in}; remove {configured}… \
         from \"public_keys\" in the settings"
    )]
    CompiledInDiffers { compiled_in: String, configured: String },
    #[error(
        "unsigned specifications can't be allowed beside a trusted key; remove allow_unsigned, or the key when anyone \
         who can write to the bucket may decide what runs here"
    )]
    UnsignedBesideKeys,
    #[error("could not get random numbers from the system: {reason}")]
    Entropy { reason: String },
}

/// What a text that is no key looks like, for who mistook it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resemblance {
    PrivateKey,
    NkeySeed,
    Nkey,
    Pem,
    Nothing,
}

impl Resemblance {
    fn of(text: &str) -> Self {
        let is_hexadecimal = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            _ if text.contains("-----BEGIN") => Self::Pem,
            128 if is_hexadecimal => Self::PrivateKey,
            58 if looks_like_seed(text) => Self::NkeySeed,
            56 if text.bytes().all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7')) => Self::Nkey,
            _ => Self::Nothing,
        }
    }
}

impl fmt::Display for Resemblance {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::PrivateKey => {
                " and looks like a PRIVATE key, which belongs to the operator alone: take it away from here"
            }
            Self::NkeySeed => " and looks like the SECRET seed of an nkey, which is for [kv] nkey",
            Self::Nkey => " and looks like a public nkey of NATS, which is something else",
            Self::Pem => " and looks like a file in PEM format",
            Self::Nothing => "",
        })
    }
}

impl PublicKey {
    /// Reads 64 hexadecimal digits of either case; white space around them is ignored, since keys come from files.
    ///
    /// # Errors
    /// When it is not hexadecimal, not a curve point in canonical form, or of small or mixed order.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = [0u8; 32];
        decode("public key", text, &mut bytes)?;
        let verifying = VerifyingKey::from_bytes(&bytes).map_err(|_| KeyError::NotAPoint)?;
        let point = verifying.to_edwards();
        // One key must have one spelling, or "how many distinct keys signed" could be answered wrongly.
        if point.compress().to_bytes() != bytes {
            return Err(KeyError::NotAPoint);
        }
        if verifying.is_weak() || !point.is_torsion_free() {
            return Err(KeyError::Weak);
        }
        Ok(Self(verifying))
    }

    /// The 64 lower-case digits.
    pub fn to_hex(&self) -> String {
        hex::encode(self.0.as_bytes())
    }

    /// Whether this is the key of the documentation's example.
    pub fn is_example(&self) -> bool {
        self.to_hex() == EXAMPLE_PUBLIC_KEY
    }

    /// Strict verification: refuses weak keys, small-order commitments and signatures with a second spelling.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8; 64]) -> bool {
        self.0.verify_strict(message, &Signature::from_bytes(signature)).is_ok()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.to_hex())
    }
}

impl serde::Serialize for PublicKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "PublicKey({self})")
    }
}

impl SecretKey {
    /// Makes a new pair from the system's entropy.
    ///
    /// # Errors
    /// When the system has none.
    pub fn generate() -> Result<Self, KeyError> {
        let mut seed = Zeroizing::new([0u8; 32]);
        getrandom::fill(seed.as_mut_slice()).map_err(|error| KeyError::Entropy { reason: error.to_string() })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// Reads 128 hexadecimal digits; white space around them is ignored.
    ///
    /// # Errors
    /// When it is not hexadecimal, or its halves do not belong together: such a key leaks itself when it signs.
    pub fn from_hex(text: &str) -> Result<Self, KeyError> {
        let mut bytes = Zeroizing::new([0u8; 64]);
        decode("private key", text, bytes.as_mut_slice())?;
        SigningKey::from_keypair_bytes(&bytes).map(Self).map_err(|_| KeyError::Inconsistent)
    }

    /// The 128 lower-case digits, wiped when dropped.
    pub fn to_hex(&self) -> Zeroizing<String> {
        let bytes = Zeroizing::new(self.0.to_keypair_bytes());
        Zeroizing::new(hex::encode(bytes.as_slice()))
    }

    /// The public half.
    pub fn public_key(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The signature over exactly these bytes.
    pub fn sign(&self, message: &[u8]) -> [u8; 64] {
        self.0.sign(message).to_bytes()
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "SecretKey(hidden, public {})", self.public_key())
    }
}

fn decode(kind: &'static str, text: &str, bytes: &mut [u8]) -> Result<(), KeyError> {
    let text = text.trim();
    if text.len() != bytes.len() * 2 {
        return Err(KeyError::Length {
            kind,
            found: text.chars().count(),
            expected: bytes.len() * 2,
            resembles: Resemblance::of(text),
        });
    }
    hex::decode_to_slice(text, bytes).map_err(|_| KeyError::NotHexadecimal { kind })
}
