//! Governors on JetStream, as Choria has them: the stream `GOVERNOR_<NAME>` with a message limit (the capacity),
//! discard-new, a maximum age (after which a crashed holder's slot is free) and the subject
//! `<collective>.governor.<NAME>`. A message is a slot, its payload says who holds it, its deletion frees it.
//!
//! **A publish without an answer** may have taken a slot, or may take one yet, when a connection comes back and what was
//! waiting in it is sent. Asking again without looking would let one holder take two. So each message carries the id
//! of its claim and attempt as `Nats-Msg-Id`, which does two things: the messages in the stream can be searched for our
//! own before the next attempt (`find`), and when the first one arrives late after all, the server takes the second for
//! the duplicate that it is and answers with the first one's sequence. The caller (`governor`) keeps a claim's attempt
//! until it was clearly refused, searches before it repeats, and searches again when it gives up.

use std::sync::Arc;

use async_nats::HeaderMap;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::link::{ApiError, ApiFailure, CALL_LIMIT, Link, code};
use super::{Nothing, StreamNames, duplicate_window, nanoseconds};
use crate::kv::{Claim, DEFAULT_COLLECTIVE, GovernorSettings, GovernorStatus, HeldSlot, KvError, Owner, Slots, Taken};
use crate::names::GovernorName;

const PREFIX: &str = "GOVERNOR_";
const MESSAGE_ID: &str = "Nats-Msg-Id";
/// Another stream that takes every subject must not pass for a governor that does not exist.
const EXPECTED_STREAM: &str = "Nats-Expected-Stream";

/// The server's words beside the code [`code::STORE_FAILED`], which it uses for full disks as well.
const FULL: &str = "maximum messages exceeded";
/// Listing ends after so many slots; each is a request. Only streams made by other means can have more.
const MAXIMUM_LISTED: usize = 10_000;

/// The governors of a JetStream account.
pub(super) struct NatsSlots {
    link: Arc<Link>,
}

#[derive(Deserialize)]
struct Acknowledgement {
    seq: u64,
}

#[derive(Deserialize)]
struct Answer {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    seq: u64,
    /// Base 64, absent without headers.
    hdrs: Option<String>,
    /// Base 64, absent when empty.
    data: Option<String>,
    time: Timestamp,
}

impl Message {
    /// The id with which it was published.
    fn id(&self) -> Option<String> {
        let headers = STANDARD.decode(self.hdrs.as_deref()?).ok()?;
        let text = String::from_utf8_lossy(&headers);
        let named =
            |line: &str| line.split_once(':').filter(|(name, _)| *name == MESSAGE_ID).map(|(_, id)| id.to_owned());
        text.lines().find_map(named).map(|id| id.trim().to_owned())
    }

    fn is_of(&self, claim: &str) -> bool {
        self.id().is_some_and(|id| Claim::is_own(claim, &id))
    }
}

#[derive(Deserialize)]
struct Information {
    /// Kept whole: an update must send back what it does not change.
    config: Value,
    state: State,
}

#[derive(Deserialize)]
struct State {
    messages: u64,
}

impl Information {
    fn number(&self, key: &str) -> Option<u64> {
        self.config.get(key).and_then(Value::as_u64).filter(|number| *number > 0)
    }

    /// Where to publish. A subject with a wildcard is no address.
    fn subject(&self) -> Option<String> {
        let subjects = self.config.get("subjects")?.as_array()?;
        subjects.iter().filter_map(Value::as_str).find(|subject| !subject.contains(['*', '>'])).map(str::to_owned)
    }

    fn status(&self, name: &GovernorName) -> GovernorStatus {
        GovernorStatus {
            name: name.clone(),
            capacity: self.number("max_msgs"),
            taken: self.state.messages,
            expire_seconds: self
                .number("max_age")
                .map(|nanoseconds| std::time::Duration::from_nanos(nanoseconds).as_secs_f64()),
            replicas: self.number("num_replicas").and_then(|count| usize::try_from(count).ok()).unwrap_or(1),
            subject: self.subject(),
            backing: "JetStream",
        }
    }
}

fn subject(collective: &str, name: &GovernorName) -> String {
    format!("{collective}.governor.{name}")
}

impl NatsSlots {
    pub fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    fn meaning(&self, operation: &str, name: &GovernorName, failure: ApiFailure) -> KvError {
        match failure {
            ApiFailure::Server(error) if error.err_code == code::STREAM_NOT_FOUND => {
                KvError::NoGovernor { governor: name.clone() }
            }
            failure => self.link.meaning(operation, "", failure),
        }
    }

