//! `gossip`: says, again and again while the machine is in a state, that it is there: any payload on a subject, or the
//! registration of a service in a bucket where others look for it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::kv::KvError;
use crate::machine::template::{Scope, Template, items_of};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fires, Kind, Report, Seen, Signal, Watcher, follow_facts,
    schema_of,
};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "gossip",
    summary: "publishes a payload, or registers a service, for as long as a state lasts",
    minimum_interval: Duration::from_secs(1),
    default_interval: Some(Duration::from_secs(15)),
    outcomes: &["unknown", "skipped", "error", "published"],
    build,
    example: "registration:\n  cluster: lon\n  service: web\n  protocol: http\n  address: 192.0.2.1\n  port: 80\n  \
              priority: 1\n  annotations: {role: \"{{ lookup `facts.role` `none` }}\"}\nttl_seconds: 60\n",
    fires: Fires::Fail,
    schema: schema_of::<Properties>,
};

/// Where registrations go without a prefix.
const BUCKET: &str = "CHORIA_SERVICES";
/// A payload may be this long, in bytes: what a NATS server takes as one message.
const MAXIMUM_PAYLOAD_BYTES: usize = 1024 * 1024;
const MAXIMUM_ANNOTATIONS: usize = 256;
/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The NATS subject to publish on.
    subject: Option<Template>,
    /// What to publish there.
    payload: Option<Template>,
    /// The message is for so many seconds: sent as the header `Nats-TTL`, which a stream that allows it honours. The
    /// embedded store keeps registrations for as long as its bucket says.
    ttl_seconds: Option<u32>,
    /// Registers a service, in the place of `subject` and `payload`.
    registration: Option<Registration>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Registration {
    /// A name: letters, digits, `_` and `-`, a letter first.
    cluster: Template,
    /// A name, as `cluster`.
    service: Template,
    /// A name, as `cluster`.
    protocol: Template,
    /// Where the service listens.
    address: Template,
    /// The port there.
    port: u16,
    /// Lower ones come first.
    #[serde(default)]
    priority: u32,
    /// Anything that others should know.
    #[serde(default)]
    annotations: BTreeMap<String, Template>,
    /// Publishes on `PREFIX.CLUSTER.PROTOCOL.SERVICE.INSTANCE` in the place of the bucket `CHORIA_SERVICES`.
    prefix: Option<Template>,
}

struct Gossip {
    what: What,
    ttl_seconds: Option<u32>,
    last: Mutex<Option<Published>>,
}

enum What {
    Payload { subject: Template, payload: Template },
    Registration(Registration),
}

/// Where a message goes.
enum Target {
    Subject(String),
    /// A key of [`BUCKET`].
    Key(String),
}

impl Target {
    fn subject(&self) -> String {
        match self {
            Self::Subject(subject) => subject.clone(),
            Self::Key(key) => format!("$KV.{BUCKET}.{key}"),
        }
    }
}

/// What was published last.
struct Published {
    subject: String,
    payload: String,
    /// Seconds since 1970.
    at: i64,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    let mut note = |key: &str, message: String| problems.push(context.fault(key, message));
    if properties.ttl_seconds == Some(0) {
        note("ttl_seconds", "ttl_seconds must be at least 1".to_owned());
    }
    let what = match (properties.registration, properties.subject, properties.payload) {
        (Some(registration), None, None) => {
            registration.check(&mut note);
            Some(What::Registration(registration))
        }
        (Some(_), _, _) => {
            note("registration", "registration takes the place of subject and payload: give it alone".to_owned());
            None
        }
        (None, Some(subject), Some(payload)) => {
            if subject.is_plain()
                && let Err(reason) = check_subject(subject.source())
            {
                note("subject", reason);
            }
            Some(What::Payload { subject, payload })
        }
        (None, subject, _) => {
            let missing = if subject.is_none() { "subject" } else { "payload" };
            note("", format!("{missing} is missing; give subject and payload, or registration"));
            None
        }
    };
    match what {
        Some(what) if problems.is_empty() => {
            Ok(Arc::new(Gossip { what, ttl_seconds: properties.ttl_seconds, last: Mutex::default() }))
        }
        _ => Err(problems),
    }
}

