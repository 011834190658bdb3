//! SHA-256 digests as a type, written and read as 64 lower-case hexadecimal digits.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Sha256Digest([u8; 32]);

/// A text that is not a digest in the one accepted form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a SHA-256 checksum: {reason}")]
pub struct DigestError {
    text: String,
    reason: &'static str,
}

impl Sha256Digest {
    /// The digest of bytes that are in memory.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Wraps the output of a hasher that was fed elsewhere.
    pub fn from_hasher(hasher: Sha256) -> Self {
        Self(hasher.finalize().into())
    }

    /// Reads to the end and returns the digest and the count of bytes.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn of_reader(mut reader: impl Read) -> io::Result<(Self, u64)> {
        let mut hasher = Sha256::new();
        // Half of what the allocator would ask the system for anew each time.
        let mut buffer = vec![0u8; 64 * 1024];
        let mut total = 0u64;
        loop {
            let count = match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hasher.update(buffer.get(..count).unwrap_or_default());
            total += count as u64;
        }
        Ok((Self::from_hasher(hasher), total))
    }

    /// Accepts exactly 64 lower-case hexadecimal digits. Upper case is refused so that a digest has one spelling and
    /// can be compared as text by other tools.
    ///
    /// # Errors
    /// Says whether the length or a character is wrong.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let refuse = |reason| {
            let text = text.chars().take(80).collect();
            Err(DigestError { text, reason })
        };
        if text.len() != 64 {
            return refuse("it must have exactly 64 hexadecimal digits");
        }
        if !text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')) {
            return refuse("only the digits 0-9 and lower-case a-f are allowed");
        }
        let mut bytes = [0u8; 32];
        match hex::decode_to_slice(text, &mut bytes) {
            Ok(()) => Ok(Self(bytes)),
            Err(_) => refuse("it is not hexadecimal"),
        }
    }

    /// The first 12 digits, for people.
    pub fn short(&self) -> String {
        hex::encode(self.0).chars().take(12).collect()
    }
}

impl fmt::Display for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Sha256Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "Sha256Digest({self})")
    }
}

impl TryFrom<String> for Sha256Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        Self::parse(&text)
    }
}

impl From<Sha256Digest> for String {
    fn from(digest: Sha256Digest) -> Self {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_one_spelling() {
        let digest = Sha256Digest::of(b"");
        let text = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(digest.to_string(), text);
        assert_eq!(Sha256Digest::parse(text), Ok(digest));
        assert_eq!(Sha256Digest::of_reader(&b""[..]).unwrap(), (digest, 0));
        for bad in [&text[1..], &text.to_uppercase(), &format!("{text}0"), &text.replace('e', "g"), ""] {
            assert!(Sha256Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
