//! The store on NATS JetStream. `link` keeps the connection, `bucket` does the calls, `consumer` reads a bucket's
//! entries in order, `watch` keeps such a reading alive, `objects` is the object store, `slots` are the governors,
//! and `calm` bounds what a server that is out of order can make of a connection.
//!
//! The calls speak the JetStream API themselves instead of through the client's own key-value type: each is then one
//! request with one deadline, its errors keep the server's codes, and a get asks the leader, which the client's does
//! not (its direct gets may be answered by a replica that lags behind).

mod bucket;
mod calm;
mod consumer;
mod credentials;
mod link;
mod objects;
mod slots;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use url::Url;

use self::bucket::NatsBucket;
use self::link::{ApiFailure, Link, code};
use super::settings::ConnectionSettings;
use super::{Bucket, BucketSettings, Connection, KvError, ObjectReader, Slots, Store, check_bucket, check_settings};

/// A connection to NATS.
pub(super) struct NatsStore {
    link: Arc<Link>,
}

impl NatsStore {
    pub async fn open(settings: &ConnectionSettings, servers: &[Url]) -> Result<Self, KvError> {
        Ok(Self { link: Arc::new(Link::open(settings, servers).await?) })
    }
}

/// The answers to calls of which only success matters.
#[derive(Deserialize)]
struct Nothing {}

#[derive(Deserialize)]
struct StreamNames {
    #[serde(default)]
    total: usize,
    /// `null` when there are none.
    streams: Option<Vec<String>>,
}

#[async_trait::async_trait]
impl Store for NatsStore {
    fn bucket(&self, name: &str) -> Result<Arc<dyn Bucket>, KvError> {
        check_bucket(name)?;
        Ok(Arc::new(NatsBucket::new(Arc::clone(&self.link), name)))
    }

    async fn create_bucket(&self, settings: &BucketSettings) -> Result<Arc<dyn Bucket>, KvError> {
        let bucket = self.bucket(&settings.name)?;
        check_settings(settings)?;
        let operation = format!("make bucket {:?}", settings.name);
        let ttl = settings.ttl.unwrap_or_default();
        // As in ADR-8. `allow_direct` is for other clients.
        let configuration = json!({
            "name": format!("KV_{}", settings.name),
            "subjects": [format!("$KV.{}.>", settings.name)],
            "max_msgs_per_subject": settings.history,
            "max_age": nanoseconds(ttl),
            "duplicate_window": nanoseconds(duplicate_window(ttl)),
            "max_msg_size": settings.maximum_value_bytes.map_or(-1, i64::from),
            "max_bytes": -1, "max_msgs": -1, "max_consumers": -1,
            "num_replicas": settings.replicas.max(1),
            "retention": "limits", "storage": "file", "discard": "new",
            "allow_rollup_hdrs": true, "deny_delete": true, "deny_purge": false, "allow_direct": true,
        });
        let subject = format!("STREAM.CREATE.KV_{}", settings.name);
        match self.link.api::<Nothing>(&operation, &subject, &configuration).await {
            Ok(Nothing {}) => Ok(bucket),
            Err(ApiFailure::Server(error)) if error.err_code == code::STREAM_NAME_IN_USE => {
                Err(KvError::BucketExists { bucket: settings.name.clone() })
            }
            Err(failure) => Err(self.link.meaning(&operation, &settings.name, failure)),
        }
    }

    async fn delete_bucket(&self, name: &str) -> Result<(), KvError> {
        check_bucket(name)?;
        let operation = format!("delete bucket {name:?}");
        let result = self.link.api::<Nothing>(&operation, &format!("STREAM.DELETE.KV_{name}"), &json!({})).await;
        result.map(|Nothing {}| ()).map_err(|failure| self.link.meaning(&operation, name, failure))
    }

    async fn buckets(&self) -> Result<Vec<String>, KvError> {
        let operation = "list the buckets";
        let mut names = Vec::new();
        let mut offset = 0;
        loop {
            let page: StreamNames = self
                .link
                .api(operation, "STREAM.NAMES", &json!({"offset": offset, "subject": "$KV.>"}))
                .await
                .map_err(|failure| self.link.meaning(operation, "", failure))?;
            let streams = page.streams.unwrap_or_default();
            offset += streams.len();
            let finished = streams.is_empty() || offset >= page.total;
            names.extend(streams.iter().filter_map(|name| name.strip_prefix("KV_")).map(str::to_owned));
            if finished {
                names.sort();
                return Ok(names);
            }
        }
    }

    async fn get_object(&self, bucket: &str, name: &str) -> Result<ObjectReader, KvError> {
        objects::get(&self.link, bucket, name).await
    }

    async fn put_object(&self, bucket: &str, name: &str, content: ObjectReader) -> Result<(), KvError> {
        objects::put(&self.link, bucket, name, content).await
    }

    fn slots(&self) -> Option<Arc<dyn Slots>> {
        Some(Arc::new(slots::NatsSlots::new(Arc::clone(&self.link))))
    }

    fn connection(&self) -> Connection {
        self.link.connection()
    }

    fn nats(&self) -> Option<async_nats::Client> {
        Some(self.link.client.clone())
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

/// The server refuses a window that is longer than the maximum age; two minutes are its default.
fn duplicate_window(ttl: Duration) -> Duration {
    let default = Duration::from_secs(120);
    if ttl.is_zero() { default } else { ttl.min(default) }
}

/// A delay that doubles with each attempt up to `maximum`, and is spread over its upper half so that many clients do
/// not act as one.
pub(super) fn backoff(attempt: usize, first: Duration, maximum: Duration) -> Duration {
    let doublings = u32::try_from(attempt).unwrap_or(u32::MAX).min(16);
    let full = first.saturating_mul(1 << doublings).min(maximum);
    // Without randomness the delay is only less spread.
    let random = getrandom::u32().unwrap_or(u32::MAX);
    full.mul_f64(0.5 + 0.5 * f64::from(random) / f64::from(u32::MAX))
}
