//! What SIGHUP does: the settings are read again, and each difference is brought about by the smallest part that it
//! touches. Everything that can fail is made ready first; if something does, all stays as it is. In: the settings in force
//! and the file. Out: the settings in force.

use std::sync::Arc;

use machines::config::{Change, Effect, File, Settings};
use machines::control::listener;
use machines::machine::definition::Definition;
use machines::node::Node;

use crate::daemon::{Daemon, discover, listen};
use crate::logging::LevelHandle;
use crate::ownership;
use crate::run::{load, warn_of_trust};
use crate::shared::Failure;

/// Reads the settings again. No machine is started again but those that a change is about.
pub async fn reload(file: &File, in_force: &mut Settings, daemon: &mut Daemon, level: &LevelHandle) {
    tracing::info!("reading the settings again");
    match Prepared::new(file, in_force, daemon).await {
        Ok(prepared) => prepared.commit(in_force, daemon, level).await,
        Err(Failure::Usage(error) | Failure::Error(error)) => {
            tracing::error!("the settings in force stay: {}", machines::errors::chain(&*error));
        }
        Err(Failure::Negative | Failure::Code(_)) => {}
    }
}

/// What becomes of the HTTP listener.
enum Http {
    /// As it was, or there is none.
    Stays,
    /// This one takes its place, or none does.
    Becomes(Option<listener::Listener>),
    /// The port is ours, at another address: it is free only when the listener of before is gone.
    Moves,
}

/// What is read beside the settings: the facts, the token.
#[derive(Clone, Copy)]
enum Besides {
    New,
    Same,
}

/// What the log is told; empty where there is nothing to say.
struct Said {
    fixed: String,
    taken: String,
}

/// All that the new settings need, ready.
struct Prepared {
    settings: Settings,
    changes: Vec<Change>,
    node: Node,
    built_in: Vec<Arc<Definition>>,
    http: Http,
}

impl Prepared {
    async fn new(file: &File, in_force: &Settings, daemon: &Daemon) -> Result<Self, Failure> {
        ownership::settings_file(file)?;
        let next = load(file)?;
        let changes = in_force.changes(&next);
        let settings = in_force.taking(next);
        ownership::check(file, &settings)?;
        let (node, built_in) = (discover(&settings)?, daemon.built_in(&settings)?);
        let http = http(&settings, daemon).await?;
        Ok(Self { settings, changes, node, built_in, http })
    }

    fn touches(&self, effect: Effect) -> bool {
        self.changes.iter().any(|change| change.effect == effect)
    }

    async fn commit(self, in_force: &mut Settings, daemon: &mut Daemon, level: &LevelHandle) {
        let facts = if daemon.take_facts(&self.node) { Besides::New } else { Besides::Same };
        let token = if matches!(self.http, Http::Stays) { Besides::Same } else { Besides::New };
        let said = self.said(facts, token);
        if self.touches(Effect::LogLevel) {
            level.set(self.settings.log.level);
        }
        if self.touches(Effect::Trust) {
            daemon.set_trust(&self.settings);
            warn_of_trust(&self.settings);
        }
        if self.touches(Effect::Facts) {
            daemon.follow_facts(&self.settings).await;
        }
        if self.touches(Effect::LocalDirectory) {
            daemon.host.set_local_directory(self.settings.local_dir.clone());
        }
        if self.touches(Effect::Textfiles) {
            daemon.write_textfiles(&self.settings).await;
        }
        if self.touches(Effect::Manager) {
            daemon.set_manager(&self.settings, self.built_in);
        }
        match self.http {
            Http::Stays => {}
            Http::Becomes(listener) => daemon.serve_http(&self.settings, listener).await,
            Http::Moves => move_http(in_force, &self.settings, daemon).await,
        }
        *in_force = self.settings;
        if !said.fixed.is_empty() {
            tracing::error!("these change only with a restart, and stay as they were: {}", said.fixed);
        }
        if !said.taken.is_empty() {
            tracing::info!("{}", said.taken);
        }
    }

    /// Names what needs a restart, and what is taken.
    fn said(&self, facts: Besides, token: Besides) -> Said {
        let names = |wanted: &dyn Fn(Effect) -> bool| {
            let wanted = self.changes.iter().filter(|change| wanted(change.effect));
            wanted.map(|change| change.setting.to_string()).collect::<Vec<_>>().join(", ")
        };
        let (fixed, taken) = (names(&|effect| effect == Effect::Restart), names(&|effect| effect != Effect::Restart));
        let taken = match (taken.as_str(), token, facts) {
            ("", Besides::New, _) => "taken: the new token in the file of [http] token_file".to_owned(),
            ("", Besides::Same, _) if !fixed.is_empty() => String::new(),
            ("", Besides::Same, Besides::New) => "the settings are the same as before, the facts are new".to_owned(),
            ("", Besides::Same, Besides::Same) => "the settings are the same as before, so are the facts".to_owned(),
            (names, ..) => format!("taken: {names}"),
        };
        Said { fixed, taken }
    }
}

/// Also when the settings are the same: the token in the file may be another one.
async fn http(settings: &Settings, daemon: &Daemon) -> Result<Http, Failure> {
    let Some(wanted) = &settings.http else {
        return Ok(if daemon.http().is_some() { Http::Becomes(None) } else { Http::Stays });
    };
    let token = listener::token(wanted)?;
    Ok(match daemon.http() {
        Some(now) if now.address() == wanted.address && now.token() == token.as_ref() => Http::Stays,
        Some(now) if now.address() == wanted.address => Http::Becomes(Some(now.taking(token))),
        Some(now) if now.address().port() == wanted.address.port() => Http::Moves,
        _ => Http::Becomes(listen(settings).await?),
    })
}

/// When the other address can't be had, the one of before is taken again: the machines are worth more than a listener.
async fn move_http(before: &Settings, settings: &Settings, daemon: &mut Daemon) {
    daemon.serve_http(settings, None).await;
    let mut http = None;
    for settings in [settings, before] {
        match listen(settings).await {
            Ok(listener) => {
                http = listener;
                break;
            }
            Err(error) => tracing::error!("there is no HTTP listener there: {}", machines::errors::chain(&error)),
        }
    }
    daemon.serve_http(settings, http).await;
}