    async fn call<T: serde::de::DeserializeOwned>(
        &self,
        operation: &str,
        verb: &str,
        name: &GovernorName,
        body: &Value,
    ) -> Result<T, KvError> {
        let subject = format!("{verb}.{PREFIX}{name}");
        self.link.api(operation, &subject, body).await.map_err(|failure| self.meaning(operation, name, failure))
    }

    async fn information(&self, operation: &str, name: &GovernorName) -> Result<Information, KvError> {
        self.call(operation, "STREAM.INFO", name, &json!({})).await
    }

    /// The first message from a sequence on. Asked from the leader, as is all here.
    async fn next(&self, operation: &str, name: &GovernorName, sequence: u64) -> Result<Option<Message>, KvError> {
        self.message(operation, name, &json!({"seq": sequence, "next_by_subj": ">"})).await
    }

    async fn message(&self, operation: &str, name: &GovernorName, which: &Value) -> Result<Option<Message>, KvError> {
        let subject = format!("STREAM.MSG.GET.{PREFIX}{name}");
        match self.link.api::<Answer>(operation, &subject, which).await {
            Ok(answer) => Ok(Some(answer.message)),
            Err(ApiFailure::Server(error)) if error.err_code == code::MESSAGE_NOT_FOUND => Ok(None),
            Err(failure) => Err(self.meaning(operation, name, failure)),
        }
    }

    async fn messages(&self, operation: &str, name: &GovernorName) -> Result<Vec<Message>, KvError> {
        let mut messages = Vec::new();
        let mut sequence = 1;
        while messages.len() < MAXIMUM_LISTED
            && let Some(message) = self.next(operation, name, sequence).await?
        {
            sequence = message.seq.saturating_add(1);
            messages.push(message);
        }
        Ok(messages)
    }

    /// One publish. `Ok(None)`: no governor listens on this subject.
    async fn publish(
        &self,
        operation: &str,
        name: &GovernorName,
        subject: String,
        claim: &Claim,
    ) -> Result<Option<Taken>, KvError> {
        // Until there is a connection nothing is sent, and nothing is unclear.
        self.link.ready(Instant::now() + CALL_LIMIT).await?;
        let mut headers = HeaderMap::new();
        headers.insert(MESSAGE_ID, claim.message_id());
        headers.insert(EXPECTED_STREAM, format!("{PREFIX}{name}"));
        let payload = claim.description().to_owned().into();
        let answer = match self.link.request(operation, subject, headers, payload).await {
            Ok(Some(answer)) => answer,
            Ok(None) => return Ok(None),
            Err(error) => return Ok(Some(Taken::Unclear(error))),
        };
        match self.link.parse::<Acknowledgement>(operation, &answer.payload) {
            Ok(acknowledgement) => Ok(Some(Taken::Slot(acknowledgement.seq))),
            Err(ApiFailure::Server(error)) if is_full(&error) => Ok(Some(Taken::Full)),
            Err(ApiFailure::Server(error)) if error.err_code == code::WRONG_STREAM => Ok(None),
            Err(failure) => Err(self.meaning(operation, name, failure)),
        }
    }
}

fn is_full(error: &ApiError) -> bool {
    error.err_code == code::STORE_FAILED && error.description.contains(FULL)
}

#[async_trait::async_trait]
impl Slots for NatsSlots {
    async fn add(&self, settings: &GovernorSettings) -> Result<(), KvError> {
        settings.check()?;
        let name = &settings.name;
        let operation = format!("set up governor \"{name}\"");
        let mut changes = vec![
            ("max_msgs", json!(settings.capacity)),
            ("max_age", json!(nanoseconds(settings.expire))),
            ("duplicate_window", json!(nanoseconds(duplicate_window(settings.expire)))),
            ("discard", json!("new")),
        ];
        if let Some(replicas) = settings.replicas {
            changes.push(("num_replicas", json!(replicas)));
        }
        let collective = settings.collective.as_deref();
        match self.information(&operation, name).await {
            Ok(Information { mut config, .. }) => {
                if let Some(collective) = collective {
                    changes.push(("subjects", json!([subject(collective, name)])));
                }
                if let Some(config) = config.as_object_mut() {
                    config.extend(changes.into_iter().map(|(key, value)| (key.to_owned(), value)));
                }
                self.call(&operation, "STREAM.UPDATE", name, &config).await.map(|Nothing {}| ())
            }
            Err(KvError::NoGovernor { .. }) => {
                let mut config = json!({
                    "name": format!("{PREFIX}{name}"),
                    "description": format!("Governor {name}: each message is a slot that is taken"),
                    "subjects": [subject(collective.unwrap_or(DEFAULT_COLLECTIVE), name)],
                    "max_bytes": -1, "max_consumers": -1, "max_msgs_per_subject": -1, "max_msg_size": -1,
                    "num_replicas": 1, "retention": "limits", "storage": "file",
                });
                if let Some(config) = config.as_object_mut() {
                    config.extend(changes.into_iter().map(|(key, value)| (key.to_owned(), value)));
                }
                self.call(&operation, "STREAM.CREATE", name, &config).await.map(|Nothing {}| ())
            }
            Err(error) => Err(error),
        }
    }

