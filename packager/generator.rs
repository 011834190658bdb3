//! Decides what is compiled in: turns `packager/plugins.yaml` and the public key of the build into Rust source.
//!
//! In: the text of `plugins.yaml`, the project's directory, and the value of `MACHINES_PUBLIC_KEY`. Out: `kinds.rs` (the
//! watcher kinds, for `src/watchers`) and `builtin.rs` (machines and key), or every fault that was found.
//!
//! `build.rs` and `tests/packager.rs` both include this file, so that a test can try hostile lists without building the
//! project once for each.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Component, Path};

use serde::Deserialize;

/// Where the list is, from the project's directory; also the beginning of each message.
pub const LIST: &str = "packager/plugins.yaml";

/// The public half of the worked example of the reference system's documentation. Its private half is printed there, so
/// a build that trusted it would trust everyone.
const EXAMPLE_PUBLIC_KEY: &str = "64031219d4922eed63a5f567303e98607c632139c01bc9fa4ca2514c2d9d30da";

const PUBLIC_KEY_DIGITS: usize = 64;
const DEFINITION: &str = "machine.yaml";

/// The generated sources, or the faults of the input, each a sentence for a person.
pub type Result<T> = std::result::Result<T, Vec<String>>;

/// The text of the two generated files.
#[derive(Debug, PartialEq, Eq)]
pub struct Generated {
    /// `pub static KINDS: &[Kind]`; goes into a module that has the type `Kind` and one module per kind.
    pub kinds: String,
    /// `BuiltinMachine`, `BUILTIN_MACHINES` and `COMPILED_PUBLIC_KEY`; needs nothing around it.
    pub builtin: String,
}

/// The list as it is written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plugins {
    watchers: Vec<String>,
    machines: BTreeMap<String, String>,
}

/// The one field of a definition that the list must agree with. The definition itself is checked by `src/machine`, in a
/// test that reads every compiled-in machine.
#[derive(Debug, Deserialize)]
struct Definition {
    name: String,
}

/// Makes both files, or lists every fault.
pub fn generate(list: &str, project: &Path, public_key: Option<&str>) -> Result<Generated> {
    let plugins: Plugins = serde_saphyr::from_str(list).map_err(|error| vec![format!("{LIST}: {error}")])?;
    let mut faults = Vec::new();
    check_watchers(&plugins.watchers, project, &mut faults);
    check_machines(&plugins.machines, project, &mut faults);
    let public_key = match public_key.map(parse_public_key).transpose() {
        Ok(public_key) => public_key,
        Err(fault) => {
            faults.push(fault);
            None
        }
    };
    if !faults.is_empty() {
        return Err(faults);
    }
    let kinds = render_kinds(&plugins.watchers);
    Ok(Generated { kinds, builtin: render_builtin(&plugins.machines, public_key.as_deref()) })
}

/// The same two files for a build that must fail: the compiler then prints the faults as its own errors, which read
/// better than a build script's panic. Both fail, whichever is compiled; the empty lists spare errors about their absence.
pub fn refusal(faults: &[String]) -> Generated {
    let errors: String = faults.iter().map(|fault| format!("compile_error!({fault:?});\n")).collect();
    let kinds = errors.clone() + &render_kinds(&[]);
    Generated { kinds, builtin: errors + &render_builtin(&BTreeMap::new(), None) }
}

fn check_watchers(watchers: &[String], project: &Path, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for kind in watchers {
        if !is_kind(kind) {
            faults.push(format!(
                "{LIST}: watcher {kind:?} can't be the name of a watcher kind: use lower-case letters, digits and _, \
                 a letter first"
            ));
            continue;
        }
        if !seen.insert(kind) {
            faults.push(format!("{LIST}: watcher {kind:?} is listed twice: remove one of the two"));
        }
        let rooms = project.join("src/watchers");
        if !rooms.join(format!("{kind}.rs")).is_file() && !rooms.join(kind).join("mod.rs").is_file() {
            faults.push(format!(
                "{LIST}: watcher {kind:?} is unknown: there is neither src/watchers/{kind}.rs nor \
                 src/watchers/{kind}/mod.rs"
            ));
        }
    }
}

fn check_machines(machines: &BTreeMap<String, String>, project: &Path, faults: &mut Vec<String>) {
    let mut seen = BTreeSet::new();
    for (name, directory) in machines {
        if !is_machine_name(name) {
            faults.push(format!(
                "{LIST}: machine {name:?} can't be the name of a machine: use letters, digits, _ and -, a letter \
                 first, at most 63"
            ));
            continue;
        }
        if !seen.insert(name.to_ascii_lowercase()) {
            faults.push(format!("{LIST}: machine {name:?} is listed twice, but for upper and lower case: rename one"));
        }
        if let Err(fault) = check_directory(name, directory, project) {
            faults.push(format!("{LIST}: machine {name:?}: {fault}"));
        }
    }
}

