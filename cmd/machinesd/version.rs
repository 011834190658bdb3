//! `machinesd version`: what this binary is, and what is compiled into it.

use machines::host::built_in::{BUILTIN_MACHINES, COMPILED_PUBLIC_KEY};
use machines::watchers::KINDS;

use crate::shared::{Failure, json, line};

pub fn version(verbose: bool) {
    line(format!("machinesd {}", env!("CARGO_PKG_VERSION")));
    if verbose {
        line("watchers:");
        for kind in KINDS {
            line(format!("  {:<10} {}", kind.name, kind.summary));
        }
        line("machines:");
        for machine in BUILTIN_MACHINES {
            line(format!("  {}", machine.name));
        }
        match COMPILED_PUBLIC_KEY {
            Some(key) => line(format!("public key: {key} (the settings can't weaken it)")),
            None => line("public key: none compiled in; [trust] public_keys decides"),
        }
    }
}

/// The same as JSON, all of it.
pub fn document() -> Result<(), Failure> {
    let watchers = KINDS.iter().map(|kind| serde_json::json!({ "type": kind.name, "summary": kind.summary }));
    json(&serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "watchers": watchers.collect::<Vec<_>>(),
        "machines": BUILTIN_MACHINES.iter().map(|machine| machine.name).collect::<Vec<_>>(),
        "public_key": COMPILED_PUBLIC_KEY,
    }))
}
