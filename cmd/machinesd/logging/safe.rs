//! Events of the log on their way to people: every field is made safe to show, and what is secret by its form is masked.
//! In: events of ours and of libraries. Out: the same events, for the layer that writes them.
//!
//! A field may hold what an agent printed or what a server answered. Without this it could begin a line of its own, which
//! reads as if the daemon had written it.

use std::fmt::Debug;

use machines::{secret, shown};
use tracing::field::{DisplayValue, Field, Value, Visit, display};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// More characters of one field are not written.
const MAXIMUM_CHARACTERS: usize = 16 * 1024;
/// More fields of one event are not written; ours have a handful.
const MAXIMUM_FIELDS: usize = 32;

/// How control characters are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escapes {
    /// So that people see them.
    Visible,
    /// By the writer, as JSON has them.
    Later,
}

/// A layer that gets safe events.
pub struct Safe<L> {
    layer: L,
    escapes: Escapes,
}

impl<L> Safe<L> {
    pub fn new(layer: L, escapes: Escapes) -> Self {
        Self { layer, escapes }
    }
}

impl<S: Subscriber, L: Layer<S>> Layer<S> for Safe<L> {
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields { escapes: self.escapes, fields: Vec::new() };
        event.record(&mut fields);
        let metadata = event.metadata();
        let Some(filler) = metadata.fields().iter().next() else { return };
        let mut values: [(&Field, Option<&dyn Value>); MAXIMUM_FIELDS] = [(&filler, None); MAXIMUM_FIELDS];
        for (value, (field, content)) in values.iter_mut().zip(&fields.fields) {
            *value = (field, Some(content.value()));
        }
        // Of no span: spans are of libraries, and their fields did not come this way.
        self.layer.on_event(&Event::new_child_of(None, metadata, &metadata.fields().value_set(&values)), context);
    }
}

enum Content {
    Text(String),
    Formatted(DisplayValue<String>),
    Signed(i64),
    Unsigned(u64),
    Number(f64),
    Switch(bool),
}

impl Content {
    fn value(&self) -> &dyn Value {
        match self {
            Self::Text(text) => text,
            Self::Formatted(text) => text,
            Self::Signed(number) => number,
            Self::Unsigned(number) => number,
            Self::Number(number) => number,
            Self::Switch(switch) => switch,
        }
    }
}

struct Fields {
    escapes: Escapes,
    fields: Vec<(Field, Content)>,
}

impl Fields {
    fn safe(&self, text: &str) -> String {
        let text = secret::masked(text);
        match (self.escapes, text.char_indices().nth(MAXIMUM_CHARACTERS)) {
            (Escapes::Visible, _) => shown::cut(&text, MAXIMUM_CHARACTERS),
            (Escapes::Later, None) => text.into_owned(),
            (Escapes::Later, Some((end, _))) => format!("{}…", text.get(..end).unwrap_or_default()),
        }
    }

    fn take(&mut self, field: &Field, content: Content) {
        self.fields.push((field.clone(), content));
    }
}

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, Content::Text(self.safe(value)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.take(field, Content::Formatted(display(self.safe(&format!("{value:?}")))));
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.take(field, Content::Signed(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.take(field, Content::Unsigned(value));
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.take(field, Content::Number(value));
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.take(field, Content::Switch(value));
    }
}

/// Standard error for lines of JSON, in whose strings nothing acts on a terminal.
#[derive(Debug, Clone, Copy)]
pub struct JsonLines;

impl std::io::Write for JsonLines {
    /// The layer writes each event in one call.
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let text = String::from_utf8_lossy(line);
        std::io::stderr().write_all(shown::json(&text).as_bytes())?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}
