//! Which events are printed, and how: the same for those of this node and for those of all nodes.

use machines::events::print::{About, Filter, line as as_line};
use serde_json::Value;

use super::{Format, json_line, line};

/// What `events` takes.
#[derive(Debug, clap::Args)]
pub struct Wanted {
    /// Transitions only.
    #[arg(long, conflicts_with_all = ["watchers", "kind"])]
    transitions: bool,
    /// States of watchers only.
    #[arg(long)]
    watchers: bool,
    /// Only states of watchers of this type, such as exec.
    #[arg(long = "type", value_name = "TYPE")]
    pub kind: Option<String>,
    /// Only events of the node of this identity.
    #[arg(long, value_name = "IDENTITY")]
    identity: Option<String>,
    /// Only events of the machine of this name.
    #[arg(long, value_name = "NAME")]
    machine: Option<String>,
    /// How events are printed; json is one `CloudEvent` a line.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Wanted {
    /// Prints an event, when it is wanted; what is none is passed over.
    pub fn print(&self, event: &[u8]) {
        let Ok(document) = serde_json::from_slice::<Value>(event) else { return };
        if !self.filter().takes(&document) {
            return;
        }
        match self.format {
            Format::Json => json_line(&document),
            Format::Text => line(as_line(&document)),
        }
    }

    fn filter(&self) -> Filter {
        let about = match (self.transitions, self.watchers) {
            (true, _) => About::Transitions,
            (_, true) => About::Watchers,
            _ => About::Everything,
        };
        Filter { about, kind: self.kind.clone(), identity: self.identity.clone(), machine: self.machine.clone() }
    }
}