/// A subject that can be published on: tokens without wildcards and spaces.
fn check_subject(subject: &str) -> Result<(), String> {
    let bad = |character: char| character.is_whitespace() || character.is_control() || "*>".contains(character);
    if subject.len() > 255 || subject.contains(bad) || subject.split('.').any(str::is_empty) {
        let shown: String = subject.chars().take(80).collect();
        return Err(format!("subject {shown:?} must be words joined by dots, without spaces, * and >"));
    }
    Ok(())
}

/// A word that is one token of a subject and of a key.
fn check_name(what: &str, name: &str) -> Result<(), String> {
    let mut bytes = name.bytes();
    let valid = name.len() <= 64
        && bytes.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if valid { Ok(()) } else { Err(format!("{what} {name:?} must be letters, digits, _ and -, a letter first")) }
}

impl Registration {
    fn names(&self) -> [(&'static str, &Template); 3] {
        [("cluster", &self.cluster), ("protocol", &self.protocol), ("service", &self.service)]
    }

    fn check(&self, note: &mut impl FnMut(&str, String)) {
        for (what, name) in self.names() {
            if name.is_plain()
                && let Err(reason) = check_name(what, name.source())
            {
                note(&format!("registration/{what}"), reason);
            }
        }
        if self.address.source().trim().is_empty() {
            note("registration/address", "address is empty".to_owned());
        }
        if self.port == 0 {
            note("registration/port", "port must not be 0".to_owned());
        }
        if let Some(prefix) = self.prefix.as_ref().filter(|prefix| prefix.is_plain())
            && let Err(reason) = check_subject(prefix.source())
        {
            note("registration/prefix", format!("prefix: {reason}"));
        }
        if self.annotations.len() > MAXIMUM_ANNOTATIONS {
            note("registration/annotations", format!("more than {MAXIMUM_ANNOTATIONS} annotations"));
        }
    }

    fn templates(&self) -> impl Iterator<Item = &Template> {
        let fixed = [&self.cluster, &self.service, &self.protocol, &self.address];
        fixed.into_iter().chain(self.annotations.values()).chain(&self.prefix)
    }

    fn message(&self, scope: &Scope, instance: &str) -> Result<(Target, String), String> {
        let mut registration = Map::new();
        let mut tokens = Vec::new();
        for (what, name) in self.names() {
            let name = render(name, scope)?;
            check_name(what, &name)?;
            registration.insert(what.to_owned(), name.clone().into());
            tokens.push(name);
        }
        let address = render(&self.address, scope)?;
        if address.trim().is_empty() {
            return Err("address is empty".to_owned());
        }
        let annotations: Map<String, Value> = self
            .annotations
            .iter()
            .map(|(name, value)| Ok((name.clone(), render(value, scope)?.into())))
            .collect::<Result<_, String>>()?;
        registration.insert("address".to_owned(), address.into());
        registration.insert("port".to_owned(), self.port.into());
        registration.insert("priority".to_owned(), self.priority.into());
        registration.insert("annotations".to_owned(), annotations.into());
        tokens.push(instance.to_owned());
        let key = tokens.join(".");
        let target = match &self.prefix {
            None => Target::Key(key),
            Some(prefix) => {
                let subject = format!("{}.{key}", render(prefix, scope)?);
                check_subject(&subject)?;
                Target::Subject(subject)
            }
        };
        Ok((target, Value::Object(registration).to_string()))
    }
}

fn render(template: &Template, scope: &Scope) -> Result<String, String> {
    let rendered = template.render(scope).map(std::borrow::Cow::into_owned);
    rendered.map_err(|error| crate::errors::chain(&error))
}

impl Gossip {
    fn templates(&self) -> Vec<&Template> {
        match &self.what {
            What::Payload { subject, payload } => vec![subject, payload],
            What::Registration(registration) => registration.templates().collect(),
        }
    }

    fn message(&self, check: &Check) -> Result<(Target, String), String> {
        let scope = check.scope();
        let (target, payload) = match &self.what {
            What::Payload { subject, payload } => {
                let subject = render(subject, &scope)?;
                check_subject(&subject)?;
                (Target::Subject(subject), render(payload, &scope)?)
            }
            What::Registration(registration) => registration.message(&scope, &check.context.instance)?,
        };
        if payload.len() > MAXIMUM_PAYLOAD_BYTES {
            return Err(format!("the payload has {} bytes, the limit is {MAXIMUM_PAYLOAD_BYTES}", payload.len()));
        }
        Ok((target, payload))
    }

