//! DOT, the language of Graphviz (<https://graphviz.org/doc/info/lang.html>).

use super::{Drawing, MadeBy};

/// The drawing as DOT.
pub fn dot(drawing: &Drawing) -> String {
    let mut text = format!(
        "digraph {} {{\n  label={};\n  labelloc=t;\n  fontname=\"sans-serif\";\n  \
         node [shape=box, style=\"rounded,filled\", fillcolor=\"#f4f7fb\", fontname=\"sans-serif\"];\n  \
         edge [fontname=\"sans-serif\", fontsize=11];\n  \
         start [shape=point, width=0.15];\n",
        quoted(&drawing.title),
        quoted(&drawing.title),
    );
    for (number, state) in drawing.states.iter().enumerate() {
        let lines: Vec<String> =
            std::iter::once(&state.name).chain(&state.watchers).map(|line| escaped(line)).collect();
        text.push_str(&format!("  s{number} [label=\"{}\"];\n", lines.join("\\n")));
    }
    if !drawing.states.is_empty() {
        text.push_str("  start -> s0;\n");
    }
    for arrow in &drawing.arrows {
        for step in &arrow.transitions {
            let style = if step.made_by == MadeBy::Hand { ", style=dashed" } else { "" };
            let label = quoted(&step.text);
            text.push_str(&format!("  s{} -> s{} [label={label}{style}];\n", arrow.from, arrow.to));
        }
    }
    text.push_str("}\n");
    text
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text))
}

/// A backslash would begin an escape such as `\N`, and `&` an entity.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('&', "&amp;")
}
