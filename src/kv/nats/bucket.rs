//! The calls on one JetStream key-value bucket (the stream `KV_<bucket>`), by ADR-8.

use std::sync::Arc;

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;

use super::consumer::{Reading, Replay, Step, operation_of_header};
use super::link::{ApiError, ApiFailure, Link, code};
use super::watch;
use crate::kv::names::check_pattern;
use crate::kv::{Bucket, BucketStatus, Entry, KvError, Operation, Watch, check_key};

const EXPECTED_SEQUENCE: &str = "Nats-Expected-Last-Subject-Sequence";
pub(super) const OPERATION: &str = "KV-Operation";
pub(super) const MARKER_REASON: &str = "Nats-Marker-Reason";

pub(super) struct NatsBucket {
    link: Arc<Link>,
    name: String,
}

/// The answer to a publish.
#[derive(Deserialize)]
struct Acknowledgement {
    seq: u64,
}

#[derive(Deserialize)]
struct StoredMessageAnswer {
    message: StoredMessage,
}

#[derive(Deserialize)]
struct StoredMessage {
    seq: u64,
    /// Base 64, absent without headers.
    hdrs: Option<String>,
    /// Base 64, absent when empty.
    data: Option<String>,
    time: Timestamp,
}

#[derive(Deserialize)]
struct StreamInfo {
    config: StreamConfiguration,
    state: StreamState,
}

#[derive(Deserialize)]
struct StreamConfiguration {
    max_msgs_per_subject: i64,
    /// Nanoseconds.
    max_age: u64,
    max_msg_size: Option<i64>,
    num_replicas: usize,
}

#[derive(Deserialize)]
struct StreamState {
    messages: u64,
    bytes: u64,
}

/// What a publish does besides storing the value.
enum Change {
    Put,
    /// Only when this is the key's newest revision.
    Expecting(u64),
    Delete,
    Purge,
}

impl NatsBucket {
    pub fn new(link: Arc<Link>, name: &str) -> Self {
        Self { link, name: name.to_owned() }
    }

    fn operation(&self, verb: &str, key: &str) -> String {
        format!("{verb} key {key:?} of bucket {:?}", self.name)
    }

    async fn publish(&self, verb: &str, key: &str, value: Bytes, change: &Change) -> Result<u64, ApiFailure> {
        check_key(key).map_err(ApiFailure::Call)?;
        let operation = self.operation(verb, key);
        let size = value.len();
        let limit = self.link.client.max_payload();
        if self.link.connected() && size > limit {
            return Err(ApiFailure::Call(self.too_large(key, size, Some(limit as u64))));
        }
        let mut headers = HeaderMap::new();
        match change {
            Change::Put => {}
            Change::Expecting(revision) => headers.insert(EXPECTED_SEQUENCE, revision.to_string()),
            Change::Delete => headers.insert(OPERATION, "DEL"),
            Change::Purge => {
                headers.insert(OPERATION, "PURGE");
                headers.insert("Nats-Rollup", "sub");
            }
        }
        let subject = format!("{}$KV.{}.{key}", self.link.put_prefix, self.name);
        let answer = self.link.request(&operation, subject, headers, value).await.map_err(ApiFailure::Call)?;
        let Some(answer) = answer else {
            // Nothing stores this subject. Why not?
            let missing = self.information(&operation).await.err();
            return Err(ApiFailure::Call(missing.unwrap_or_else(|| self.link.no_jetstream(&operation))));
        };
        match self.link.parse::<Acknowledgement>(&operation, &answer.payload) {
            Ok(acknowledgement) => Ok(acknowledgement.seq),
            Err(ApiFailure::Server(error)) if error.err_code == code::MESSAGE_TOO_LARGE => {
                let limit = self.information(&operation).await.ok().and_then(|info| value_limit(&info.config));
                Err(ApiFailure::Call(self.too_large(key, size, limit)))
            }
            Err(failure) => Err(failure),
        }
    }

    async fn publish_plain(&self, verb: &str, key: &str, value: Bytes, change: &Change) -> Result<u64, KvError> {
        self.publish(verb, key, value, change)
            .await
            .map_err(|failure| self.link.meaning(&self.operation(verb, key), &self.name, failure))
    }

    fn too_large(&self, key: &str, size: usize, limit_bytes: Option<u64>) -> KvError {
        KvError::TooLarge { bucket: self.name.clone(), key: key.to_owned(), size_bytes: size as u64, limit_bytes }
    }

    async fn information(&self, operation: &str) -> Result<StreamInfo, KvError> {
        self.link
            .api(operation, &format!("STREAM.INFO.KV_{}", self.name), &json!({}))
            .await
            .map_err(|failure| self.link.meaning(operation, &self.name, failure))
    }

    /// The newest entry of a key, deletions included. Asked from the stream's leader: a direct get could be answered by
    /// a replica that lags behind.
    async fn newest(&self, key: &str) -> Result<Option<Entry>, KvError> {
        check_key(key)?;
        let operation = self.operation("get", key);
        let body = json!({"last_by_subj": format!("$KV.{}.{key}", self.name)});
        let subject = format!("STREAM.MSG.GET.KV_{}", self.name);
        let answer: StoredMessageAnswer = match self.link.api(&operation, &subject, &body).await {
            Ok(answer) => answer,
            Err(ApiFailure::Server(error)) if error.err_code == code::MESSAGE_NOT_FOUND => return Ok(None),
            Err(failure) => return Err(self.link.meaning(&operation, &self.name, failure)),
        };
        let message = answer.message;
        let decode = |text: Option<String>| {
            STANDARD
                .decode(text.unwrap_or_default())
                .map_err(|error| self.link.not_understood(&operation, &error.to_string()))
        };
        let headers = decode(message.hdrs)?;
        Ok(Some(Entry {
            bucket: self.name.clone(),
            key: key.to_owned(),
            value: decode(message.data)?.into(),
            revision: message.seq,
            created: message.time,
            operation: operation_of_raw_headers(&headers),
        }))
    }

