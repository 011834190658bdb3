//! `archive`: keeps one directory, unpacked from an archive whose checksum is known, exactly as it was packed. What is
//! there is replaced in one step, and only by something that has been verified whole.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

use crate::archive::{Fetcher, Purpose};
use crate::digest::Sha256Digest;
use crate::machine::template::{Scope, Template};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, schema_of,
};
use crate::names::MachineName;
use crate::notices::{Following, Notices};
use crate::secret::{Secret, masked};
use crate::spec::{Credentials, Source};

use super::archive_place::{Archive, Condition, LIST_NAME, on_disk};
use super::governed::{Governed, five_minutes};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "archive",
    summary: "keeps a directory as a verified archive has it",
    minimum_interval: Duration::from_secs(10),
    default_interval: Some(Duration::from_secs(60)),
    outcomes: &["unknown", "skipped", "error", "verified", "downloaded", "verify_failed", "no_creates", "no_checksums"],
    build,
    example: "source: file:///nonexistent/tool-1.0.0.tgz\n\
              checksum: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n\
              creates: tool\n\
              target: /nonexistent\n\
              verify: SHA256SUMS\n\
              verify_checksum: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// `https://`, `http://`, `file:///…` or `obj://BUCKET/NAME`. This and the others that are texts may be templates.
    source: Template,
    /// SHA-256 of the archive.
    checksum: Template,
    /// The one top directory of the archive, made in `target`.
    creates: Template,
    /// An absolute path.
    target: Template,
    /// The name of the list of checksums; `SHA256SUMS`.
    verify: Option<Template>,
    /// SHA-256 of that list.
    verify_checksum: Template,
    /// For basic authentication.
    username: Option<Template>,
    password: Option<Template>,
    /// The certificate of the server is not checked. What comes is still what the checksum names, but anyone between may
    /// read the user and the password; to trust an authority of your own, set `[fetch] ca` instead.
    #[serde(default)]
    insecure: bool,
    /// How long fetching and unpacking may take; at least 5s.
    #[serde(default = "five_minutes", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    timeout: Duration,
    /// The governor whose slot is held while the archive is fetched and put in place.
    governor: Option<Template>,
    /// How long a slot is waited for, besides the time for fetching; then the check has failed.
    #[serde(default = "five_minutes", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    governor_timeout: Duration,
}

/// After a change on disk this passes before the check, as most changes are several.
const SETTLE: Duration = Duration::from_millis(300);

/// So many directories of a copy are followed; what changes in others is found by the interval.
const MAXIMUM_FOLLOWED: usize = 1_024;

/// An archive watcher.
struct Watched {
    properties: Properties,
    /// Where the last check looked, for the task that waits for changes there.
    place: watch::Sender<Option<PathBuf>>,
    insecure: OnceLock<Arc<Fetcher>>,
    governed: Governed,
}

/// A property, and what is wrong with it.
type Fault = (&'static str, String);

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    // What is no template is judged now.
    let (_, faults) = properties.read(|template| Ok(template.is_plain().then(|| template.source().to_owned())));
    let mut problems: Vec<_> = faults.into_iter().map(|(key, fault)| context.fault(key, fault)).collect();
    if properties.timeout < Duration::from_secs(5) {
        problems.push(context.fault("timeout", "timeout must be at least 5s"));
    }
    let (governor, patience) = (properties.governor.clone(), properties.governor_timeout);
    let governed = Governed::new(context, governor, patience, &mut problems);
    let place = watch::Sender::new(None);
    if problems.is_empty() {
        Ok(Arc::new(Watched { properties, place, insecure: OnceLock::new(), governed }))
    } else {
        Err(problems)
    }
}

