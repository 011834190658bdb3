//! The promise of ARCHITECTURE.md that a room uses only rooms below it, and the other rules of the layout that a reader
//! counts on. In: the source files. Out: every breach with its file, line and arrow.
//!
//! The checker reads tokens, not types: it finds `crate::room` and `super::…::room` in `use` groups, in paths in the
//! code and in attribute strings such as `#[serde(with = "crate::room")]`, and passes over comments.

#![cfg(test)]

use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from top to bottom, with the reason for the place. Rooms in one row don't use each other.
const LAYERS: &[(&[&str], &str)] = &[
    (&["config"], "knows the settings of every room; only the programs use it"),
    (&["control"], "shows and steers what the host runs"),
    (&["host", "scenario"], "run machines, for real and for a test of them, and hand them the watcher kinds"),
    (&["watchers"], "implements the machine's watcher trait, one kind for each file"),
    (&["machine"], "owns definitions, states and the watcher trait; its checks may sync"),
    (&["process"], "runs commands within limits"),
    (&["sync"], "plans and applies a specification"),
    (&["archive"], "fetches and unpacks what a plan names; sources may be object stores"),
    (&["governor"], "waits for slots, which the stores keep; sync and watchers act under them"),
    (&["kv"], "stores; they report what happens to them"),
    (&["events", "journal"], "what happened, told and remembered"),
    (&["spec"], "decides what is authentic, without input or output"),
    (&["expr"], "decides what matches, on a node that it is given"),
    (&["node"], "identity and facts"),
    (&["errors", "suggest"], "show errors of any kind, and what was meant"),
    (&["shown", "secret"], "what may be seen of a text from outside, and of one that is secret"),
    (
        &["clock", "notices", "fs", "digest", "duration", "names"],
        "types and file operations that know nothing of machines",
    ),
];

const MAXIMUM_LINES: usize = 600;

/// Switches on the bans of `clippy.toml`, which has no setting for "not in tests".
const BANS: &str =
    "#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::string_slice))]";

#[test]
fn every_room_uses_only_rooms_below_it() {
    let mut breaches = Vec::new();
    for (path, source) in sources("src") {
        breaches.extend(check(&path, &source));
    }
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn the_library_lists_its_rooms_from_top_to_bottom() {
    let library = fs::read_to_string(project().join("src/lib.rs")).unwrap();
    let rooms: Vec<&str> =
        library.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';')).collect();
    let levels: Vec<usize> = rooms
        .iter()
        .map(|room| level(room).unwrap_or_else(|| panic!("src/lib.rs: {room} has no place in LAYERS: give it one")))
        .collect();
    assert!(rooms.len() > 10, "found only {rooms:?} in src/lib.rs");
    assert!(levels.is_sorted(), "src/lib.rs: sort the rooms from top to bottom: {rooms:?}");
}

#[test]
fn only_the_programs_use_the_settings_file() {
    for (path, source) in sources("src").into_iter().chain(sources("benches")) {
        for (line, text) in source.lines().enumerate() {
            let breach = text.contains("machines::config") && !text.trim_start().starts_with("//");
            assert!(
                !breach,
                "{path}:{}: only cmd/ uses machines::config: take the settings you need instead",
                line + 1
            );
        }
    }
}

#[test]
fn no_file_is_longer_than_a_person_reads() {
    for (path, source) in all_sources() {
        let lines = source.lines().count();
        assert!(lines <= MAXIMUM_LINES, "{path} has {lines} lines, more than {MAXIMUM_LINES}: split it");
    }
}

#[test]
fn every_file_says_in_its_first_line_what_it_is_for() {
    for (path, source) in all_sources() {
        assert!(
            source.starts_with("//! "),
            "{path}: begin with `//!` and what it is for, what comes in, what goes out"
        );
    }
}

#[test]
fn every_crate_root_tells_clippy_what_it_is() {
    for path in ["src/lib.rs", "cmd/machinesd/main.rs", "cmd/mms/main.rs"] {
        let source = fs::read_to_string(project().join(path)).unwrap();
        assert!(source.lines().any(|line| line == BANS), "{path}: needs the line `{BANS}`");
    }
    for (path, source) in sources("tests").into_iter().filter(|(path, _)| path.matches('/').count() == 1) {
        let marked = source.lines().any(|line| line == "#![cfg(test)]");
        assert!(marked, "{path}: needs the line `#![cfg(test)]`, so that lints know its helpers for test code");
    }
}

