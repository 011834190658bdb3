//! Tells a person what runs in the foreground: the log lines, in short, on standard output.

use std::fmt::{Debug, Write};
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::Notify;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer};

use crate::shared::line;

/// Tells when the agent has spoken.
pub struct Narrator {
    started: Instant,
    output: Arc<Notify>,
}

impl Narrator {
    /// Waits for the first output of an agent.
    pub async fn first_output(&self) {
        self.output.notified().await;
    }

    /// Tells something that is not in the log.
    pub fn tell(&self, who: &str, what: &str) {
        tell(self.started, " ", who, what);
    }
}

fn tell(started: Instant, mark: &str, who: &str, what: &str) {
    let seconds = started.elapsed().as_secs_f32();
    line(format!("{mark} {seconds:6.2}s  {who:<14} {what}"));
}

/// Starts to tell.
pub fn start() -> Narrator {
    let output = Arc::new(Notify::new());
    let started = Instant::now();
    let filter = EnvFilter::builder().parse_lossy("warn,machines=info,machines::output=debug");
    let teller = Teller { started, output: Arc::clone(&output) };
    _ = tracing_subscriber::registry().with(filter).with(teller).try_init();
    Narrator { started, output }
}

struct Teller {
    started: Instant,
    output: Arc<Notify>,
}

impl<S: Subscriber> Layer<S> for Teller {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut words = Words::default();
        event.record(&mut words);
        let mark = match *event.metadata().level() {
            Level::ERROR | Level::WARN => "!",
            _ => " ",
        };
        let who = match (words.machine.as_str(), words.watcher.as_str()) {
            ("", _) => "node".to_owned(),
            (machine, "") => machine.to_owned(),
            (machine, watcher) => format!("{machine}/{watcher}"),
        };
        tell(self.started, mark, &who, &format!("{}{}", words.message, words.rest));
        if words.message.starts_with("output: ") {
            self.output.notify_one();
        }
    }
}

#[derive(Default)]
struct Words {
    machine: String,
    watcher: String,
    message: String,
    rest: String,
}

impl Words {
    fn note(&mut self, name: &str, value: String) {
        match name {
            "machine" => self.machine = value,
            "watcher" => self.watcher = value,
            "message" => self.message = value,
            // Paths in the store are long, and the newcomer has no use for them yet.
            "path" => {}
            // Writing to a String can't fail.
            _ => _ = write!(self.rest, " {name}={value}"),
        }
    }
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.note(field.name(), value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.note(field.name(), format!("{value:?}"));
    }
}
