//! What is secret, and how it looks where it is seen. In: secrets as they are used, and texts that may hold one: a URL, a
//! line of a file, a message of somebody else. Out: the same with the secret masked.
//!
//! A secret of ours has a type that shows nothing ([`Secret`], [`SecretUrl`]). [`masked`] is the net below: for texts of
//! which nobody knows what is in them.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use url::Url;
use zeroize::Zeroizing;

/// A text that debug output hides and that is wiped from memory when dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<String>);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Self(Zeroizing::new(text.into()))
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("(hidden)")
    }
}

/// A URL that may have a user, a password, a token in its query or its fragment: shown without them.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(Url);

impl SecretUrl {
    pub fn new(url: Url) -> Self {
        Self(url)
    }

    /// The URL itself, for the one place that asks there.
    pub fn expose(&self) -> &Url {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&address(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&address(&self.0))
    }
}

/// Where a URL leads, without what may be secret in it; that it has a query is said.
pub fn address(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    let (mark, query) = if url.query().is_some() { ("?", SHOWN_QUERY) } else { ("", "") };
    format!("{}://{host}{port}{}{mark}{query}", url.scheme(), url.path())
}

/// What stands for a query.
const SHOWN_QUERY: &str = "…";

/// How many digits and letters of base 32 an nkey seed has.
const SEED_CHARACTERS: usize = 58;
/// A private key of ours in hexadecimal digits.
const PRIVATE_KEY_DIGITS: usize = 128;

/// Whether a text has the form of an nkey seed of any kind (`SU…` is a user's).
pub fn looks_like_seed(text: &str) -> bool {
    let mut characters = text.bytes();
    text.len() == SEED_CHARACTERS
        && characters.next() == Some(b'S')
        && characters.next().is_some_and(|kind| b"UOANCX".contains(&kind))
        && characters.all(|byte| matches!(byte, b'A'..=b'Z' | b'2'..=b'7'))
}

/// Whether a text holds a private key in PEM.
pub fn holds_private_key(text: &str) -> bool {
    !pem_keys(text).is_empty()
}

fn is_key_material(word: &str) -> bool {
    looks_like_seed(word) || (word.len() >= PRIVATE_KEY_DIGITS && word.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// Any text with what is secret by its form masked: users and passwords in URLs, their queries and fragments, private
/// keys. Every other character keeps its column.
pub fn masked(text: &str) -> Cow<'_, str> {
    cover(text, by_form(text))
}

/// As [`masked`], for the text of a file of settings, of a machine or of a list of machines: there also the values of
/// keys that are secret by their name.
pub fn masked_source(text: &str) -> Cow<'_, str> {
    let mut found = by_form(text);
    found.extend(by_name(text));
    cover(text, found)
}

/// As [`masked_source`], for settings in TOML. Besides, what is given to a key that is not known (`passwrd`), and every long
/// word of digits and letters: what was put where a public key belongs may be the seed of a private one, and of 16 seeds one
/// looks like a public key in every way.
pub fn masked_settings(text: &str, is_known: impl Fn(&str) -> bool) -> Cow<'_, str> {
    /// Longer than any word of settings, shorter than half of a key.
    const LONG: usize = 32;
    let mut found = by_form(text);
    found.extend(by_name(text));
    found.extend(words(text).filter(|(_, word)| word.len() >= LONG).map(|(range, _)| range));
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let end = offset + line.trim_end().len();
        let start = offset;
        offset += line.len();
        let Some((key, value)) = line.split_once('=').filter(|_| !line.trim_start().starts_with('#')) else { continue };
        let name = key.rsplit('.').next().unwrap_or_default().trim().trim_matches(['"', '\'']);
        if !is_known(name) {
            found.push(start + line.len() - value.trim_start().len()..end);
        }
    }
    cover(text, found)
}

