//! `mms verify`: who signed a specification, and whether nodes would take its content.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use machines::spec::{Limits, PublicKey, SecretKey, SpecificationError, Trust, inspect_signature};

use crate::faults;
use crate::input::Input;
use crate::shared::{Failure, Format, json, line, note, warn};

/// A public key is 64 digits.
const KEY_FILE_LIMIT_BYTES: u64 = 4096;

pub fn verify(specification: &Path, key: Option<&str>, format: Format) -> Result<(), Failure> {
    let key = key.map(find_key).transpose().map_err(|reason| Failure::Usage(reason.into()))?;
    let input = Input::new(specification);
    let envelope = input.read()?;
    let Some(key) = key else { return Err(without_key(&input, &envelope)) };
    if key.is_example() {
        warn("this key is that of the example in the documentation, whose private key is known to the world");
    }
    inspect_signature(&envelope, &[key]).map_err(|error| refusal(&input, &envelope, &key, &error))?;
    match machines::spec::verify(&envelope, &Trust::Keys(vec![key]), &Limits::default()) {
        Ok(verified) if format == Format::Json => json(&serde_json::json!({
            "signed_by": key.to_string(),
            "machines": verified.machines().len(),
            "digest": verified.digest(),
        })),
        Ok(verified) => {
            line(format!("Data file {input} is signed using {key}"));
            let count = verified.machines().len();
            note(format!("{count} {}, digest {}", if count == 1 { "machine" } else { "machines" }, verified.digest()));
            Ok(())
        }
        Err(error) => {
            let name = format!("{input} (decoded)");
            let conclusion = format!("the signature of {key} is good, but nodes will refuse this list");
            Err(faults::show(&name, &payload(&envelope), &error, &conclusion))
        }
    }
}

/// A key as text, or the file that holds it. The text is not repeated: people mistake the private key for it.
fn find_key(text: &str) -> Result<PublicKey, String> {
    const PRIVATE: &str = "this is a private key; give the public one, and keep this one out of command lines";
    let path = Path::new(text);
    let (content, origin) = if path.is_file() {
        let content = machines::fs::read_text(path, KEY_FILE_LIMIT_BYTES);
        (content.map_err(|error| machines::errors::chain(&error))?, format!("key file {text}"))
    } else {
        (text.to_owned(), "KEY".to_owned())
    };
    if SecretKey::from_hex(&content).is_ok() {
        return Err(format!("{origin}: {PRIVATE}"));
    }
    PublicKey::from_hex(&content).map_err(|error| {
        // What is as long as a key may be one with a slip in it.
        if origin == "KEY" && text.len() < 64 && !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return format!("{text:?} is neither a file nor a public key of 64 hexadecimal digits");
        }
        format!("{origin}: {error}")
    })
}

/// Without a key nothing can be verified, but a file that no key would verify can be told.
fn without_key(input: &Input, envelope: &[u8]) -> Failure {
    match inspect_signature(envelope, &[]) {
        Err(SpecificationError::SignatureInvalid { .. }) | Ok(_) => Failure::Usage(
            format!(
                "data file {input} has a signature; only the signer's public key can tell whether it is good: \
                 mms verify {input} KEY|FILE"
            )
            .into(),
        ),
        Err(SpecificationError::Unsigned) => unsigned(input),
        Err(error) => malformed(input, envelope, &error),
    }
}

fn refusal(input: &Input, envelope: &[u8], key: &PublicKey, error: &SpecificationError) -> Failure {
    match error {
        SpecificationError::Unsigned => unsigned(input),
        SpecificationError::SignatureInvalid { .. } => format!(
            "data file {input} is not signed using {key}: it was signed with another key, or changed afterwards; \
             nodes that trust this key will refuse it"
        )
        .into(),
        error => malformed(input, envelope, error),
    }
}

fn malformed(input: &Input, envelope: &[u8], error: &SpecificationError) -> Failure {
    if envelope.trim_ascii().is_empty() {
        return format!("data file {input} is empty").into();
    }
    if envelope.trim_ascii_start().starts_with(b"[") {
        return format!(
            "data file {input} is a list of machines, not a specification; make one of it with \
             `mms pack {input} --key-file FILE`"
        )
        .into();
    }
    format!("data file {input}: {error}").into()
}

fn unsigned(input: &Input) -> Failure {
    format!("data file {input} is not signed; sign the list of machines with `mms pack MACHINES.json --key-file FILE`")
        .into()
}

/// The list in an envelope that was read already, for showing its lines.
fn payload(envelope: &[u8]) -> Vec<u8> {
    let document: serde_json::Value = serde_json::from_slice(envelope).unwrap_or_default();
    let encoded = document.get("machines").and_then(serde_json::Value::as_str).unwrap_or_default();
    STANDARD.decode(encoded).unwrap_or_default()
}
