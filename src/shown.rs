//! Text from outside, made safe to show: what an agent, a server, a file or another node wrote may not move a cursor,
//! change a colour or a title, begin a line of its own, or turn the order of what follows it. In: any text. Out: the same
//! text with everything of that kind written as an escape that people can see.
//!
//! The programs' printer and the log call this for whatever they write, so that no command can forget it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a character does something else than stand on a line: control characters (also the 8-bit ones, of which a
/// terminal may take U+009B for the start of a sequence), line and paragraph separators, marks that turn the direction of
/// the text, and characters that nobody sees.
pub fn is_unsafe(character: char) -> bool {
    character.is_control()
        || matches!(
            character,
            '\u{ad}'
                | '\u{34f}'
                | '\u{61c}'
                | '\u{115f}'..='\u{1160}'
                | '\u{180e}'
                | '\u{200b}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{3164}'
                | '\u{feff}'
                | '\u{ffa0}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e0fff}'
        )
}

/// As one line: also line breaks and tabs are written as `\n` and `\t`.
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_unsafe, visibly)
}

/// As lines: only the line breaks stay what they are. For texts whose every line is ours to break.
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, acts_in_a_line, visibly)
}

/// At most this many characters of a text, on one line.
pub fn cut(text: &str, characters: usize) -> String {
    let end = text.char_indices().nth(characters).map(|(end, _)| end);
    match end {
        Some(end) => format!("{}…", line(text.get(..end).unwrap_or_default())),
        None => line(text).into_owned(),
    }
}

/// With as many characters as it had, for a line of a file below which something is underlined; line breaks stay.
pub fn columns(text: &str) -> Cow<'_, str> {
    escaped(text, acts_in_a_line, |output, character| {
        // What only separates looks as it does in an editor.
        output.push(if matches!(character, '\t' | '\r') { ' ' } else { '\u{fffd}' });
    })
}

/// A JSON document that means the same, whose strings show what is in them. Its own line breaks stay; JSON has none, and
/// no tabs, inside of strings.
pub fn json(document: &str) -> Cow<'_, str> {
    escaped(document, acts_in_a_line, |output, character| {
        for unit in character.encode_utf16(&mut [0; 2]) {
            // Writing to a String can't fail.
            _ = write!(output, "\\u{unit:04x}");
        }
    })
}

fn visibly(output: &mut String, character: char) {
    _ = match character {
        '\n' => output.write_str("\\n"),
        '\r' => output.write_str("\\r"),
        '\t' => output.write_str("\\t"),
        character if character.is_ascii() => write!(output, "\\x{:02x}", u32::from(character)),
        character => write!(output, "\\u{{{:x}}}", u32::from(character)),
    };
}

fn acts_in_a_line(character: char) -> bool {
    is_unsafe(character) && character != '\n'
}

fn escaped(text: &str, is_replaced: fn(char) -> bool, write: fn(&mut String, char)) -> Cow<'_, str> {
    if !text.chars().any(is_replaced) {
        return Cow::Borrowed(text);
    }
    let mut output = String::with_capacity(text.len() + 16);
    for character in text.chars() {
        if is_replaced(character) {
            write(&mut output, character);
        } else {
            output.push(character);
        }
    }
    Cow::Owned(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One of each kind that does something to a terminal or to a reader.
    const HOSTILE: &str =
        "a\u{1b}]0;t\u{7}\u{9b}2J\r\n\tb\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\u{e0041}\u{feff}\u{7f}é";

    #[test]
    fn one_line_shows_every_character_that_would_act() {
        let expected = r"a\x1b]0;t\x07\u{9b}2J\r\n\tb\u{202e}\u{2066}\u{200f}\u{61c}\u{2028}\u{e0041}\u{feff}\x7fé";
        assert_eq!(line(HOSTILE), expected);
        assert_eq!(lines("a\nb\r\n"), "a\nb\\r\n");
        assert!(matches!(line("plain: é, 漢, 🙂"), Cow::Borrowed(_)));
    }

    #[test]
    fn a_cut_text_is_safe_too() {
        assert_eq!(cut("\u{1b}abc", 2), r"\x1ba…");
        assert_eq!(cut("ab", 2), "ab");
    }

    #[test]
    fn columns_keep_their_numbers() {
        let shown = columns(HOSTILE);
        assert_eq!(shown.chars().count(), HOSTILE.chars().count());
        assert!(!shown.chars().any(|character| is_unsafe(character) && character != '\n'));
    }

    #[test]
    fn json_means_the_same_and_has_no_character_that_acts() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, 1] });
        let document = serde_json::to_string_pretty(&value).unwrap();
        let shown = json(&document);
        assert!(!shown.chars().any(|character| is_unsafe(character) && character != '\n'), "{shown}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&shown).unwrap(), value);
    }
}