fn by_form(text: &str) -> Vec<Range<usize>> {
    let mut found = pem_keys(text);
    found.extend(words(text).filter(|(_, word)| is_key_material(word)).map(|(range, _)| range));
    for (range, run) in runs(text) {
        in_run(range.start, run, &mut found);
    }
    found
}

fn cover(text: &str, mut ranges: Vec<Range<usize>>) -> Cow<'_, str> {
    ranges.retain(|range| !range.is_empty());
    if ranges.is_empty() {
        return Cow::Borrowed(text);
    }
    let hide = |(offset, character): (usize, char)| {
        let covered = character != '\n' && ranges.iter().any(|range| range.contains(&offset));
        if covered { '*' } else { character }
    };
    Cow::Owned(text.char_indices().map(hide).collect())
}

/// Words of ASCII digits and letters.
fn words(text: &str) -> impl Iterator<Item = (Range<usize>, &str)> {
    pieces(text, |character| !character.is_ascii_alphanumeric())
}

/// What stands between blanks and quotes: a URL is in one of them.
fn runs(text: &str) -> impl Iterator<Item = (Range<usize>, &str)> {
    pieces(text, |character| character.is_whitespace() || matches!(character, '"' | '\'' | '`' | '<' | '>'))
}

fn pieces(text: &str, ends: fn(char) -> bool) -> impl Iterator<Item = (Range<usize>, &str)> {
    let mut offset = 0;
    text.split(ends).map(move |piece| {
        let start = offset;
        // What ended it is one character, whose length only the text knows.
        let end = start + piece.len();
        offset = end + text.get(end..).and_then(|rest| rest.chars().next()).map_or(0, char::len_utf8);
        (start..end, piece)
    })
}

/// Users and passwords before an `@`, and what follows the `?` or the `#` of a URL.
fn in_run(offset: usize, run: &str, found: &mut Vec<Range<usize>>) {
    // A list of servers is one run.
    let mut start = offset;
    for part in run.split_inclusive(',') {
        let begins = start;
        start += part.len();
        let Some(scheme) = part.find("://") else {
            // `user:password@host`, which is taken for an address too.
            if let Some(at) = part.rfind('@').filter(|at| part.get(..*at).is_some_and(|before| before.contains(':'))) {
                found.push(begins..begins + at);
            }
            continue;
        };
        let authority = scheme + "://".len();
        let Some(rest) = part.get(authority..) else { continue };
        let secret_starts = rest.find(['?', '#']).map(|offset| offset + 1);
        let host_and_port = rest.split(['/', '?', '#']).next().unwrap_or_default();
        if let Some(at) = rest.rfind('@') {
            let before = rest.get(..at).unwrap_or_default();
            let host = before.split('/').next().unwrap_or_default();
            // In a path, as of `https://host/@scope`, it means nothing.
            if !before.contains('/') || host.contains(':') || host.contains('@') {
                found.push(begins + authority..begins + authority + at);
            }
        } else if let Some((host, port)) = host_and_port.rsplit_once(':').filter(|(_, port)| !port.ends_with(']')) {
            // No port: a password whose host is missing.
            let port = port.trim_end_matches([',', '.', ';', ':', ')', '}']);
            let starts = begins + authority + host.len() + 1;
            if !port.bytes().all(|byte| byte.is_ascii_digit()) {
                found.push(starts..starts + port.len());
            }
        }
        if let Some(secret) =
            secret_starts.filter(|start| rest.get(*start..).is_some_and(|after| !after.starts_with(SHOWN_QUERY)))
        {
            let end = part.trim_end_matches([',', '.', ';', ':', ')']).len();
            found.push(begins + authority + secret..begins + end.max(authority + secret));
        }
    }
}

/// The lines of private keys in PEM, without their first and last line.
fn pem_keys(text: &str) -> Vec<Range<usize>> {
    const HEAD: &str = "PRIVATE KEY-----";
    const TAIL: &str = "-----END";
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(head) = text.get(from..).and_then(|rest| rest.find(HEAD)) {
        let start = from + head + HEAD.len();
        let end = text.get(start..).and_then(|rest| rest.find(TAIL)).map_or(text.len(), |tail| start + tail);
        found.push(start..end);
        from = end;
    }
    found
}

