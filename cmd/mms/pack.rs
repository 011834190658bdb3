//! `mms pack`: checks the operator's list of machines as a node does and prints the signed envelope on one line.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use machines::spec::{PackWarning, SecretKey};
use zeroize::Zeroizing;

use crate::faults;
use crate::input::Input;
use crate::shared::{Failure, line, warn};

/// A private key is 128 digits; some white space around them is no reason to refuse the file.
const KEY_FILE_LIMIT_BYTES: u64 = 4096;

/// What to say about a list that is not signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsigned {
    Meant,
    Warned,
}

/// The key of the command line, of the key file, or of the environment variable `KEY`.
pub fn find_key(argument: Option<String>, file: Option<&Path>) -> Result<Option<SecretKey>, Failure> {
    let (text, origin) = if let Some(path) = file {
        let text = machines::fs::read_text(path, KEY_FILE_LIMIT_BYTES).map_err(|error| Failure::Usage(error.into()))?;
        (Zeroizing::new(text), format!("key file {}", path.display()))
    } else if let Some(argument) = argument {
        warn("every user of this host can see a key on the command line; give --key-file instead");
        (Zeroizing::new(argument), "KEY".to_owned())
    } else {
        match std::env::var("KEY") {
            // A script whose key is missing must not publish an unsigned list without a word: this warns.
            Err(std::env::VarError::NotPresent) => return Ok(None),
            Ok(text) if text.is_empty() => return Ok(None),
            Ok(text) => (Zeroizing::new(text), "environment variable KEY".to_owned()),
            Err(std::env::VarError::NotUnicode(_)) => {
                return Err(Failure::Usage("environment variable KEY: it is not text".into()));
            }
        }
    };
    match SecretKey::from_hex(&text) {
        Ok(key) => {
            if let Some(exposure) = file.and_then(exposure) {
                warn(exposure);
            }
            Ok(Some(key))
        }
        Err(error) => {
            let public = machines::spec::PublicKey::from_hex(&text).is_ok();
            let help = if public { " (this is a public key; signing needs the private one)" } else { "" };
            Err(Failure::Usage(format!("{origin}: {error}{help}").into()))
        }
    }
}

/// How others could get at a private key in a file, and what to do about it.
fn exposure(path: &Path) -> Option<String> {
    let metadata = path.metadata().ok()?;
    let shown = path.display();
    let (owner, own) = (metadata.uid(), rustix::process::geteuid().as_raw());
    if owner != own && owner != 0 {
        return Some(format!("key file {shown} belongs to another user, who can read it: make a new pair of your own"));
    }
    let mode = metadata.mode() & 0o777;
    (mode & 0o077 != 0).then(|| {
        format!("others may read key file {shown} (mode {mode:04o}), and sign what they like: chmod 600 {shown}")
    })
}

pub fn pack(machines: &Path, key: Option<&SecretKey>, unsigned: Unsigned) -> Result<(), Failure> {
    let input = Input::new(machines);
    let payload = input.read()?;
    if payload.trim_ascii().is_empty() {
        return Err(format!("{input} is empty, so nothing was packed; a list without machines is []").into());
    }
    if is_specification(&payload) {
        let help = "give the list that it was made of; `mms verify` shows what a specification says";
        return Err(format!("{input} is a specification already, not a list of machines; {help}").into());
    }
    let packed = machines::spec::pack(&payload, key)
        .map_err(|error| faults::show(&input.to_string(), &payload, &error, "nothing was packed"))?;
    for warning in packed.warnings {
        match warning {
            PackWarning::Unsigned if unsigned == Unsigned::Meant => {}
            warning => warn(warning),
        }
    }
    line(packed.envelope);
    Ok(())
}

/// What `mms pack` prints is easily given to it again.
fn is_specification(payload: &[u8]) -> bool {
    serde_json::from_slice::<serde_json::Value>(payload)
        .is_ok_and(|value| value.get("machines").is_some_and(serde_json::Value::is_string))
}
