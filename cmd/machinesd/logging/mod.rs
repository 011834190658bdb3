//! Where the daemon's log goes: to the journal when systemd started it, else to standard error as text or JSON.

mod safe;

use std::io::IsTerminal;
use std::os::fd::AsFd;

use machines::config::{Log, LogFormat};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use safe::{Escapes, JsonLines, Safe};

/// Changes the level while the daemon runs.
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

impl LevelHandle {
    pub fn set(&self, level: tracing::Level) {
        if let Err(error) = self.0.reload(filter(level)) {
            tracing::warn!("the log level was not changed: {error}");
        }
    }
}

/// The libraries that send what is secret.
const NETWORK: [&str; 5] = ["async_nats", "reqwest", "hyper", "hyper_util", "rustls"];

/// Our own lines at the level that is asked for; of libraries only warnings, unless all is wanted.
fn filter(level: tracing::Level) -> EnvFilter {
    let all = level == tracing::Level::TRACE;
    let libraries = if all { LevelFilter::DEBUG } else { LevelFilter::WARN };
    // It says every few seconds that the server refuses us; the store tells why, and what to do, once.
    let connector = if all { LevelFilter::INFO } else { LevelFilter::OFF };
    // What they say of each request has addresses with passwords, and headers.
    let network = if all { LevelFilter::INFO } else { LevelFilter::WARN };
    let network = NETWORK.map(|library| format!("{library}={network}")).join(",");
    let directives =
        format!("{libraries},{network},async_nats::connector={connector},machines={level},machinesd={level}");
    EnvFilter::builder().parse_lossy(directives)
}

/// Starts logging, once per process.
pub fn start(log: &Log) -> LevelHandle {
    let (filter, handle) = reload::Layer::new(filter(log.level));
    let layer: Box<dyn Layer<_> + Send + Sync> = match (under_systemd(), log.format) {
        (true, _) if let Ok(journal) = tracing_journald::layer() => Box::new(Safe::new(journal, Escapes::Visible)),
        (_, LogFormat::Json) => {
            let json = tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(|| JsonLines);
            Box::new(Safe::new(json, Escapes::Later))
        }
        (_, LogFormat::Text) => {
            let colours =
                std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            let text =
                tracing_subscriber::fmt::layer().with_ansi(colours).with_target(false).with_writer(std::io::stderr);
            Box::new(Safe::new(text, Escapes::Visible))
        }
    };
    // Tests of one process may start several daemons; the first one's log serves all.
    _ = tracing_subscriber::registry().with(filter).with(layer).try_init();
    LevelHandle(handle)
}

/// Whether standard error is the journal's socket: systemd names its device and inode.
fn under_systemd() -> bool {
    let Some(journal) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    let Ok(stat) = rustix::fs::fstat(std::io::stderr().as_fd()) else { return false };
    journal == format!("{}:{}", stat.st_dev, stat.st_ino)
}
