//! Mermaid's state diagram (<https://mermaid.js.org/syntax/stateDiagram.html>), which code hosts draw in Markdown.

use super::{Drawing, MadeBy};

/// The drawing as Mermaid.
pub fn mermaid(drawing: &Drawing) -> String {
    let mut text = format!("---\ntitle: \"{}\"\n---\nstateDiagram-v2\n", escaped(&drawing.title));
    for (number, state) in drawing.states.iter().enumerate() {
        text.push_str(&format!("  state \"{}\" as s{number}\n", escaped(&state.name)));
        for watcher in &state.watchers {
            text.push_str(&format!("  s{number} : {}\n", escaped(watcher)));
        }
    }
    if !drawing.states.is_empty() {
        text.push_str("  [*] --> s0\n");
    }
    for arrow in &drawing.arrows {
        for step in &arrow.transitions {
            let hand = if step.made_by == MadeBy::Hand { " (by hand)" } else { "" };
            text.push_str(&format!("  s{} --> s{} : {}{hand}\n", arrow.from, arrow.to, escaped(&step.text)));
        }
    }
    text
}

/// Everything that may mean something to Mermaid becomes an entity.
fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for character in text.chars() {
        match character {
            ' ' | '_' | '.' | '(' | ')' | '/' => escaped.push(character),
            character if character.is_alphanumeric() => escaped.push(character),
            // One `-` is plain, two are an arrow.
            '-' if !escaped.ends_with('-') => escaped.push('-'),
            other => escaped.push_str(&format!("#{};", u32::from(other))),
        }
    }
    escaped
}