/// How the names of secrets end.
const SECRET_ENDS: [&str; 5] = ["token", "nkey", "seed", "private_key", "api_key"];
/// What is in the names of secrets, also in misspelt ones: those are repeated to say that they are unknown.
const SECRET_PARTS: [&str; 7] = ["passw", "pasw", "passph", "pwd", "secret", "credential", "apikey"];

fn is_secret_name(name: &str) -> bool {
    SECRET_ENDS.iter().any(|end| name.ends_with(end)) || SECRET_PARTS.iter().any(|part| name.contains(part))
}

/// The values of keys that are secret by their name, in TOML, YAML or JSON.
fn by_name(text: &str) -> Vec<Range<usize>> {
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut offset = 0;
    for line in text.split_inclusive('\n') {
        let start = offset;
        offset += line.len();
        let mut from = 0;
        while let Some(value) = secret_value(line, from) {
            let range = extent(text, start, line, value);
            from = range.end.saturating_sub(start).max(value + 1);
            found.push(range);
        }
    }
    found
}

/// Where the value of the next secret key of a line begins, at or after `from`.
fn secret_value(line: &str, from: usize) -> Option<usize> {
    let rest = line.get(from..)?;
    let separators = rest.char_indices().filter(|(_, character)| matches!(character, ':' | '='));
    for (offset, separator) in separators {
        let before = rest.get(..offset)?.trim_end().trim_end_matches(['"', '\'']);
        let name_starts = before
            .char_indices()
            .rev()
            .take_while(|(_, character)| character.is_ascii_alphanumeric() || matches!(character, '_' | '-'))
            .last()
            .map_or(before.len(), |(start, _)| start);
        let name = before.get(name_starts..)?.to_ascii_lowercase().replace('-', "_");
        if is_secret_name(&name) {
            let after = rest.get(offset + separator.len_utf8()..)?;
            let blanks = after.len() - after.trim_start_matches([' ', '\t']).len();
            return Some(from + offset + separator.len_utf8() + blanks);
        }
    }
    None
}

/// How far a value reaches that begins at `value` of the line at `line_start`.
fn extent(text: &str, line_start: usize, line: &str, value: usize) -> Range<usize> {
    let begins = line_start + value;
    let rest = text.get(begins..).unwrap_or_default();
    let on_line = line.get(value..).unwrap_or_default().trim_end();
    for quotes in ["\"\"\"", "'''"] {
        if let Some(inside) = rest.strip_prefix(quotes) {
            let length = inside.find(quotes).unwrap_or(inside.len());
            return begins + quotes.len()..begins + quotes.len() + length;
        }
    }
    match on_line.chars().next() {
        Some(quote @ ('"' | '\'')) => begins + 1..begins + closing_quote(on_line, quote),
        // A block of YAML: every line that is indented more.
        Some('|' | '>') => {
            let indent = |line: &str| line.len() - line.trim_start().len();
            let of_key = indent(line);
            let block =
                rest.split_inclusive('\n').skip(1).take_while(|line| line.trim().is_empty() || indent(line) > of_key);
            let first = rest.split_inclusive('\n').next().map_or(0, str::len);
            begins + first..begins + first + block.map(str::len).sum::<usize>()
        }
        _ => begins..begins + on_line.len(),
    }
}

