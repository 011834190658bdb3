//! Carries the bus's events to NATS, in order. While the server is away they wait in a queue of bounded length, which drops
//! the oldest first and counts them. An event leaves the queue when the server has it: a batch is followed by a message to
//! ourselves, and what a broken connection may have swallowed is sent again, with the same event ids.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_nats::client::PublishErrorKind;
use async_nats::connection::State;
use async_nats::{Client, Subscriber};
use futures_util::StreamExt;
use tokio::sync::Notify;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio::time::Instant;

use super::{Bus, Delivery, Event};

/// Events that wait for the server.
pub const QUEUE: usize = 4_096;
/// Events that are sent before the server is asked whether it has them.
const BATCH: usize = 64;
/// How often a connection that is gone is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// A connected server that sends our own messages back for so long not is one where we may not listen.
const ECHO_PATIENCE: Duration = Duration::from_secs(30);

/// Publishes until the bus is gone; listens from the call on. To be run as a task of its own, so that a slow server never
/// holds up a machine.
pub fn publish(bus: Bus, client: Client) -> impl Future<Output = ()> + Send {
    publish_within(bus, client, QUEUE)
}

/// As [`publish`], with another length of the queue.
#[expect(clippy::needless_pass_by_value, reason = "a bus that is kept would never be gone")]
pub fn publish_within(bus: Bus, client: Client, capacity: usize) -> impl Future<Output = ()> + Send {
    let (events, delivery) = (bus.listen(), bus.delivery());
    let queue =
        Arc::new(Queue { state: Mutex::default(), changed: Notify::new(), capacity: capacity.max(1), delivery });
    let taken = Arc::clone(&queue);
    async move {
        let carrier = Carrier { client, echo: Echo::Untried, number: 0 };
        tokio::join!(take(events, &taken), carrier.run(&queue));
    }
}

async fn take(mut events: Receiver<Arc<Event>>, queue: &Queue) {
    loop {
        match events.recv().await {
            Ok(event) => queue.push(event),
            Err(RecvError::Lagged(count)) => queue.dropped(count),
            Err(RecvError::Closed) => return queue.close(),
        }
    }
}

#[derive(Default)]
struct Waiting {
    events: VecDeque<Arc<Event>>,
    closed: bool,
    /// Since the last time that something was sent.
    dropped: u64,
}

struct Queue {
    state: Mutex<Waiting>,
    changed: Notify,
    capacity: usize,
    delivery: Arc<Delivery>,
}

impl Queue {
    fn with<T>(&self, work: impl FnOnce(&mut Waiting) -> T) -> T {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = work(&mut state);
        let waiting = u64::try_from(state.events.len()).unwrap_or(u64::MAX);
        self.delivery.waiting.store(waiting, Ordering::Relaxed);
        result
    }

    fn push(&self, event: Arc<Event>) {
        let full = self.with(|waiting| {
            let full = waiting.events.len() >= self.capacity;
            if full {
                waiting.events.pop_front();
            }
            waiting.events.push_back(event);
            full
        });
        if full {
            self.dropped(1);
        }
        self.changed.notify_one();
    }

    fn dropped(&self, count: u64) {
        self.delivery.dropped.fetch_add(count, Ordering::Relaxed);
        let first = self.with(|waiting| {
            waiting.dropped += count;
            waiting.dropped == count
        });
        if first {
            tracing::warn!(
                queue = self.capacity,
                "NATS is away or too slow, and the queue of events is full: the oldest are dropped"
            );
        }
    }

    fn close(&self) {
        self.with(|waiting| waiting.closed = true);
        self.changed.notify_one();
    }

    /// The next events, at least one; `None` when there will be no more. They stay in the queue until [`Self::sent`], and
    /// may be dropped from it meanwhile like all others.
    async fn next(&self) -> Option<Vec<Arc<Event>>> {
        loop {
            let (batch, closed) = self.with(|waiting| {
                let batch: Vec<_> = waiting.events.iter().take(BATCH).cloned().collect();
                (batch, waiting.closed)
            });
            if !batch.is_empty() {
                return Some(batch);
            }
            if closed {
                return None;
            }
            self.changed.notified().await;
        }
    }

