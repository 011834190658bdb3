//! One reading of a bucket's entries in order: what is there, then what comes. It is a pull consumer of our own making
//! in the server's memory, which ends at the first sign of trouble: a gap, a missed heartbeat, a deleted consumer or
//! stream. Nothing is repaired here; the caller begins a new reading.
//!
//! Pull rather than push, because the server tells a waiting pull at once that its consumer or stream was deleted,
//! where a push consumer just falls silent.

use std::sync::Arc;
use std::time::Duration;

use async_nats::header::HeaderMap;
use async_nats::{Message, StatusCode, Subscriber};
use futures_util::StreamExt as _;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::bucket::{MARKER_REASON, OPERATION};
use super::link::{CALL_LIMIT, Link, SHOWN_CHARACTERS};
use crate::kv::{Entry, KvError, Operation};
use crate::shown::cut;

const HEARTBEAT: Duration = Duration::from_secs(5);
/// Two heartbeats missed, and some.
const SILENCE_LIMIT: Duration = Duration::from_secs(12);
/// One pull waits this long for messages before it is renewed.
const PULL_EXPIRY: Duration = Duration::from_secs(60);
/// Messages per pull, and so the most that wait in memory.
const PULL_BATCH: usize = 256;
/// The server removes the consumer of a reader that vanished.
const INACTIVE_LIMIT: Duration = Duration::from_secs(30);

/// What to begin with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Replay {
    /// The newest entry of each key.
    Newest,
    /// The same without values.
    NewestHeaders,
    /// All that is kept.
    All,
}

pub(super) enum Step {
    Entry(Entry),
    /// All that was there at the start has been delivered; comes once.
    Current,
}

/// Why a reading ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Lost {
    #[error("nothing was heard from the server for {} s", SILENCE_LIMIT.as_secs())]
    Silence,
    #[error("an entry is missing in what the server delivered")]
    Gap,
    #[error("the server ended the reading: {0}")]
    Ended(String),
    #[error("an entry is not understood: {0}")]
    Malformed(String),
}

#[derive(Deserialize)]
struct ConsumerInfo {
    #[serde(default)]
    num_pending: u64,
}

/// See the module's text.
pub(super) struct Reading {
    link: Arc<Link>,
    bucket: String,
    consumer: String,
    inbox: String,
    subscriber: Subscriber,
    /// What the server still owes of the last pull.
    outstanding: usize,
    /// The consumer's sequence of the last message.
    delivered: u64,
    /// Delivered all there was at the start, and said so.
    current: Currency,
}

#[derive(PartialEq, Eq)]
enum Currency {
    Behind,
    Reached,
    Told,
}

impl Reading {
    pub async fn open(link: &Arc<Link>, bucket: &str, pattern: &str, replay: Replay) -> Result<Self, KvError> {
        let operation = format!("read bucket {bucket:?}");
        link.ready(tokio::time::Instant::now() + CALL_LIMIT).await?;
        let inbox = link.client.new_inbox();
        let subscriber = link
            .client
            .subscribe(inbox.clone())
            .await
            .map_err(|error| link.not_understood(&operation, &error.to_string()))?;
        // A name of our own, so that it can be removed when we are done.
        let consumer = format!("machines-{}", uuid::Uuid::new_v4().simple());
        let stream = format!("KV_{bucket}");
        let filter = format!("$KV.{bucket}.{pattern}");
        let deliver = if replay == Replay::All { "all" } else { "last_per_subject" };
        let body = json!({
            "stream_name": stream,
            "action": "create",
            "config": {
                "name": consumer,
                "description": "a reading by machines",
                "deliver_policy": deliver,
                "ack_policy": "none",
                "replay_policy": "instant",
                "filter_subject": filter,
                "headers_only": replay == Replay::NewestHeaders,
                "mem_storage": true,
                "num_replicas": 1,
                "inactive_threshold": nanoseconds(INACTIVE_LIMIT),
            },
        });
        // With the filter in the subject, which is what servers can restrict by permission.
        let subject = format!("CONSUMER.CREATE.{stream}.{consumer}.{filter}");
        let info: ConsumerInfo =
            link.api(&operation, &subject, &body).await.map_err(|failure| link.meaning(&operation, bucket, failure))?;
        Ok(Self {
            link: Arc::clone(link),
            bucket: bucket.to_owned(),
            consumer,
            inbox,
            subscriber,
            outstanding: 0,
            delivered: 0,
            current: if info.num_pending == 0 { Currency::Reached } else { Currency::Behind },
        })
    }