impl Properties {
    /// Judges every text that `render` gives; `None` is one that is not known yet. The archive, when all are known and
    /// good, and all that is wrong.
    fn read(&self, render: impl Fn(&Template) -> Result<Option<String>, String>) -> (Option<Archive>, Vec<Fault>) {
        let mut faults: Vec<Fault> = Vec::new();
        let mut text = |key: &'static str, template: &Template| {
            render(template).unwrap_or_else(|fault| {
                faults.push((key, fault));
                None
            })
        };
        let source = text("source", &self.source);
        let checksum = text("checksum", &self.checksum);
        let verify_checksum = text("verify_checksum", &self.verify_checksum);
        let creates = text("creates", &self.creates);
        let target = text("target", &self.target);
        let list = self.verify.as_ref().and_then(|verify| text("verify", verify));
        let username = self.username.as_ref().and_then(|username| text("username", username));
        let password = self.password.as_ref().and_then(|password| text("password", password));
        let mut note = |key: &'static str, fault: String| faults.push((key, fault));
        let source = source
            .as_deref()
            .and_then(|text| Source::parse(text).map_err(|error| note("source", error.to_string())).ok());
        let mut digest = |key: &'static str, text: Option<String>| {
            text.and_then(|text| Sha256Digest::parse(&text).map_err(|error| note(key, error.to_string())).ok())
        };
        let checksum = digest("checksum", checksum);
        let verify_checksum = digest("verify_checksum", verify_checksum);
        let creates =
            creates.and_then(|text| MachineName::new(&text).map_err(|error| note("creates", error.to_string())).ok());
        if list.is_some_and(|list| list != LIST_NAME) {
            note("verify", format!("verify must be {LIST_NAME}"));
        }
        let is_plain = |part: Component<'_>| matches!(part, Component::RootDir | Component::Normal(_));
        let target = target.map(PathBuf::from).filter(|target| {
            let good = target.is_absolute() && target.components().all(is_plain);
            if !good {
                note("target", format!("target {} must be an absolute path without ..", target.display()));
            }
            good
        });
        if self.username.is_some() != self.password.is_some() {
            note("username", "username and password belong together".to_owned());
        }
        let credentials = username
            .zip(password)
            .map(|(username, password)| Credentials { username, password: Secret::new(password) });
        let archive = match (source, checksum, verify_checksum, creates, target) {
            (Some(source), Some(checksum), Some(verify_checksum), Some(creates), Some(target)) if faults.is_empty() => {
                Some(Archive { source, credentials, checksum, verify_checksum, creates, target })
            }
            _ => None,
        };
        (archive, faults)
    }

    fn templates(&self) -> impl Iterator<Item = &Template> {
        [&self.source, &self.checksum, &self.creates, &self.target, &self.verify_checksum]
            .into_iter()
            .chain(&self.verify)
            .chain(&self.username)
            .chain(&self.password)
    }
}

impl Watched {
    /// What is wanted at the moment.
    fn render(&self, scope: &Scope) -> Result<Archive, String> {
        let render = |template: &Template| match template.render(scope) {
            Ok(text) => Ok(Some(text.into_owned())),
            Err(error) => Err(crate::errors::chain(&error)),
        };
        let (archive, faults) = self.properties.read(render);
        archive.ok_or_else(|| {
            let faults: Vec<String> = faults.into_iter().map(|(key, fault)| format!("{key}: {fault}")).collect();
            faults.join("; ")
        })
    }

    fn fetcher(&self, context: &Context) -> Arc<Fetcher> {
        let usual = &context.services.fetcher;
        if !self.properties.insecure {
            return Arc::clone(usual);
        }
        Arc::clone(self.insecure.get_or_init(|| {
            let (machine, watcher) = (&context.definition.name, &context.watcher);
            tracing::warn!(%machine, %watcher, "insecure: the certificate of the source's server is not checked");
            Arc::new(usual.without_certificate_check())
        }))
    }
}