/// Where the closing quote of a text stands, or the end of the line.
fn closing_quote(text: &str, quote: char) -> usize {
    let mut escaped = false;
    for (offset, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' if quote == '"' => escaped = true,
            _ if character == quote => return offset,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SEED: &str = "SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY";

    #[test]
    fn urls_are_shown_without_users_passwords_queries_and_fragments() {
        for (text, expected) in [
            ("nats://ann:hunter2@a:4222,tls://b:1", "nats://***********@a:4222,tls://b:1"),
            ("nats://hunter2@a", "nats://*******@a"),
            ("nats://ann:hunter2", "nats://ann:*******"),
            (
                "(nats://a:4222), https://[::1]:80/ https://[::1] nats://a:",
                "(nats://a:4222), https://[::1]:80/ https://[::1] nats://a:",
            ),
            ("https://a/b?…: gone", "https://a/b?…: gone"),
            ("ann:hunter2@a:4222", "***********@a:4222"),
            ("https://ann:hu/nter2@a/b", "https://************@a/b"),
            ("see https://a/b?token=hunter2#x, then", "see https://a/b?***************, then"),
            ("'https://a/b#hunter2'", "'https://a/b#*******'"),
            ("https://a/@scope/b at ann@b", "https://a/@scope/b at ann@b"),
        ] {
            assert_eq!(masked(text), expected);
        }
        let url = SecretUrl::new(Url::parse("https://ann:hunter2@a:1/b?c=hunter2#hunter2").unwrap());
        assert_eq!(format!("{url} {url:?}"), "https://a:1/b?… https://a:1/b?…");
    }

    #[test]
    fn private_keys_are_known_by_their_form() {
        let ours = "0f".repeat(64);
        let pem = "-----BEGIN EC PRIVATE KEY-----\nabc\n-----END EC PRIVATE KEY-----";
        assert!(holds_private_key(pem) && !holds_private_key("-----BEGIN CERTIFICATE-----\nabc"));
        assert_eq!(masked(&ours), "*".repeat(128));
        assert_eq!(masked(&format!("a {SEED} b")), format!("a {} b", "*".repeat(58)));
        assert_eq!(masked(pem), "-----BEGIN EC PRIVATE KEY-----\n***\n-----END EC PRIVATE KEY-----");
        let plain = "0f".repeat(32);
        assert_eq!(masked(&plain), plain);
    }

    #[test]
    fn values_of_secret_keys_are_masked_in_every_notation() {
        for (text, expected) in [
            ("password = \"hunter2\" # x", "password = \"*******\" # x"),
            ("kv.token='hunter2'", "kv.token='*******'"),
            ("  password: hunter2 and more\n", "  password: ****************\n"),
            ("{username: a, password: \"h\\\"2\", match: b}", "{username: a, password: \"****\", match: b}"),
            ("{\"password\":\"hunter2\",\"token\":\"t\"}", "{\"password\":\"*******\",\"token\":\"*\"}"),
            ("password = \"\"\"\nhunter\n2\"\"\"\nurl = 1", "password = \"\"\"\n******\n*\"\"\"\nurl = 1"),
            ("a:\n  secret: |\n    hunter\n    2\n  b: 1\n", "a:\n  secret: |\n**********\n*****\n  b: 1\n"),
            ("  - DB_PASSWORD=hunter2", "  - DB_PASSWORD=*******"),
            ("token = [\"hunter2\"]", "token = ***********"),
            ("passwrd: hunter2", "passwrd: *******"),
            ("token_file = \"/etc/token\"", "token_file = \"/etc/token\""),
            ("tokens: 5", "tokens: 5"),
        ] {
            assert_eq!(masked_source(text), expected);
        }
    }

    #[test]
    fn columns_stay_also_beside_wide_characters() {
        let text = "é: https://ann:hünter@a/é";
        assert_eq!(masked(text), "é: https://**********@a/é");
    }

    #[test]
    fn settings_show_no_long_word_and_no_value_of_an_unknown_key() {
        let key = "ab".repeat(32);
        let text = format!("public_keys = [\"{key}\"]\n# a = b\nkv.pw = \"hunter2\"\nurl = \"a\"\nx =\n");
        let shown = masked_settings(&text, |key| ["public_keys", "url"].contains(&key));
        let expected =
            format!("public_keys = [\"{}\"]\n# a = b\nkv.pw = *********\nurl = \"a\"\nx =\n", "*".repeat(64));
        assert_eq!(shown, expected);
    }
}
