//! GJSON paths (<https://github.com/tidwall/gjson/blob/master/SYNTAX.md>), by which templates, expressions and settings
//! look into facts and data. In: a JSON text and a path. Out: the value there, or why it can't be told.
//!
//! The library calls itself for each bracket and each part of a path, and copies a document for each branch of
//! `[a,b]`: five kilobytes of `[` end the process, and `[@this,@this]|[@this,@this]|…` doubles without end. So every path
//! is judged here before the library sees it, by counts that no quote and no escape can hide from.

use serde_json::Value;

/// Longest path in bytes.
pub const MAXIMUM_PATH_BYTES: usize = 1024;
/// Most parts of a path: what `.` and `|` separate.
const MAXIMUM_PARTS: usize = 64;
/// Most opening brackets, braces and parentheses in a path, and so their depth.
const MAXIMUM_BRACKETS: usize = 32;
/// Most `*` in a path.
const MAXIMUM_WILDCARDS: usize = 16;
/// What the library may make on the way, in bytes; also how many bytes it may look at.
const MAXIMUM_WORK_BYTES: usize = 64 * 1024 * 1024;
/// The text of a value that is found may be this long, in bytes.
const MAXIMUM_FOUND_BYTES: usize = 4 * 1024 * 1024;
/// `@pretty` indents each line by as much as the document is deep; ours are less deep than this.
const DEEPEST_DOCUMENT: usize = 512;

/// A path that is refused, or that gave no answer. None of these means that there is no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    #[error("the path {path:?} has {bytes} bytes, the limit is {MAXIMUM_PATH_BYTES}; shorten it")]
    TooLong { path: String, bytes: usize },
    #[error("the path {path:?} has more than {limit} {what}; shorten it")]
    TooMany { path: String, what: &'static str, limit: usize },
    #[error("the path {path:?} would take too much work on {bytes} bytes of JSON; look up a part of them")]
    TooMuchWork { path: String, bytes: usize },
    #[error("what the path {path:?} finds has {bytes} bytes, the limit is {MAXIMUM_FOUND_BYTES}; look up a part of it")]
    TooLarge { path: String, bytes: usize },
    #[error("what the path {path:?} finds is not JSON: {reason}")]
    NotJson { path: String, reason: String },
    #[error("the path {path:?} can't be followed, by a fault of the library that does it; write it in another way")]
    Library { path: String },
}

/// Judges a path as far as that needs no document; for those who check a machine before it runs.
///
/// # Errors
/// When it is too long or has too many parts.
pub fn check_path(path: &str) -> Result<(), QueryError> {
    if path.len() > MAXIMUM_PATH_BYTES {
        return Err(QueryError::TooLong { path: shown(path), bytes: path.len() });
    }
    for (what, signs, limit) in [
        ("parts", "|.", MAXIMUM_PARTS - 1),
        ("brackets, braces and parentheses", "[{(", MAXIMUM_BRACKETS),
        ("wildcards", "*", MAXIMUM_WILDCARDS),
    ] {
        if count(path, signs) > limit {
            return Err(QueryError::TooMany { path: shown(path), what, limit });
        }
    }
    Ok(())
}

/// The value at a GJSON path of a JSON text; `None` when there is none.
///
/// # Errors
/// When the path is refused, or there is something that is no answer. That is not the same as "none".
pub fn query(json: &str, path: &str) -> Result<Option<Value>, QueryError> {
    check_path(path)?;
    if work(json, path) > MAXIMUM_WORK_BYTES {
        return Err(QueryError::TooMuchWork { path: shown(path), bytes: json.len() });
    }
    // The bounds above keep the stack whole; this is for a slip of an index in the library, which is not ours to exclude.
    let found = std::panic::catch_unwind(|| {
        let value = gjson::get(json, path);
        value.exists().then(|| match value.json() {
            text if text.len() > MAXIMUM_FOUND_BYTES => Err(text.len()),
            text => Ok(text.to_owned()),
        })
    });
    match found {
        Err(_) => Err(QueryError::Library { path: shown(path) }),
        Ok(None) => Ok(None),
        Ok(Some(Err(bytes))) => Err(QueryError::TooLarge { path: shown(path), bytes }),
        Ok(Some(Ok(text))) => serde_json::from_str(&text)
            .map(Some)
            .map_err(|error| QueryError::NotJson { path: shown(path), reason: error.to_string() }),
    }
}

/// What a query takes, in bytes that are made or looked at: for those who ask often, and have a budget for it.
pub fn cost(json: &str, path: &str) -> usize {
    json.len().max(work(json, path))
}