    async fn take(&self, name: &GovernorName, claim: &Claim) -> Result<Taken, KvError> {
        let operation = format!("take a slot of governor \"{name}\"");
        let usual = subject(DEFAULT_COLLECTIVE, name);
        if let Some(taken) = self.publish(&operation, name, usual.clone(), claim).await? {
            return Ok(taken);
        }
        // It does not exist, or belongs to another collective.
        let known = self.information(&operation, name).await?.subject().filter(|known| *known != usual);
        match known {
            Some(known) => self.publish(&operation, name, known, claim).await?,
            None => None,
        }
        .ok_or_else(|| self.link.not_understood(&operation, "its stream takes no message on its subject"))
    }

    async fn find(&self, name: &GovernorName, claim: &str) -> Result<Vec<u64>, KvError> {
        let operation = format!("look for a slot of governor \"{name}\"");
        let messages = self.messages(&operation, name).await?;
        Ok(messages.iter().filter(|message| message.is_of(claim)).map(|message| message.seq).collect())
    }

    async fn free(&self, name: &GovernorName, sequence: u64, owner: Owner<'_>) -> Result<bool, KvError> {
        let operation = format!("free slot {sequence} of governor \"{name}\"");
        if let Owner::Claim(claim) = owner {
            match self.message(&operation, name, &json!({"seq": sequence})).await? {
                Some(message) if message.is_of(claim) => {}
                Some(_) | None => return Ok(false),
            }
        }
        // Overwriting the message on the disk, the server's default, is for secrets.
        let body = json!({"seq": sequence, "no_erase": true});
        let subject = format!("STREAM.MSG.DELETE.{PREFIX}{name}");
        match self.link.api::<Nothing>(&operation, &subject, &body).await {
            Ok(Nothing {}) => Ok(true),
            Err(ApiFailure::Server(error))
                if matches!(
                    error.err_code,
                    code::SEQUENCE_NOT_FOUND | code::DELETE_FAILED | code::MESSAGE_NOT_FOUND
                ) =>
            {
                Ok(false)
            }
            Err(failure) => Err(self.meaning(&operation, name, failure)),
        }
    }

    async fn governor(&self, name: &GovernorName) -> Result<GovernorStatus, KvError> {
        Ok(self.information(&format!("look at governor \"{name}\""), name).await?.status(name))
    }

    async fn governors(&self) -> Result<Vec<GovernorStatus>, KvError> {
        let operation = "list the governors";
        let mut found = Vec::new();
        let mut offset = 0;
        loop {
            let page: StreamNames = self
                .link
                .api(operation, "STREAM.NAMES", &json!({"offset": offset}))
                .await
                .map_err(|failure| self.link.meaning(operation, "", failure))?;
            let streams = page.streams.unwrap_or_default();
            offset += streams.len();
            let finished = streams.is_empty() || offset >= page.total;
            found.extend(streams.iter().filter_map(|stream| GovernorName::new(stream.strip_prefix(PREFIX)?).ok()));
            if finished {
                break;
            }
        }
        found.sort();
        let mut governors = Vec::new();
        for name in &found {
            match self.governor(name).await {
                Ok(status) => governors.push(status),
                // Deleted just now.
                Err(KvError::NoGovernor { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(governors)
    }

    async fn held(&self, name: &GovernorName) -> Result<Vec<HeldSlot>, KvError> {
        let messages = self.messages(&format!("list the slots of governor \"{name}\""), name).await?;
        let slot = |message: Message| {
            let holder = STANDARD.decode(message.data.unwrap_or_default()).unwrap_or_default();
            let holder = String::from_utf8_lossy(&holder).into_owned();
            HeldSlot { sequence: message.seq, since: message.time, holder }
        };
        Ok(messages.into_iter().map(slot).collect())
    }

    async fn reset(&self, name: &GovernorName) -> Result<(), KvError> {
        let operation = format!("reset governor \"{name}\"");
        self.call(&operation, "STREAM.PURGE", name, &json!({})).await.map(|Nothing {}| ())
    }

    async fn delete(&self, name: &GovernorName) -> Result<(), KvError> {
        let operation = format!("delete governor \"{name}\"");
        self.call(&operation, "STREAM.DELETE", name, &json!({})).await.map(|Nothing {}| ())
    }
}
