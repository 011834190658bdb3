//! A watch that lives through everything: it begins a new reading whenever one ended (server restarted, with or without
//! its data; connection lost; bucket deleted; consumer deleted), and waits for a bucket that is not there. Each new
//! reading delivers the newest entries again, so nothing that happened meanwhile is missed.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::backoff;
use super::calm::STEADY;
use super::consumer::{Reading, Replay, Step};
use super::link::{CALL_LIMIT, Link};
use crate::kv::{KvError, Watch, WatchEvent};

/// Events that may wait for a slow consumer before the reading pauses.
const CAPACITY: usize = 64;
const RETRY_FIRST: Duration = Duration::from_millis(200);
const RETRY_MAXIMUM: Duration = Duration::from_secs(5);

/// Kinds of interruption; each is told once until the watch is current again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connection,
    Bucket,
    Other,
}

pub(super) fn start(link: Arc<Link>, bucket: &str, pattern: &str) -> Watch {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let watching = Watching { link, bucket: bucket.to_owned(), pattern: pattern.to_owned(), sender };
    let task = AbortOnDropHandle::new(tokio::spawn(watching.run()));
    Box::pin(futures_util::stream::unfold((receiver, task), async |(mut receiver, task)| {
        let event = receiver.recv().await?;
        Some((event, (receiver, task)))
    }))
}

struct Watching {
    link: Arc<Link>,
    bucket: String,
    pattern: String,
    sender: mpsc::Sender<WatchEvent>,
}

/// The receiver is gone.
struct Dropped;

impl Watching {
    async fn run(self) {
        let mut told = None;
        let mut attempt = 0;
        loop {
            let began = Instant::now();
            let (kind, reason) = match self.read(&mut told).await {
                Ok(interruption) => interruption,
                Err(Dropped) => return,
            };
            if told != Some(kind) {
                told = Some(kind);
                if self.send(WatchEvent::Interrupted(reason)).await.is_err() {
                    return;
                }
            }
            // A reading that a server always ends soon is begun more and more slowly, also when it was current for a moment.
            if began.elapsed() >= STEADY {
                attempt = 0;
            }
            let deadline = Instant::now() + backoff(attempt, RETRY_FIRST, RETRY_MAXIMUM);
            attempt += 1;
            // A connection made anew is a reason to try at once.
            if kind != Kind::Connection || self.link.ready(deadline).await.is_err() {
                tokio::time::sleep_until(deadline).await;
            }
        }
    }

    /// One reading, to its end.
    async fn read(&self, told: &mut Option<Kind>) -> Result<(Kind, String), Dropped> {
        let mut changes = self.link.changes.clone();
        let opened = match self.link.ready(Instant::now() + CALL_LIMIT).await {
            Ok(()) => {
                // Taken before the consumer is made: a new connection during that makes this reading suspect.
                let epoch = self.link.epoch();
                let reading = Reading::open(&self.link, &self.bucket, &self.pattern, Replay::Newest).await;
                reading.map(|reading| (reading, epoch))
            }
            Err(error) => Err(error),
        };
        let (mut reading, epoch) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let kind = match &error {
                    KvError::NoBucket { .. } => Kind::Bucket,
                    KvError::Connect { .. } => Kind::Connection,
                    _ => Kind::Other,
                };
                return Ok((kind, error.to_string()));
            }
        };
        loop {
            tokio::select! {
                step = reading.next() => match step {
                    Ok(Step::Entry(entry)) => self.send(WatchEvent::Entry(entry)).await?,
                    Ok(Step::Current) => {
                        *told = None;
                        self.send(WatchEvent::Current).await?;
                    }
                    Err(lost) => return Ok(self.after(&lost.to_string())),
                },
                news = changes.changed() => {
                    if news.is_err() || !self.link.connected() || self.link.epoch() != epoch {
                        return Ok((Kind::Connection, format!("the connection to {} was lost", self.link.url)));
                    }
                }
            }
        }
    }

    /// When a reading ended while the server is away, that is the reason to tell.
    fn after(&self, reason: &str) -> (Kind, String) {
        if self.link.connected() {
            (Kind::Other, format!("the watch of bucket {:?} was interrupted: {reason}", self.bucket))
        } else {
            (Kind::Connection, format!("the connection to {} was lost", self.link.url))
        }
    }

    async fn send(&self, event: WatchEvent) -> Result<(), Dropped> {
        self.sender.send(event).await.map_err(|_| Dropped)
    }
}
