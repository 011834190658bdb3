//! Where in the payload an entry and its keys stand, for messages. Runs only once a problem is known, over text that
//! the JSON parser has accepted.

/// Line and column, from 1; the column counts bytes, as the JSON parser's does.
pub(super) type Place = (usize, usize);

/// The places of one entry.
#[derive(Debug, Default)]
pub(super) struct EntryPlace {
    start: Place,
    /// The value of each key of the entry itself.
    values: Vec<(String, Place)>,
}

impl EntryPlace {
    /// Of the key's value, or of the entry when it has no such key.
    pub(super) fn of(&self, field: Option<&str>) -> Place {
        // The last one: where a key appears twice, the second is the problem.
        let value = self.values.iter().rev().find(|(key, _)| Some(key.as_str()) == field);
        value.map_or(self.start, |(_, place)| *place)
    }
}

/// One for each element of the outermost list.
pub(super) fn entries(payload: &[u8]) -> Vec<EntryPlace> {
    let mut entries: Vec<EntryPlace> = Vec::new();
    let (mut line, mut column, mut depth) = (1, 0, 0usize);
    let mut string: Option<Vec<u8>> = None;
    let (mut escaped, mut expecting_element, mut text) = (false, false, String::new());
    let mut pending_key: Option<String> = None;
    for &byte in payload {
        column += 1;
        if byte == b'\n' {
            (line, column) = (line + 1, 0);
        }
        if let Some(content) = &mut string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' => {
                    text = String::from_utf8_lossy(content).into_owned();
                    string = None;
                }
                _ => content.push(byte),
            }
            continue;
        }
        if byte.is_ascii_whitespace() {
            continue;
        }
        if expecting_element && depth == 1 && byte != b']' {
            entries.push(EntryPlace { start: (line, column), values: Vec::new() });
            expecting_element = false;
        }
        if byte != b':'
            && let (Some(key), Some(entry)) = (pending_key.take(), entries.last_mut())
        {
            entry.values.push((key, (line, column)));
        }
        match byte {
            b'"' => string = Some(Vec::new()),
            b'[' | b'{' => {
                depth += 1;
                expecting_element |= depth == 1;
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' if depth == 1 => expecting_element = true,
            b':' if depth == 2 => pending_key = Some(std::mem::take(&mut text)),
            _ => {}
        }
    }
    entries
}