#[test]
fn the_checker_finds_an_arrow_that_points_up() {
    let found = |source: &str| check("src/kv/nats.rs", source);
    let up = |line: usize, room: &str| {
        let rule = "points up: a room uses only rooms below it, see LAYERS in tests/layering.rs";
        format!("src/kv/nats.rs:{line}: kv -> {room} {rule}")
    };
    assert_eq!(found("use crate::sync::Plan;"), [up(1, "sync")]);
    assert_eq!(found("use crate::{\n    names::Name,\n    host::{self, sync},\n};"), [up(3, "host")]);
    assert_eq!(found("fn f() { let url = \"https://x\"; crate::machine::f() }"), [up(1, "machine")]);
    assert_eq!(found("\n#[serde(with = \"crate::config::seconds\")]"), [up(2, "config")]);
    assert_eq!(found("use super::super::host;"), [up(1, "host")]);
    assert_eq!(found("mod tests {\n    use super::super::super::{spec, host};\n}"), [up(2, "host")]);
    assert_eq!(found("/* a */ const QUOTE: char = '\"'; const A: &str = r#\"\"\"#; crate :: host"), [up(1, "host")]);
}

#[test]
fn the_checker_lets_arrows_pass_that_point_down_or_stay_in_the_room() {
    let source = "//! See [`crate::host`].\nuse crate::kv::Bucket;\nuse crate::{names, spec::{self, host}};\n\
                  use super::Entry;\npub(crate) fn f<'a>(a: &'a str) { /* crate::sync /* crate::sync */ */ \
                  super::g(\"a crate::host\") }\nmod tests { use super::super::Entry; }";
    assert_eq!(check("src/kv/nats.rs", source), Vec::<String>::new());
    assert_eq!(check("src/lib.rs", "pub use crate::kv::Bucket;"), Vec::<String>::new());
}

#[test]
fn the_checker_refuses_peers_strangers_and_everything_at_once() {
    let peer = &check("src/events/mod.rs", "use crate::journal::Journal;")[0];
    assert!(peer.starts_with("src/events/mod.rs:1: events -> journal stays on the same level"), "{peer}");
    let stranger = &check("src/kv/mod.rs", "use crate::cellar::Wine;")[0];
    assert!(stranger.starts_with("src/kv/mod.rs:1: kv -> cellar leads to no room"), "{stranger}");
    let everything = &check("src/kv/mod.rs", "use crate::*;")[0];
    assert!(everything.starts_with("src/kv/mod.rs:1: kv -> * leads to no room"), "{everything}");
    let unplaced = &check("src/cellar.rs", "")[0];
    assert!(unplaced.starts_with("src/cellar.rs: cellar has no place in LAYERS"), "{unplaced}");
}

fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn all_sources() -> Vec<(String, String)> {
    ["src", "cmd", "tests", "benches", "packager"].into_iter().flat_map(sources).collect()
}