/// A directory of the project with a definition of that name in it, and nothing else.
fn check_directory(name: &str, directory: &str, project: &Path) -> std::result::Result<(), String> {
    let relative = Path::new(directory);
    if directory.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(format!("{directory:?} must be a plain relative path inside the project, without . and .."));
    }
    let inside =
        || -> std::io::Result<bool> { Ok(project.join(relative).canonicalize()?.starts_with(project.canonicalize()?)) };
    match inside() {
        Ok(true) => {}
        Ok(false) => return Err(format!("{directory} leads out of the project through a symbolic link")),
        Err(error) => return Err(format!("could not find the directory {directory}: {error}")),
    }
    let path = project.join(relative).join(DEFINITION);
    let text =
        std::fs::read_to_string(path).map_err(|error| format!("could not read {directory}/{DEFINITION}: {error}"))?;
    let definition: Definition =
        serde_saphyr::from_str(&text).map_err(|error| format!("{directory}/{DEFINITION}: {error}"))?;
    if definition.name != name {
        return Err(format!("{directory}/{DEFINITION} has the name {:?}: use one name for both", definition.name));
    }
    let entries = std::fs::read_dir(project.join(relative))
        .map_err(|error| format!("could not list the directory {directory}: {error}"))?;
    for entry in entries {
        let other = entry.map_err(|error| format!("could not list the directory {directory}: {error}"))?.file_name();
        if other != DEFINITION {
            return Err(format!(
                "{directory} has {other:?} beside {DEFINITION}: a compiled-in machine is its definition only, so ship \
                 files in an archive"
            ));
        }
    }
    Ok(())
}

/// An empty value is a fault, not "no key": a build whose variable got lost must not trust less than it should.
fn parse_public_key(value: &str) -> std::result::Result<String, String> {
    let wrong =
        |why: String| format!("MACHINES_PUBLIC_KEY {why}: give the public key that `mms keys` printed, or unset it");
    if value.len() != PUBLIC_KEY_DIGITS || !value.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong(format!(
            "must be {PUBLIC_KEY_DIGITS} hex digits, and is {} characters long",
            value.chars().count()
        )));
    }
    let key = value.to_ascii_lowercase();
    if key == EXAMPLE_PUBLIC_KEY {
        return Err(wrong("is the documentation's example key, whose private half everyone has".to_owned()));
    }
    Ok(key)
}

fn is_kind(kind: &str) -> bool {
    kind != "mod"
        && kind.starts_with(|first: char| first.is_ascii_lowercase())
        && kind.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
}

fn is_machine_name(name: &str) -> bool {
    name.len() <= 63
        && name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
}

fn render_kinds(watchers: &[String]) -> String {
    let mut source = format!(
        "/// The watcher kinds that are compiled in: the only list, made from `{LIST}`.\npub static KINDS: &[Kind] = &[\n"
    );
    for kind in watchers {
        _ = writeln!(source, "    {kind}::KIND,");
    }
    source.push_str("];\n");
    source
}

/// The definitions are read when the library is compiled, by a path that says nothing about the machine that builds it.
fn render_builtin(machines: &BTreeMap<String, String>, public_key: Option<&str>) -> String {
    let mut source = format!(
        "/// A machine that is compiled in.\n\
         #[derive(Debug, Clone, Copy, PartialEq, Eq)]\n\
         pub struct BuiltinMachine {{\n    \
             /// Its name, which is also the one in the definition.\n    \
             pub name: &'static str,\n    \
             /// The text of its `{DEFINITION}`.\n    \
             pub definition: &'static str,\n\
         }}\n\n\
         /// The machines that are compiled in, by name; made from `{LIST}`.\n\
         pub static BUILTIN_MACHINES: &[BuiltinMachine] = &[\n"
    );
    for (name, directory) in machines {
        let path = format!("/{directory}/{DEFINITION}");
        _ = writeln!(
            source,
            "    BuiltinMachine {{ name: {name:?}, definition: include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?})) }},"
        );
    }
    _ = write!(
        source,
        "];\n\n\
         /// The public key of this build, 64 lower-case hex digits, from `MACHINES_PUBLIC_KEY`; settings can't weaken it.\n\
         pub const COMPILED_PUBLIC_KEY: Option<&str> = {public_key:?};\n"
    );
    source
}