/// At most so many bytes are made or looked at on the way.
fn work(json: &str, path: &str) -> usize {
    let matching = wildcard_work(json, path);
    if count(path, "[{(@#") == 0 {
        return matching;
    }
    // However the commas are spread over the brackets, the product of their branches is not larger than this.
    let (brackets, commas) = (count(path, "[{("), count(path, ","));
    let branches = if brackets == 0 { 1 } else { commas.div_ceil(brackets) + 1 };
    let growth = branches.saturating_pow(u32::try_from(brackets).unwrap_or(u32::MAX));
    let indentation = if path.contains("@pretty") { path.len().saturating_mul(DEEPEST_DOCUMENT) } else { 1 };
    let parts = count(path, "|.") + 1;
    [growth, indentation, parts].iter().fold(json.len().max(matching), |work, factor| work.saturating_mul(*factor))
}

/// The library tries every place for a `*` that something follows, and in each again every place for the next.
fn wildcard_work(json: &str, path: &str) -> usize {
    // A pattern in parentheses may have dots and commas of its own.
    let separators: &[char] = if path.contains('(') { &[] } else { &['.', '|', ',', ':', '[', ']', '{', '}'] };
    let tries = |part: &str| count(part.trim_end_matches('*'), "*");
    let most = path.split(separators).map(tries).max().unwrap_or_default();
    let Some(again) = most.checked_sub(1) else { return 0 };
    let longest = if again == 0 { 1 } else { json.split('"').map(str::len).max().unwrap_or_default() };
    json.len().saturating_mul(longest.saturating_pow(u32::try_from(again).unwrap_or(u32::MAX)))
}

fn count(path: &str, signs: &str) -> usize {
    path.chars().filter(|character| signs.contains(*character)).count()
}

/// For messages.
fn shown(path: &str) -> String {
    path.chars().take(80).collect()
}

/// The first key of a path, and the rest of it; for what depends on which item is looked up.
pub fn split_first(path: &str) -> (String, &str) {
    let mut first = String::new();
    let mut characters = path.char_indices();
    while let Some((offset, character)) = characters.next() {
        match character {
            '\\' => first.extend(characters.next().map(|(_, escaped)| escaped)),
            '.' | '|' => return (first, path.get(offset + 1..).unwrap_or_default()),
            _ => first.push(character),
        }
    }
    (first, "")
}

