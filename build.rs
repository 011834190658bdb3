//! Writes what is compiled in, for the library to include: `kinds.rs` and `builtin.rs` in `OUT_DIR`. The decisions are in
//! `packager/generator.rs`, which `tests/packager.rs` tries with good and bad lists.

#[path = "packager/generator.rs"]
mod generator;

use std::env;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

const PUBLIC_KEY: &str = "MACHINES_PUBLIC_KEY";

fn main() -> Result<(), Box<dyn Error>> {
    let project = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?);
    let output = PathBuf::from(env::var("OUT_DIR")?);
    // A directory stands for everything in it: a new watcher file or a changed definition runs this again.
    for path in ["build.rs", "packager/generator.rs", generator::LIST, "machines", "src/watchers"] {
        println!("cargo::rerun-if-changed={path}");
    }
    println!("cargo::rerun-if-env-changed={PUBLIC_KEY}");
    let public_key = match env::var(PUBLIC_KEY) {
        Ok(value) => Some(value),
        Err(env::VarError::NotPresent) => None,
        // Not text, so not hex digits either: the generator says so.
        Err(env::VarError::NotUnicode(value)) => Some(value.to_string_lossy().into_owned()),
    };
    let list = fs::read_to_string(project.join(generator::LIST))
        .map_err(|error| format!("could not read {}: {error}", generator::LIST))?;
    let generated = generator::generate(&list, &project, public_key.as_deref())
        .unwrap_or_else(|faults| generator::refusal(&faults));
    fs::write(output.join("kinds.rs"), generated.kinds)?;
    fs::write(output.join("builtin.rs"), generated.builtin)?;
    Ok(())
}