    /// The next entry, or that all are delivered. May be cancelled.
    pub async fn next(&mut self) -> Result<Step, Lost> {
        loop {
            if self.current == Currency::Reached {
                self.current = Currency::Told;
                return Ok(Step::Current);
            }
            if self.outstanding == 0 {
                self.pull().await?;
            }
            let message = match timeout(SILENCE_LIMIT, self.subscriber.next()).await {
                Ok(Some(message)) => message,
                Ok(None) => return Err(Lost::Ended("the subscription is closed".to_owned())),
                Err(_) => return Err(Lost::Silence),
            };
            match message.status {
                None | Some(StatusCode::OK) => return self.entry(message).map(Step::Entry),
                // The pull's end or an idle server: either way nothing more is there now.
                Some(StatusCode::IDLE_HEARTBEAT) => self.reached(),
                Some(StatusCode::TIMEOUT | StatusCode::NOT_FOUND) => {
                    self.outstanding = 0;
                    self.reached();
                }
                Some(status) => {
                    let description = message.description.unwrap_or_else(|| status.to_string());
                    return Err(Lost::Ended(cut(&description, SHOWN_CHARACTERS)));
                }
            }
        }
    }

    /// The count of pending entries, which normally tells the end, goes stale when entries expire or are purged before
    /// they were delivered; silence tells it too.
    fn reached(&mut self) {
        if self.current == Currency::Behind {
            self.current = Currency::Reached;
        }
    }

    async fn pull(&mut self) -> Result<(), Lost> {
        let body = json!({
            "batch": PULL_BATCH,
            "expires": nanoseconds(PULL_EXPIRY),
            "idle_heartbeat": nanoseconds(HEARTBEAT),
        });
        let subject = format!("{}.CONSUMER.MSG.NEXT.KV_{}.{}", self.link.api_prefix, self.bucket, self.consumer);
        let sent = self.link.client.publish_with_reply(subject, self.inbox.clone(), body.to_string().into()).await;
        sent.map_err(|error| Lost::Ended(error.to_string()))?;
        self.outstanding = PULL_BATCH;
        Ok(())
    }

    fn entry(&mut self, message: Message) -> Result<Entry, Lost> {
        self.outstanding = self.outstanding.saturating_sub(1);
        let message = async_nats::jetstream::Message { message, context: self.link.jetstream.clone() };
        let info = message.info().map_err(|error| Lost::Malformed(error.to_string()))?;
        if info.consumer_sequence != self.delivered + 1 {
            return Err(Lost::Gap);
        }
        self.delivered = info.consumer_sequence;
        if info.pending == 0 {
            self.reached();
        }
        let revision = info.stream_sequence;
        let created = Timestamp::from_nanosecond(info.published.unix_timestamp_nanos())
            .map_err(|error| Lost::Malformed(error.to_string()))?;
        let message = message.message;
        let prefix = format!("$KV.{}.", self.bucket);
        let key = message
            .subject
            .as_str()
            .strip_prefix(&prefix)
            .ok_or_else(|| {
                Lost::Malformed(format!("its subject is {:?}", cut(message.subject.as_str(), SHOWN_CHARACTERS)))
            })?
            .to_owned();
        let operation = message.headers.as_ref().map_or(Operation::Put, operation_of_headers);
        Ok(Entry { bucket: self.bucket.clone(), key, value: message.payload, revision, created, operation })
    }
}

impl Drop for Reading {
    /// Takes the consumer off the server at once; otherwise interruptions of a whole fleet pile them up there.
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        if !self.link.connected() {
            return;
        }
        let client = self.link.client.clone();
        let subject = format!("{}.CONSUMER.DELETE.KV_{}.{}", self.link.api_prefix, self.bucket, self.consumer);
        runtime.spawn(async move {
            // With a reply subject, as the server ignores calls without one. Nobody waits for the answer.
            let reply = client.new_inbox();
            let _ = client.publish_with_reply(subject, reply, bytes::Bytes::new()).await;
        });
    }
}

fn operation_of_headers(headers: &HeaderMap) -> Operation {
    let value = |name: &str| headers.get(name).map(async_nats::HeaderValue::as_str);
    operation_of_header(value(OPERATION), value(MARKER_REASON))
}

/// The operation by ADR-8, or by the marker that the server itself leaves when a limit removed the last value.
pub(super) fn operation_of_header(operation: Option<&str>, marker: Option<&str>) -> Operation {
    match (operation, marker) {
        (Some("DEL"), _) | (None, Some("Remove")) => Operation::Delete,
        (Some("PURGE"), _) | (None, Some("MaxAge" | "Purge")) => Operation::Purge,
        _ => Operation::Put,
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