/// One key as part of a path, with what would otherwise mean something escaped.
pub fn escaped(key: &str) -> String {
    let mut path = String::with_capacity(key.len());
    for character in key.chars() {
        if ".|#@*?\\!{}[]()=<>%".contains(character) {
            path.push('\\');
        }
        path.push(character);
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_comes_apart_at_the_first_dot_that_is_not_escaped() {
        assert_eq!(split_first("a.b.c"), ("a".to_owned(), "b.c"));
        assert_eq!(split_first("a\\.b.c"), ("a.b".to_owned(), "c"));
        assert_eq!(split_first("a|@keys"), ("a".to_owned(), "@keys"));
        assert_eq!(split_first("a"), ("a".to_owned(), ""));
        assert_eq!(split_first(&escaped("a.b|c")), ("a.b|c".to_owned(), ""));
        assert_eq!(query("{\"a.b\": 1}", &escaped("a.b")), Ok(Some(1.into())));
        assert_eq!(query("{\"a\": 1}", "b"), Ok(None));
    }

    fn refusal(json: &str, path: &str) -> String {
        query(json, path).unwrap_err().to_string()
    }

    #[test]
    fn a_path_that_would_overflow_the_stack_is_refused_before_the_library_sees_it() {
        for open in ["[", "{", "#(", "[{", "a.#(b.#(", "a|[", "[\"[", "\\[["] {
            let path = open.repeat(5_000 / open.len());
            assert!(refusal("[]", &path).contains("bytes, the limit is 1024"), "{open}");
            let path = open.repeat(1_000 / open.len());
            let message = refusal("[]", &path);
            assert!(message.contains("has more than"), "{open}: {message}");
        }
        assert!(refusal("[]", &"@this|".repeat(100)).contains("has more than 63 parts"));
        assert!(refusal("[]", &"a.".repeat(100)).contains("has more than 63 parts"));
        assert!(refusal("[]", &"*a".repeat(17)).contains("has more than 16 wildcards"));
    }

    #[test]
    fn a_path_that_multiplies_its_document_is_refused_by_the_work_that_it_would_be() {
        let doubled = ["[@this,@this]"; 30].join("|");
        assert!(refusal("{\"a\": 1}", &doubled).contains("would take too much work on 8 bytes of JSON"));
        let indented = format!("@pretty:{{\"indent\":\"{}\"}}", " ".repeat(900));
        assert!(
            refusal(&format!("{{\"a\": {}1{}}}", "[".repeat(100), "]".repeat(100)), &indented).contains("too much")
        );
        let text = format!("{{\"a\": \"{}\"}}", "x".repeat(100_000));
        assert!(refusal(&text, "#(a%\"*x*.*x*y\")").contains("too much work"));
        assert!(refusal(&text.replace("\"a\"", &format!("\"{}\"", "x".repeat(9_999))), "*x*x*y").contains("too much"));
        let large = format!("{{\"a\": \"{}\"}}", "x".repeat(MAXIMUM_FOUND_BYTES));
        assert!(refusal(&large, "a").contains("the limit is 4194304; look up a part of it"));
    }

    #[test]
    fn paths_that_people_write_are_followed() {
        let json =
            r#"{"n": {"f": "T", "l": "A"}, "c": ["S", "A", "J"], "fr": [{"f": "J", "a": 4}, {"f": "R", "a": 6}]}"#;
        for (path, expected) in [
            ("n.l", "\"A\""),
            ("c.#", "3"),
            ("ch*.1|@this", ""),
            ("c*.1", "\"A\""),
            ("fr.#.f", "[\"J\",\"R\"]"),
            ("fr.#(f%\"J*\").a", "4"),
            ("fr.#(a>4)#.f", "[\"R\"]"),
            ("c|@reverse|0", "\"J\""),
            ("{n.l,c.0}", "{\"0\":\"S\",\"l\":\"A\"}"),
            ("n.@pretty", "{\"f\":\"T\",\"l\":\"A\"}"),
        ] {
            let found = query(json, path).unwrap().map(|value| value.to_string()).unwrap_or_default();
            assert_eq!(found, expected, "{path}");
        }
    }

    /// A document as deep as ours get, and paths as near to the bounds as they get, on a quarter of a worker's stack.
    #[test]
    fn what_is_let_through_keeps_within_a_small_stack() {
        let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(260), close.repeat(260));
        let mut documents = vec![deep("[", "]"), deep("{\"a\":", "}"), deep("[{\"a\":", "}]")];
        documents.push("{\"a\": [1, {\"b\": \"c\"}]}".to_owned());
        let mut paths = Vec::new();
        for part in
            ["@this", "@flatten:{\"deep\":true}", "@pretty", "@ugly", "@reverse", "@join", "@valid", "a", "0", "#"]
        {
            for separator in [".", "|"] {
                paths.push(vec![part; 63.min(900 / (part.len() + 1))].join(separator));
            }
        }
        for (open, close) in [("[", "]"), ("{", "}"), ("#(", ")"), ("#(a.#(", "))"), ("[a|[", "]]")] {
            let times = MAXIMUM_BRACKETS / count(open, "[{(");
            paths.push(format!("{}a{}", open.repeat(times), close.repeat(times)));
            paths.push(open.repeat(times));
        }
        let look = move || {
            for document in &documents {
                for path in &paths {
                    _ = query(document, path);
                }
            }
        };
        std::thread::Builder::new().stack_size(512 * 1024).spawn(look).unwrap().join().unwrap();
    }

    /// `MACHINES_SOAK=20` for 20 times as many.
    #[test]
    fn no_mutated_path_breaks_the_library_or_the_stack() {
        let rounds = 1_500 * std::env::var("MACHINES_SOAK").ok().map_or(1, |times| times.parse().unwrap());
        let json = r#"{"a": {"b.c": [1, -2.5e3, {"d": "é\"\\\u00e9"}, [], {}, null]}, "x*": "y\n", "é": [[1, [2]], "s"], "": 0}"#;
        let pieces = [
            "a",
            "b\\.c",
            ".",
            "|",
            "#",
            "#(",
            ")",
            "#(d=\"",
            "\")#",
            "[",
            "]",
            "{",
            "}",
            ",",
            ":",
            "@this",
            "@flatten",
            "@join",
            "@pretty",
            ":{\"deep\":true}",
            "@reverse",
            "@ugly",
            "@valid",
            "@",
            "*",
            "?",
            "\\",
            "\"",
            "é",
            "~true",
            "%",
            "!%",
            "!=",
            "<",
            "==",
            "..",
            "0",
            "-1",
            "99999999999999999999",
            "\u{0}",
            " ",
            "\\u00",
            "1.5e",
            "x",
            "!",
            "\n",
        ];
        let look = move || {
            // A plain generator (Knuth's): the same paths each time.
            let mut state = 7_u64;
            let mut next = move |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                usize::try_from(state >> 33).unwrap() % below
            };
            let (mut broken, mut found) = (Vec::new(), 0);
            for _ in 0..rounds {
                let path: String = (0..=next(12)).map(|_| pieces[next(pieces.len())]).collect();
                match query(json, &path) {
                    Err(QueryError::Library { path }) => broken.push(path),
                    Ok(Some(_)) => found += 1,
                    _ => {}
                }
            }
            (broken, found)
        };
        let looking = std::thread::Builder::new().stack_size(512 * 1024).spawn(look).unwrap();
        let (broken, found) = looking.join().unwrap();
        assert!(found > rounds / 100, "only {found} paths found something");
        assert!(broken.is_empty(), "{broken:?}");
    }
}