#[async_trait]
impl Watcher for Watched {
    async fn check(&self, check: Check) -> Report {
        let archive = match self.render(&check.scope()) {
            Ok(archive) => archive,
            Err(faults) => return Report::error(faults),
        };
        let link = archive.link();
        self.place.send_if_modified(|place| {
            let other = place.as_ref() != Some(&link);
            if other {
                *place = Some(link.clone());
            }
            other
        });
        let this = archive.clone();
        let (outcome, reason) = match on_disk(move || this.inspect()).await {
            Ok(Condition::Sound) => return Report::new("verified").fire(Fire::Success).announce(),
            Ok(Condition::Unsound(outcome, reason)) => (outcome, reason),
            Ok(Condition::Unusable(reason)) => {
                return Report::error(format!("could not look after {}: {reason}", link.display()));
            }
            Err(error) => return Report::error(error.to_string()),
        };
        tracing::info!(machine = %check.context.definition.name, watcher = %check.context.watcher, "{outcome}: {reason}");
        let _slot = match self.governed.enter(&check).await {
            Ok(slot) => slot,
            Err(report) => return report,
        };
        let fetcher = self.fetcher(&check.context);
        // What is broken waits behind nothing that is new.
        let purpose = if outcome == "verify_failed" { Purpose::Repair } else { Purpose::Install };
        let installing = archive.install(&check.context.services, &fetcher, purpose);
        let limit = self.properties.timeout;
        let late = || Err(format!("it took longer than {}", crate::duration::format(limit)));
        match tokio::time::timeout(limit, installing).await.unwrap_or_else(|_| late()) {
            Ok(()) => {
                // What is watched is another directory now.
                self.place.send_replace(Some(link));
                Report::new("downloaded").fire(Fire::Success).announce()
            }
            Err(error) if outcome == "verify_failed" => {
                let error = Some(format!("{reason}; and it can't be replaced: {error}"));
                Report { error, ..Report::new("verify_failed") }.fire(Fire::Fail).announce()
            }
            Err(error) => Report::error(format!("could not install {}: {error}", link.display())),
        }
    }

    fn fires_on_entry(&self) -> bool {
        true
    }

    fn timeout(&self) -> Duration {
        self.properties.timeout + self.governed.patience()
    }

    fn looks_up(&self) -> Vec<String> {
        let mut paths = self.governed.looks_up();
        paths.extend(self.properties.templates().flat_map(|template| template.lookups().to_vec()));
        paths
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let (mut place, notices) = (self.place.subscribe(), context.services.notices.clone());
        Some(Box::pin(async move {
            let mut following = None;
            loop {
                let has_changed = tokio::select! {
                    moved = place.changed() => {
                        if moved.is_err() {
                            return;
                        }
                        false
                    }
                    () = change(following.as_ref()) => {
                        tokio::time::sleep(SETTLE).await;
                        true
                    }
                };
                let link = place.borrow_and_update().clone();
                let (notices, before) = (notices.clone(), following.take());
                // Anew also after a change: there may be other directories now.
                let followed = tokio::task::spawn_blocking(move || {
                    let now = link.and_then(|link| follow(&notices, &link));
                    drop(before);
                    now
                });
                following = followed.await.ok().flatten();
                if has_changed {
                    signal.check();
                }
            }
        }))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([
            ("source".to_owned(), json!(masked(self.properties.source.source()))),
            ("creates".to_owned(), json!(self.properties.creates.source())),
            ("previous_outcome".to_owned(), json!(seen.outcome)),
            ("previous_run_time".to_owned(), json!(seen.run_time_nanos())),
        ])
    }
}

async fn change(following: Option<&Following>) {
    match following {
        Some(following) => following.changed().await,
        None => std::future::pending().await,
    }
}

/// Follows the link, and all below where it leads. Where that fails, the interval finds changes.
fn follow(notices: &Notices, link: &Path) -> Option<Following> {
    let followed = notices.follow_entry(link).and_then(|mut following| {
        let copy = std::fs::canonicalize(link).ok();
        for directory in copy.map(directories).unwrap_or_default() {
            following.also(&directory)?;
        }
        Ok(following)
    });
    followed
        .map_err(|error| tracing::debug!("{}: changes are found by the interval only: {error}", link.display()))
        .ok()
}

/// A directory and those below it.
fn directories(top: PathBuf) -> Vec<PathBuf> {
    let mut found = vec![top];
    let mut looked_at = 0;
    while let Some(directory) = found.get(looked_at) {
        let below = crate::fs::list(directory).unwrap_or_default().into_iter();
        let below = below.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let below: Vec<PathBuf> = below.map(|entry| entry.path()).collect();
        let room = MAXIMUM_FOLLOWED.saturating_sub(found.len());
        found.extend(below.into_iter().take(room));
        looked_at += 1;
    }
    found
}
