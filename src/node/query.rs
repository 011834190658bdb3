//! GJSON paths (<https://github.com/tidwall/gjson/blob/master/SYNTAX.md>), by which templates, expressions and settings
//! look into facts and data. In: a JSON text and a path. Out: the value there.

use serde_json::Value;

/// The value at a GJSON path of a JSON text; `None` when there is none.
pub fn query(json: &str, path: &str) -> Option<Value> {
    // The library is handed texts that we have written ourselves, but paths that anyone may have.
    let found = std::panic::catch_unwind(|| {
        let value = gjson::get(json, path);
        value.exists().then(|| value.json().to_owned())
    });
    found.ok().flatten().and_then(|text| serde_json::from_str(&text).ok())
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
        assert_eq!(query("{\"a.b\": 1}", &escaped("a.b")), Some(1.into()));
        assert_eq!(query("{\"a\": 1}", "b"), None);
    }
}
