//! Text to tokens. In: an expression within the length limit. Out: tokens with their byte offsets; strings are
//! unescaped as the language defines it (<https://expr-lang.org/docs/language-definition>).

use super::error::Problem;
use super::limits;

/// A token and the byte offset at which it starts.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) offset: usize,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Kind {
    Integer(i64),
    Float(f64),
    Text(String),
    /// A name or a word operator; the parser tells them apart.
    Word(String),
    /// An operator or a bracket.
    Sign(&'static str),
    End,
}

impl Kind {
    /// The token as a message shows it.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(value) => format!("the number {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(_) => "a string".to_owned(),
            Self::Word(word) => format!("{:?}", shorten(word)),
            Self::Sign(sign) => format!("{sign:?}"),
            Self::End => "the end of the expression".to_owned(),
        }
    }
}

/// Cuts a text from outside to what fits into a message.
pub(super) fn shorten(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Longer signs first, so that `??` is not read as two `?`.
const SIGNS: [&str; 30] = [
    "..", "?.", "??", "&&", "||", "==", "!=", "<=", ">=", "**", "(", ")", "[", "]", "{", "}", ",", ":", ";", "?", ".",
    "+", "-", "*", "/", "%", "^", "<", ">", "!",
];

/// A problem and the byte offset of its place.
pub(super) type Refused = (usize, Problem);

/// # Errors
/// The first character, string, number or comment that is not of the language.
pub(super) fn tokens(source: &str) -> Result<Vec<Token>, Refused> {
    if source.len() > limits::LENGTH_BYTES {
        return Err((0, Problem::TooLong { bytes: source.len() }));
    }
    let mut lexer = Lexer { source, position: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank()?;
        let offset = lexer.position;
        let kind = lexer.token()?;
        let last = kind == Kind::End;
        tokens.push(Token { kind, offset });
        if last {
            return Ok(tokens);
        }
    }
}

struct Lexer<'a> {
    source: &'a str,
    position: usize,
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.source.get(self.position..).unwrap_or_default()
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let character = self.peek()?;
        self.position += character.len_utf8();
        Some(character)
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let length = rest.find(|character| !accept(character)).unwrap_or(rest.len());
        self.position += length;
        rest.get(..length).unwrap_or_default()
    }

    fn skip_blank(&mut self) -> Result<(), Refused> {
        loop {
            self.take_while(|character| matches!(character, ' ' | '\t' | '\r' | '\n'));
            let rest = self.rest();
            if rest.starts_with("//") {
                self.take_while(|character| character != '\n');
            } else if rest.starts_with("/*") {
                let end = rest.find("*/").ok_or((self.position, Problem::UnterminatedComment))?;
                self.position += end + 2;
            } else {
                return Ok(());
            }
        }
    }

    fn token(&mut self) -> Result<Kind, Refused> {
        let offset = self.position;
        let Some(first) = self.peek() else {
            return Ok(Kind::End);
        };
        let second = self.rest().chars().nth(1);
        match first {
            '"' | '\'' => self.quoted(first),
            '`' => self.raw(),
            '0'..='9' => self.number(),
            '.' if second.is_some_and(|character| character.is_ascii_digit()) => self.number(),
            'a'..='z' | 'A'..='Z' | '_' | '$' => {
                let word = self.take_while(|character| character.is_ascii_alphanumeric() || "_$".contains(character));
                Ok(Kind::Word(word.to_owned()))
            }
            '|' if second != Some('|') => {
                Err(unavailable(offset, "the pipe operator |", "write the call as name(value); \"or\" is ||"))
            }
            '#' => Err(unavailable(offset, "the placeholder #", "expressions have no closures")),
            _ => match SIGNS.into_iter().find(|sign| self.rest().starts_with(sign)) {
                Some(sign) => {
                    self.position += sign.len();
                    Ok(Kind::Sign(sign))
                }
                None => Err((offset, Problem::BadCharacter { character: first })),
            },
        }
    }

    fn raw(&mut self) -> Result<Kind, Refused> {
        let offset = self.position;
        self.next();
        let text = self.take_while(|character| character != '`');
        match self.next() {
            Some(_) => Ok(Kind::Text(text.to_owned())),
            None => Err((offset, Problem::UnterminatedString { quote: '`' })),
        }
    }

    fn quoted(&mut self, quote: char) -> Result<Kind, Refused> {
        let offset = self.position;
        self.next();
        let mut text = String::new();
        loop {
            let place = self.position;
            match self.next() {
                Some('\n' | '\r') | None => return Err((offset, Problem::UnterminatedString { quote })),
                Some(character) if character == quote => return Ok(Kind::Text(text)),
                Some('\\') => text.push(self.escape(place)?),
                Some(character) => text.push(character),
            }
        }
    }

    /// Reads what follows a backslash.
    fn escape(&mut self, place: usize) -> Result<char, Refused> {
        let value = match self.next() {
            Some('a') => Some('\u{7}'),
            Some('b') => Some('\u{8}'),
            Some('f') => Some('\u{c}'),
            Some('n') => Some('\n'),
            Some('r') => Some('\r'),
            Some('t') => Some('\t'),
            Some('v') => Some('\u{b}'),
            Some(character @ ('\\' | '\'' | '"' | '`' | '/')) => Some(character),
            Some('x') => self.hexadecimal(2),
            Some('u') => self.hexadecimal(4),
            Some('U') => self.hexadecimal(8),
            _ => None,
        };
        value.ok_or_else(|| {
            let escape = self.source.get(place..self.position).unwrap_or_default().to_owned();
            (place, Problem::BadEscape { escape })
        })
    }

    fn hexadecimal(&mut self, digits: usize) -> Option<char> {
        let mut value = 0u32;
        for _ in 0..digits {
            value = value.checked_mul(16)?.checked_add(self.peek()?.to_digit(16)?)?;
            self.next();
        }
        char::from_u32(value)
    }

    fn number(&mut self) -> Result<Kind, Refused> {
        let offset = self.position;
        let mut text = self.take_while(|character| character.is_ascii_alphanumeric() || character == '_').to_owned();
        let prefix = text.get(..2).unwrap_or_default().to_ascii_lowercase();
        let radix = match prefix.as_str() {
            "0x" => 16,
            "0o" => 8,
            "0b" => 2,
            _ => 10,
        };
        let mut float = false;
        if radix == 10 {
            // `1..2` is a range, not a number that ends in a dot.
            if self.rest().starts_with('.') && !self.rest().starts_with("..") {
                self.next();
                text.push('.');
                text += self.take_while(|character| character.is_ascii_alphanumeric() || character == '_');
                float = true;
            }
            if text.ends_with(['e', 'E']) && self.rest().starts_with(['+', '-']) {
                text.extend(self.next());
                text += self.take_while(|character| character.is_ascii_alphanumeric() || character == '_');
            }
            float |= text.contains(['e', 'E']);
        }
        let bad = |reason| (offset, Problem::BadNumber { text: shorten(&text), reason });
        if text.contains("__") || text.ends_with('_') {
            return Err(bad("an underscore must stand between digits"));
        }
        let digits = text.replace('_', "");
        if float {
            return match digits.parse::<f64>() {
                Ok(value) if value.is_finite() => Ok(Kind::Float(value)),
                Ok(_) => Err(bad("it is out of range")),
                Err(_) => Err(bad("it is not decimal")),
            };
        }
        let digits = if radix == 10 { digits.as_str() } else { digits.get(2..).unwrap_or_default() };
        if digits.is_empty() || !digits.chars().all(|character| character.is_digit(radix)) {
            return Err(bad("it has characters that are not digits"));
        }
        i64::from_str_radix(digits, radix).map(Kind::Integer).map_err(|_| bad("it is out of range"))
    }
}

pub(super) fn unavailable(offset: usize, construct: &str, reason: &'static str) -> Refused {
    (offset, Problem::Unavailable { construct: construct.to_owned(), reason })
}