    async fn publish(&self, context: &Context, target: &Target, payload: &str) -> Result<(), String> {
        let store = &context.services.store;
        let payload = Bytes::copy_from_slice(payload.as_bytes());
        let Some(client) = store.nats() else {
            return match target {
                Target::Subject(subject) => Err(format!(
                    "{subject} is a NATS subject, but the node has the embedded store; set [kv] url to nats://…"
                )),
                Target::Key(key) => put(context, key, payload).await,
            };
        };
        let connection = store.connection();
        if !connection.connected {
            return Err(format!("not connected to {}: {}", connection.url, connection.detail));
        }
        let mut headers = async_nats::HeaderMap::new();
        if let Some(seconds) = self.ttl_seconds {
            headers.insert("Nats-TTL", format!("{seconds}s"));
        }
        match target {
            Target::Subject(subject) => {
                let sent = client.publish_with_headers(subject.clone(), headers, payload).await;
                sent.map_err(|error| format!("could not publish on {subject}: {error}"))
            }
            Target::Key(_) if self.ttl_seconds.is_some() => {
                let subject = target.subject();
                let context = async_nats::jetstream::new(client);
                let refused = |error: &dyn std::fmt::Display| {
                    format!(
                        "could not register at {subject}: {error}; the bucket {BUCKET} must exist, and allow a time to \
                         live for each message when ttl_seconds is given"
                    )
                };
                let sent = context.publish_with_headers(subject.clone(), headers, payload).await;
                sent.map_err(|error| refused(&error))?.await.map(drop).map_err(|error| refused(&error))
            }
            Target::Key(key) => put(context, key, payload).await,
        }
    }
}

async fn put(context: &Context, key: &str, payload: Bytes) -> Result<(), String> {
    let put = async { context.services.store.bucket(BUCKET)?.put(key, payload).await };
    match put.await {
        Ok(_) => Ok(()),
        Err(error @ KvError::NoBucket { .. }) => {
            Err(format!("{}; registrations need it: mms kv add {BUCKET}", crate::errors::chain(&error)))
        }
        Err(error) => Err(crate::errors::chain(&error)),
    }
}

#[async_trait]
impl Watcher for Gossip {
    async fn check(&self, check: Check) -> Report {
        let (target, payload) = match self.message(&check) {
            Ok(message) => message,
            Err(error) => return Report::error(error),
        };
        let sent = tokio::time::timeout(PATIENCE, self.publish(&check.context, &target, &payload)).await;
        let patience = || Err(format!("no answer within {}", crate::duration::format(PATIENCE)));
        if let Err(error) = sent.unwrap_or_else(|_| patience()) {
            return Report::error(error);
        }
        let at = check.context.services.clock.now().as_second();
        let published = Published { subject: target.subject(), payload, at };
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(published);
        let report = Report::new("published");
        if check.previous_outcome == "published" { report } else { report.announce() }
    }

    fn timeout(&self) -> Duration {
        PATIENCE * 2
    }

    fn reads(&self) -> Vec<String> {
        items_of(self.templates().into_iter().flat_map(Template::lookups).map(String::as_str))
    }

    fn looks_up(&self) -> Vec<String> {
        self.templates().into_iter().flat_map(Template::lookups).cloned().collect()
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let asks_facts = self.looks_up().iter().any(|path| !path.starts_with("data."));
        asks_facts.then(|| Box::pin(follow_facts(Arc::clone(&context.services.node), signal)) as Background)
    }

    fn left(&self) -> Option<Report> {
        Some(Report::new("skipped"))
    }

    fn event_fields(&self, _: &Seen) -> Map<String, Value> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let last = last.as_ref().map(|last| (last.subject.as_str(), last.payload.as_str(), last.at));
        let (subject, payload, at) = last.unwrap_or_default();
        Map::from_iter([
            ("subject".to_owned(), json!(subject)),
            ("payload".to_owned(), json!(payload)),
            ("published".to_owned(), json!(at)),
        ])
    }
}