/// The Rust files below a directory of the project, by their path from the project.
fn sources(directory: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut directories = vec![project().join(directory)];
    directories.retain(|directory| directory.is_dir());
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(project()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found.sort();
    found
}

fn level(room: &str) -> Option<usize> {
    LAYERS.iter().position(|(rooms, _)| rooms.contains(&room))
}

/// The breaches of one file of `src/`.
fn check(path: &str, source: &str) -> Vec<String> {
    if path == "src/lib.rs" {
        return Vec::new();
    }
    let module = Path::new(path).strip_prefix("src").unwrap().with_extension("");
    let mut modules: Vec<&str> = module.iter().map(|part| part.to_str().unwrap()).collect();
    modules.pop_if(|last| *last == "mod");
    let room = modules[0];
    let Some(here) = level(room) else {
        return vec![format!("{path}: {room} has no place in LAYERS in tests/layering.rs: give it one")];
    };
    let judge = |(line, other): (usize, String)| {
        if other == room {
            return None;
        }
        let fault = match level(&other) {
            None => "leads to no room: name a room that is in LAYERS in tests/layering.rs",
            Some(there) if there == here => {
                "stays on the same level: give the two different rows in LAYERS in tests/layering.rs"
            }
            Some(there) if there < here => {
                "points up: a room uses only rooms below it, see LAYERS in tests/layering.rs"
            }
            Some(_) => return None,
        };
        Some(format!("{path}:{line}: {room} -> {other} {fault}"))
    };
    mentions(&tokens(source), modules.len()).into_iter().filter_map(judge).collect()
}

#[derive(Debug, Clone, PartialEq)]
enum Token {
    Word(String),
    /// `::`
    Step,
    Sign(char),
}

/// The words at the crate's root that a file names, each with its line. `depth` is the file's own depth below that root,
/// to which each `mod name { … }` around a mention adds one.
fn mentions(tokens: &[(usize, Token)], depth: usize) -> Vec<(usize, String)> {
    let token = |index: usize| tokens.get(index).map(|(_, token)| token);
    let is_word = |index: usize, text: &str| matches!(token(index), Some(Token::Word(word)) if word == text);
    let is_step = |index: usize| token(index) == Some(&Token::Step);
    let mut found = Vec::new();
    // For each open brace, whether it is a module's.
    let mut braces = Vec::new();
    let mut index = 0;
    while index < tokens.len() {
        match token(index) {
            Some(Token::Sign('{')) => braces.push(index >= 2 && is_word(index - 2, "mod")),
            Some(Token::Sign('}')) => _ = braces.pop(),
            Some(Token::Word(word)) if word == "crate" && is_step(index + 1) => {
                found.extend(roots(&tokens[index + 2..]));
            }
            Some(Token::Word(word)) if word == "super" && is_step(index + 1) => {
                let mut climbed = 1;
                while is_word(index + 2, "super") && is_step(index + 3) {
                    climbed += 1;
                    index += 2;
                }
                if climbed >= depth + braces.iter().filter(|is_module| **is_module).count() {
                    found.extend(roots(&tokens[index + 2..]));
                }
            }
            _ => {}
        }
        index += 1;
    }
    found
}

/// What follows `crate::`: one word, or the first words of a group.
fn roots(tokens: &[(usize, Token)]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut open = 0;
    let mut is_first = true;
    for (line, token) in tokens {
        match token {
            Token::Sign('{') => {
                open += 1;
                is_first = open == 1;
            }
            Token::Sign('}') => open -= 1,
            Token::Sign(',') => is_first = open == 1,
            Token::Word(word) if is_first => {
                found.push((*line, word.clone()));
                is_first = false;
            }
            Token::Sign('*') if is_first => found.push((*line, "*".to_owned())),
            _ => {}
        }
        if open <= 0 {
            break;
        }
    }
    found
}

/// Cuts a source into words and signs with their lines, without comments; of strings only those that are paths stay.
fn tokens(source: &str) -> Vec<(usize, Token)> {
    let mut found = Vec::new();
    let mut rest = source;
    let mut line = 1;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '/' if rest.starts_with("//") => rest.find('\n').unwrap_or(rest.len()),
            '/' if rest.starts_with("/*") => block_comment(rest),
            '"' => {
                let length = 1 + string_end(&rest[1..]);
                let content = rest[1..length].trim_end_matches('"');
                if content.starts_with("crate::") || content.starts_with("super::") {
                    found.extend(tokens(content).into_iter().map(|(_, token)| (line, token)));
                }
                length
            }
            'r' if rest[1..].trim_start_matches('#').starts_with('"') => {
                let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
                let end = format!("\"{}", "#".repeat(hashes));
                let start = hashes + 2;
                rest[start..].find(&end).map_or(rest.len(), |length| start + length + end.len())
            }
            // A character, or else the quote of a lifetime.
            '\'' if rest[1..].starts_with('\\') => 3 + rest[3..].find('\'').map_or(0, |length| length + 1),
            '\'' => match rest[1..].char_indices().nth(1) {
                Some((length, '\'')) => length + 2,
                _ => 1,
            },
            ':' if rest.starts_with("::") => {
                found.push((line, Token::Step));
                2
            }
            _ if first.is_alphanumeric() || first == '_' => {
                let length = rest.find(|next: char| !next.is_alphanumeric() && next != '_').unwrap_or(rest.len());
                found.push((line, Token::Word(rest[..length].to_owned())));
                length
            }
            _ => {
                if !first.is_whitespace() {
                    found.push((line, Token::Sign(first)));
                }
                first.len_utf8()
            }
        };
        line += rest[..length].matches('\n').count();
        rest = &rest[length..];
    }
    found
}

/// The length of a block comment; they nest.
fn block_comment(source: &str) -> usize {
    let mut depth = 0;
    let mut index = 0;
    while let Some(next) = source[index..].find(['/', '*']) {
        index += next;
        if source[index..].starts_with("/*") {
            depth += 1;
            index += 2;
        } else if source[index..].starts_with("*/") {
            depth -= 1;
            index += 2;
            if depth == 0 {
                return index;
            }
        } else {
            index += 1;
        }
    }
    source.len()
}

/// The length of a string's text with its closing quote.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (index, next) in text.char_indices() {
        match next {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return index + 1,
            _ => {}
        }
    }
    text.len()
}
