//! `mms keys`: a new pair of keys, printed as the reference prints it or written to files.

use std::path::{Path, PathBuf};

use machines::fs;
use machines::spec::SecretKey;

use crate::shared::{Failure, line, note};

pub fn keys(out: Option<&Path>) -> Result<(), Failure> {
    let secret = SecretKey::generate()?;
    let public_key = secret.public_key();
    if let Some(prefix) = out {
        let (public_path, secret_path) = (with_suffix(prefix, ".pub"), with_suffix(prefix, ".key"));
        // Both are asked first, so that a lone new half is not left beside an old one.
        for path in [&public_path, &secret_path] {
            if path.symlink_metadata().is_ok() {
                let message = format!(
                    "{} exists already and is kept: nodes may trust it; choose another prefix, or move it away",
                    path.display()
                );
                return Err(message.into());
            }
        }
        fs::write_new(&secret_path, format!("{}\n", secret.to_hex().as_str()).as_bytes(), 0o600)?;
        fs::write_new(&public_path, format!("{public_key}\n").as_bytes(), 0o644)?;
        line(format!(" Public Key: {public_key}"));
        line(format!(" Written to: {} and {}", public_path.display(), secret_path.display()));
        note(format!("keep {} secret: whoever has it decides what runs on your nodes", secret_path.display()));
    } else {
        line(format!(" Public Key: {public_key}"));
        line(format!("Private Key: {}", secret.to_hex().as_str()));
    }
    Ok(())
}

/// `ops.prod` and `.key` give `ops.prod.key`: nothing of the prefix is taken for an extension.
fn with_suffix(prefix: &Path, suffix: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_owned();
    path.push(suffix);
    PathBuf::from(path)
}
