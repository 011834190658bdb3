//! A watch on a bucket of the embedded store: what is there, then what any process changes. A bucket that is missing is
//! waited for; one that was made anew is delivered from its beginning.

use std::sync::{Arc, Weak};

use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

use super::database::{Access, Database};
use super::entries::{self, Failure};
use crate::kv::{Entry, KvError, Watch, WatchEvent};

/// Events that may wait for a slow consumer.
const CAPACITY: usize = 64;

pub(super) fn start(database: &Arc<Database>, bucket: &str, pattern: &str) -> Watch {
    let (sender, receiver) = mpsc::channel(CAPACITY);
    let watching = Watching { bucket: bucket.to_owned(), pattern: pattern.to_owned(), sender, place: Place::default() };
    let changes = database.follow();
    let task = AbortOnDropHandle::new(tokio::spawn(watching.run(Arc::downgrade(database), changes)));
    Box::pin(futures_util::stream::unfold((receiver, task), async |(mut receiver, task)| {
        let event = receiver.recv().await?;
        Some((event, (receiver, task)))
    }))
}

/// How far the watch has come.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    bucket: Option<i64>,
    revision: u64,
}

struct Watching {
    bucket: String,
    pattern: String,
    sender: mpsc::Sender<WatchEvent>,
    place: Place,
}

struct Changes {
    place: Place,
    entries: Vec<Entry>,
}

impl Watching {
    /// Holds the store only while reading, so that the watch does not keep it open.
    async fn run(mut self, database: Weak<Database>, mut changes: tokio::sync::watch::Receiver<u64>) {
        let mut interrupted = false;
        loop {
            changes.borrow_and_update();
            let Some(strong) = database.upgrade() else { break };
            let read = self.read(&strong).await;
            drop(strong);
            match read {
                Ok(read) => {
                    let anew = read.place.bucket != self.place.bucket;
                    if anew && self.place.bucket.is_some() && !interrupted {
                        let reason = format!("bucket {:?} was made anew", self.bucket);
                        if self.sender.send(WatchEvent::Interrupted(reason)).await.is_err() {
                            return;
                        }
                    }
                    self.place = read.place;
                    let current = (anew || interrupted).then_some(WatchEvent::Current);
                    interrupted = false;
                    for event in read.entries.into_iter().map(WatchEvent::Entry).chain(current) {
                        if self.sender.send(event).await.is_err() {
                            return;
                        }
                    }
                }
                Err(error) if !interrupted => {
                    interrupted = true;
                    self.place = Place::default();
                    if self.sender.send(WatchEvent::Interrupted(error.to_string())).await.is_err() {
                        return;
                    }
                }
                Err(_) => {}
            }
            // After an error of the file itself nothing may ever wake us, so look again by ourselves.
            let pause =
                if interrupted { std::time::Duration::from_secs(1) } else { std::time::Duration::from_secs(3600) };
            if matches!(tokio::time::timeout(pause, changes.changed()).await, Ok(Err(_))) {
                break;
            }
        }
        // The store was closed under us. A watch ends only when dropped, so stay silent.
        self.sender.closed().await;
    }

    async fn read(&self, database: &Database) -> Result<Changes, KvError> {
        let (name, pattern, place) = (self.bucket.clone(), self.pattern.clone(), self.place);
        let operation = format!("watch bucket {name:?}");
        database
            .call(Access::Read, operation, move |transaction| {
                let bucket = entries::bucket(transaction, &name)?;
                let since = if place.bucket == Some(bucket.id) { place.revision } else { 0 };
                let entries = entries::since(transaction, &name, &bucket, &pattern, since)?;
                let place = Place { bucket: Some(bucket.id), revision: bucket.revision };
                Ok::<_, Failure>(Changes { place, entries })
            })
            .await
    }
}