    fn sent(&self, batch: &[Arc<Event>]) {
        let count = u64::try_from(batch.len()).unwrap_or(u64::MAX);
        self.delivery.sent.fetch_add(count, Ordering::Relaxed);
        let dropped = self.with(|waiting| {
            let last = batch.last().map(|event| event.id);
            let position = waiting.events.iter().take(BATCH).position(|event| Some(event.id) == last);
            waiting.events.drain(..position.map_or(0, |position| position + 1));
            std::mem::take(&mut waiting.dropped)
        });
        if dropped > 0 {
            tracing::warn!(dropped, "events were dropped while NATS was away or too slow");
        }
    }
}

/// Whether messages to ourselves come back.
enum Echo {
    Untried,
    Heard {
        inbox: String,
        subscriber: Subscriber,
    },
    /// The account may not listen to its inbox: then flushing must do.
    Refused,
}

struct Carrier {
    client: Client,
    echo: Echo,
    number: u64,
}

impl Carrier {
    async fn run(mut self, queue: &Queue) {
        loop {
            // Not before it is connected, so that what is dropped meanwhile is not sent.
            let connection = self.connected().await;
            let Some(batch) = queue.next().await else { return };
            if self.connection() == Some(connection) && self.send(&batch, connection, queue).await {
                queue.sent(&batch);
            }
        }
    }

    /// The number of the connection; `None` when there is none.
    fn connection(&self) -> Option<u64> {
        let connects = self.client.statistics().connects.load(Ordering::Relaxed);
        (self.client.connection_state() == State::Connected).then_some(connects)
    }

    async fn connected(&self) -> u64 {
        loop {
            match self.connection() {
                Some(connection) => return connection,
                None => tokio::time::sleep(LOOK).await,
            }
        }
    }

    /// Whether the server has the batch. What it can't take is counted as dropped.
    async fn send(&mut self, batch: &[Arc<Event>], connection: u64, queue: &Queue) -> bool {
        for event in batch {
            let payload = event.cloud_event().to_string();
            match self.client.publish(event.subject(), payload.into()).await {
                Ok(()) => {}
                Err(error) if error.kind() == PublishErrorKind::Send => return false,
                Err(error) => {
                    tracing::warn!(subject = event.subject(), "NATS can't take an event: {error}");
                    queue.dropped(1);
                }
            }
        }
        self.confirmed(connection).await
    }

    async fn confirmed(&mut self, connection: u64) -> bool {
        if matches!(self.echo, Echo::Untried) {
            let inbox = self.client.new_inbox();
            self.echo = match self.client.subscribe(inbox.clone()).await {
                Ok(subscriber) => Echo::Heard { inbox, subscriber },
                Err(_) => Echo::Refused,
            };
        }
        self.number += 1;
        let Echo::Heard { inbox, .. } = &self.echo else {
            return self.client.flush().await.is_ok() && self.connection() == Some(connection);
        };
        let number = self.number.to_string();
        if self.client.publish(inbox.clone(), number.clone().into()).await.is_err() {
            return false;
        }
        let deadline = Instant::now() + ECHO_PATIENCE;
        while self.connection() == Some(connection) {
            let Echo::Heard { subscriber, .. } = &mut self.echo else { return false };
            match tokio::time::timeout(LOOK, subscriber.next()).await {
                // One that comes late is that of a batch before.
                Ok(Some(message)) if message.payload != number.as_bytes() => {}
                Ok(Some(_)) => return self.connection() == Some(connection),
                Ok(None) => {
                    self.echo = Echo::Untried;
                    return false;
                }
                Err(_) if Instant::now() >= deadline => {
                    tracing::debug!("NATS does not send our own messages back; events are no longer confirmed");
                    self.echo = Echo::Refused;
                    return true;
                }
                Err(_) => {}
            }
        }
        false
    }
}
