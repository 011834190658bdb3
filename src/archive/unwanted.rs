//! What does not belong into an archive that every node gets: secrets, and what editors left. In: a file's path in its
//! machine, and its beginning. Out: why it is refused, unless the operator includes it by name.

use std::path::Path;

use crate::secret::{holds_private_key, looks_like_seed};
use crate::spec::SecretKey;

/// A private key or a file of credentials is small; of larger files this much is looked at.
pub(super) const LOOKED_AT_BYTES: u64 = 256 * 1024;

/// A path or a pattern (`*` and `?`, which do not match `/`) that is packed whatever it looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Included(String);

impl Included {
    /// Of a path below the machine's directory.
    pub fn new(pattern: &str) -> Self {
        Self(pattern.trim_start_matches("./").trim_end_matches('/').to_owned())
    }

    /// Whether this names a path, or a directory above it.
    pub fn takes(&self, path: &str) -> bool {
        let above = path.match_indices('/').map(|(end, _)| path.get(..end).unwrap_or_default());
        std::iter::once(path).chain(above).any(|path| matches(self.0.as_bytes(), path.as_bytes()))
    }
}

fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) if matches(rest, text) => true,
        (Some((b'*', _)), Some((next, after))) => *next != b'/' && matches(pattern, after),
        (Some((b'?', rest)), Some((next, after))) => *next != b'/' && matches(rest, after),
        (Some((wanted, rest)), Some((next, after))) => wanted == next && matches(rest, after),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

/// A file that is not packed, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unwanted {
    /// Below the machine's directory.
    pub path: String,
    pub why: &'static str,
}

/// Why a file is not packed, unless one of `included` names it.
pub(super) fn judge(path: &str, beginning: &[u8], included: &[Included]) -> Option<Unwanted> {
    if included.iter().any(|included| included.takes(path)) {
        return None;
    }
    let why = by_name(path).or_else(|| by_content(beginning))?;
    Some(Unwanted { path: path.to_owned(), why })
}

fn by_name(path: &str) -> Option<&'static str> {
    let mut parts: Vec<&str> = path.split('/').collect();
    let name = parts.pop()?;
    for directory in parts {
        match directory {
            ".git" | ".hg" | ".svn" => return Some("is of a version control's own directory"),
            ".ssh" | ".gnupg" | ".aws" => return Some("is of a directory for secrets"),
            _ => {}
        }
    }
    let ends = |extension: &str| Path::new(name).extension().is_some_and(|found| found.eq_ignore_ascii_case(extension));
    match name {
        ".env" | ".netrc" | "_netrc" | ".pgpass" | ".htpasswd" | ".git-credentials" => {
            Some("holds passwords, by its name")
        }
        "id_rsa" | "id_dsa" | "id_ecdsa" | "id_ed25519" => Some("is a private key of SSH, by its name"),
        ".DS_Store" | "Thumbs.db" => Some("is a left-over of a file manager"),
        name if name.starts_with(".env.") => Some("holds passwords, by its name"),
        name if name.ends_with('~') || name.starts_with(".#") || (name.starts_with('#') && name.ends_with('#')) => {
            Some("is a left-over of an editor")
        }
        name if name.starts_with('.') && (ends("swp") || ends("swo") || ends("swn")) => {
            Some("is a left-over of an editor")
        }
        _ if ends("orig") || ends("rej") => Some("is a left-over of a merge or a patch"),
        _ => None,
    }
}

fn by_content(beginning: &[u8]) -> Option<&'static str> {
    let text = String::from_utf8_lossy(beginning);
    let mut words = text.split(|character: char| !character.is_ascii_alphanumeric());
    if words.clone().any(looks_like_seed) {
        return Some("holds the seed of an nkey");
    }
    if words.any(|word| word.len() == 128 && SecretKey::from_hex(word).is_ok()) {
        return Some("holds a private key for signing specifications");
    }
    holds_private_key(&text).then_some("holds a private key in PEM")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(path: &str, content: &str) -> Option<&'static str> {
        judge(path, content.as_bytes(), &[]).map(|unwanted| unwanted.why)
    }

    #[test]
    fn secrets_and_left_overs_are_known_by_their_names() {
        for bad in [
            ".env",
            "a/.env.production",
            ".netrc",
            ".git/config",
            "a/.ssh/config",
            "id_ed25519",
            "run.sh~",
            ".run.sh.swp",
            "#run.sh#",
            ".#run.sh",
            "run.sh.orig",
            "a/run.sh.rej",
            ".DS_Store",
        ] {
            assert!(why(bad, "").is_some(), "{bad}");
        }
        for good in
            ["run.sh", "env", "environment", "a.swp.txt", "git/config", "original", "id_ed25519.pub", ".gitignore"]
        {
            assert_eq!(why(good, "#!/bin/sh\n"), None, "{good}");
        }
    }

    #[test]
    fn private_keys_are_known_by_their_content() {
        let ours = SecretKey::generate().unwrap();
        let digest_of_512_bits = "0f".repeat(64);
        assert!(why("a", &format!("key: {}\n", ours.to_hex().as_str())).is_some());
        assert!(why("a", "-----BEGIN OPENSSH PRIVATE KEY-----\nabc\n").is_some());
        assert!(why("a", "SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY").is_some());
        assert_eq!(why("a", &digest_of_512_bits), None);
        assert_eq!(why("a", "-----BEGIN CERTIFICATE-----\nabc\n"), None);
    }

    #[test]
    fn what_is_included_by_path_or_pattern_is_packed() {
        for pattern in [".env", "./.env", "*", ".e?v"] {
            assert_eq!(judge(".env", b"", &[Included::new(pattern)]), None, "{pattern}");
        }
        assert_eq!(judge("tls/a/server.key", b"", &[Included::new("tls")]), None);
        for pattern in ["env", "*/x", ".env.*", ""] {
            assert!(judge(".env", b"", &[Included::new(pattern)]).is_some(), "{pattern}");
        }
        assert!(judge("a/.env", b"", &[Included::new("*.env")]).is_some(), "a star stays in its directory");
    }
}