    /// Reads what is there and ends.
    async fn read(&self, verb: &str, pattern: &str, replay: Replay) -> Result<Vec<Entry>, KvError> {
        let operation = self.operation(verb, pattern);
        let mut reading = Reading::open(&self.link, &self.name, pattern, replay).await?;
        let mut entries = Vec::new();
        loop {
            match reading.next().await {
                Ok(Step::Entry(entry)) => entries.push(entry),
                Ok(Step::Current) => return Ok(entries),
                Err(lost) => return Err(self.link.not_understood(&operation, &lost.to_string())),
            }
        }
    }
}

#[async_trait::async_trait]
impl Bucket for NatsBucket {
    async fn get(&self, key: &str) -> Result<Option<Entry>, KvError> {
        Ok(self.newest(key).await?.filter(|entry| entry.operation == Operation::Put))
    }

    async fn put(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        self.publish_plain("put", key, value, &Change::Put).await
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<u64, KvError> {
        let verb = "create";
        let exists = || KvError::KeyExists { bucket: self.name.clone(), key: key.to_owned() };
        match self.publish(verb, key, value.clone(), &Change::Expecting(0)).await {
            Err(ApiFailure::Server(error)) if is_wrong_revision(&error) => {}
            result => {
                return result.map_err(|failure| self.link.meaning(&self.operation(verb, key), &self.name, failure));
            }
        }
        // The key has revisions; when the newest is a deletion, put on top of exactly that one.
        let revision = match self.newest(key).await? {
            Some(entry) if entry.operation == Operation::Put => return Err(exists()),
            Some(entry) => entry.revision,
            None => 0,
        };
        match self.publish(verb, key, value, &Change::Expecting(revision)).await {
            Err(ApiFailure::Server(error)) if is_wrong_revision(&error) => Err(exists()),
            result => result.map_err(|failure| self.link.meaning(&self.operation(verb, key), &self.name, failure)),
        }
    }

    async fn update(&self, key: &str, value: Bytes, revision: u64) -> Result<u64, KvError> {
        let verb = "update";
        match self.publish(verb, key, value, &Change::Expecting(revision)).await {
            Err(ApiFailure::Server(error)) if is_wrong_revision(&error) => Err(KvError::WrongRevision {
                bucket: self.name.clone(),
                key: key.to_owned(),
                expected: revision,
                found: error.description.rsplit(' ').next().and_then(|number| number.parse().ok()),
            }),
            result => result.map_err(|failure| self.link.meaning(&self.operation(verb, key), &self.name, failure)),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), KvError> {
        self.publish_plain("delete", key, Bytes::new(), &Change::Delete).await.map(drop)
    }

    async fn purge(&self, key: &str) -> Result<(), KvError> {
        self.publish_plain("purge", key, Bytes::new(), &Change::Purge).await.map(drop)
    }

    async fn keys(&self) -> Result<Vec<String>, KvError> {
        let entries = self.read("list", ">", Replay::NewestHeaders).await?;
        let mut keys: Vec<String> =
            entries.into_iter().filter(|entry| entry.operation == Operation::Put).map(|entry| entry.key).collect();
        keys.sort();
        Ok(keys)
    }

    async fn history(&self, key: &str) -> Result<Vec<Entry>, KvError> {
        check_key(key)?;
        self.read("read the history of", key, Replay::All).await
    }

    async fn watch(&self, pattern: &str) -> Result<Watch, KvError> {
        check_pattern(pattern)?;
        Ok(watch::start(Arc::clone(&self.link), &self.name, pattern))
    }

    async fn status(&self) -> Result<BucketStatus, KvError> {
        let info = self.information(&format!("get the status of bucket {:?}", self.name)).await?;
        let ttl_seconds = (info.config.max_age > 0).then(|| info.config.max_age.div_ceil(1_000_000_000));
        Ok(BucketStatus {
            bucket: self.name.clone(),
            values: info.state.messages,
            history: u64::try_from(info.config.max_msgs_per_subject).unwrap_or_default(),
            ttl_seconds,
            bytes: info.state.bytes,
            maximum_value_bytes: value_limit(&info.config),
            replicas: info.config.num_replicas,
            backing: "JetStream",
        })
    }
}

fn value_limit(config: &StreamConfiguration) -> Option<u64> {
    config.max_msg_size.and_then(|size| u64::try_from(size).ok()).filter(|size| *size > 0)
}

fn is_wrong_revision(error: &ApiError) -> bool {
    matches!(error.err_code, code::WRONG_LAST_SEQUENCE | code::WRONG_LAST_SEQUENCE_CONSTANT)
}

/// The operation in the headers as they are stored: `NATS/1.0`, then lines of `Name: value`.
fn operation_of_raw_headers(headers: &[u8]) -> Operation {
    let text = String::from_utf8_lossy(headers);
    let value = |name: &str| {
        text.lines()
            .find_map(|line| line.split_once(':').filter(|(key, _)| *key == name).map(|(_, value)| value.trim()))
    };
    operation_of_header(value(OPERATION), value(MARKER_REASON))
}
