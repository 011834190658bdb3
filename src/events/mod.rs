//! What happens on a node, as events: made by machines, handed to everyone who listens. One bus per daemon; publishing
//! never waits. `nats` carries the events to a server in the reference's format.

pub mod nats;
pub mod print;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::broadcast;

use crate::names::{Identity, Label, MachineName, Version};

/// Listeners that fall further behind than this many events lose the oldest ones and are told how many.
const BACKLOG: usize = 4_096;
/// So many past events are kept for those who ask later.
const RECENT: usize = 256;

/// Which machine an event speaks of.
#[derive(Debug, Clone)]
pub struct Origin {
    pub identity: Identity,
    pub machine: MachineName,
    pub version: Version,
    /// Unique for each start of the machine.
    pub instance: Arc<str>,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Body {
    /// A machine moved from one state to another.
    Transition { transition: Label, from_state: Label, to_state: Label },
    /// A watcher says how it stands.
    WatcherState {
        /// The kind, for example `exec`.
        kind: &'static str,
        watcher: Label,
        /// The fields that this kind adds, as the reference (Choria Autonomous Agents) does.
        fields: Map<String, Value>,
    },
}

/// One event.
#[derive(Debug, Clone)]
pub struct Event {
    pub id: uuid::Uuid,
    pub time: Timestamp,
    pub origin: Origin,
    pub body: Body,
}

impl Event {
    /// An event that happens now.
    pub fn new(origin: Origin, body: Body) -> Self {
        Self { id: uuid::Uuid::new_v4(), time: Timestamp::now(), origin, body }
    }

    /// The NATS subject, as the reference uses it.
    pub fn subject(&self) -> String {
        match &self.body {
            Body::Transition { .. } => "choria.machine.transition".to_owned(),
            Body::WatcherState { kind, .. } => format!("choria.machine.watcher.{kind}.state"),
        }
    }

    /// The event as a CloudEvents 1.0 JSON document, field for field that of the reference.
    pub fn cloud_event(&self) -> Value {
        let kind = match &self.body {
            Body::Transition { .. } => "io.choria.machine.v1.transition".to_owned(),
            Body::WatcherState { kind, .. } => format!("io.choria.machine.watcher.{kind}.v1.state"),
        };
        json!({
            "specversion": "1.0",
            "id": self.id.to_string(),
            "source": "io.choria.machine",
            "type": kind,
            "subject": self.origin.identity.as_str(),
            "time": self.time.to_string(),
            "datacontenttype": "application/json",
            "data": self.data(&kind),
        })
    }

    fn data(&self, protocol: &str) -> Value {
        let mut data = Map::new();
        let mut put = |key: &str, value: Value| data.insert(key.to_owned(), value);
        put("protocol", protocol.into());
        put("identity", self.origin.identity.as_str().into());
        put("id", (*self.origin.instance).into());
        put("version", self.origin.version.as_str().into());
        put("timestamp", self.time.as_second().into());
        put("machine", self.origin.machine.as_str().into());
        match &self.body {
            Body::Transition { transition, from_state, to_state } => {
                put("transition", transition.as_str().into());
                put("from_state", from_state.as_str().into());
                put("to_state", to_state.as_str().into());
            }
            Body::WatcherState { kind, watcher, fields } => {
                put("type", (*kind).into());
                put("name", watcher.as_str().into());
                data.extend(fields.clone());
            }
        }
        Value::Object(data)
    }
}

/// What became of the events on their way to NATS.
#[derive(Debug, Default)]
pub struct Delivery {
    sent: AtomicU64,
    dropped: AtomicU64,
    waiting: AtomicU64,
}

/// [`Delivery`] at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Deliveries {
    /// Taken by the server.
    pub sent: u64,
    /// Lost.
    pub dropped: u64,
    /// In the queue.
    pub waiting: u64,
}

impl Delivery {
    /// How it stands.
    pub fn count(&self) -> Deliveries {
        Deliveries { sent: self.sent(), dropped: self.dropped(), waiting: self.waiting() }
    }

    /// Taken by the server.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Lost, since the server was away for too long or refused them.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// In the queue at the moment.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
struct Shared {
    recent: Mutex<VecDeque<Arc<Event>>>,
    delivery: Arc<Delivery>,
}

/// Where events are published and listened to; cheap to clone.
#[derive(Debug, Clone)]
pub struct Bus {
    sender: broadcast::Sender<Arc<Event>>,
    shared: Arc<Shared>,
}

impl Default for Bus {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BACKLOG), shared: Arc::default() }
    }
}

impl Bus {
    /// Hands the event to every listener; never waits, and having no listener is fine.
    pub fn publish(&self, event: Event) {
        let event = Arc::new(event);
        // Sent under the lock, so that whoever asks for the past and listens gets each event once.
        let mut recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(Arc::clone(&event));
        _ = self.sender.send(event);
    }

    /// Listens to the events from now on.
    pub fn listen(&self) -> broadcast::Receiver<Arc<Event>> {
        self.sender.subscribe()
    }

    /// The last events, oldest first, and those from now on.
    pub fn recent_and_listen(&self) -> (Vec<Arc<Event>>, broadcast::Receiver<Arc<Event>>) {
        let recent = self.shared.recent.lock().unwrap_or_else(PoisonError::into_inner);
        (recent.iter().cloned().collect(), self.listen())
    }

    /// Counts of the way to NATS.
    pub fn delivery(&self) -> Arc<Delivery> {
        Arc::clone(&self.shared.delivery)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin() -> Origin {
        Origin {
            identity: Identity::new("web1").unwrap(),
            machine: MachineName::new("facts").unwrap(),
            version: Version::new("1.0.0").unwrap(),
            instance: "abc".into(),
        }
    }

    #[test]
    fn a_transition_has_the_fields_of_the_reference() {
        let label = |text| Label::new(text).unwrap();
        let body = Body::Transition { transition: label("go"), from_state: label("A"), to_state: label("B") };
        let event = Event::new(origin(), body);
        assert_eq!(event.subject(), "choria.machine.transition");
        let document = event.cloud_event();
        assert_eq!(document["specversion"], "1.0");
        assert_eq!(document["source"], "io.choria.machine");
        assert_eq!(document["type"], "io.choria.machine.v1.transition");
        assert_eq!(document["subject"], "web1");
        assert!(document["time"].as_str().unwrap().ends_with('Z'));
        let data = document["data"].as_object().unwrap();
        let mut keys: Vec<&str> = data.keys().map(String::as_str).collect();
        keys.sort_unstable();
        let expected =
            ["from_state", "id", "identity", "machine", "protocol", "timestamp", "to_state", "transition", "version"];
        assert_eq!(keys, expected);
    }

    #[test]
    fn a_watcher_state_adds_the_fields_of_its_kind() {
        let fields = Map::from_iter([("previous_outcome".to_owned(), json!("success"))]);
        let body = Body::WatcherState { kind: "exec", watcher: Label::new("run").unwrap(), fields };
        let event = Event::new(origin(), body);
        assert_eq!(event.subject(), "choria.machine.watcher.exec.state");
        let document = event.cloud_event();
        assert_eq!(document["type"], "io.choria.machine.watcher.exec.v1.state");
        assert_eq!(document["data"]["type"], "exec");
        assert_eq!(document["data"]["name"], "run");
        assert_eq!(document["data"]["previous_outcome"], "success");
    }
}
