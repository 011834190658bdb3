//! `machinesd run`: the daemon in the foreground, as systemd runs it.

use std::time::Duration;

use machines::config::{ConfigError, File, Settings};
use machines::host::HostHandle;
use machines::host::built_in::COMPILED_PUBLIC_KEY;
use machines::spec::{SpecificationError, Trust};
use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::daemon::{Daemon, Parts};
use crate::logging::{self, LevelHandle};
use crate::ownership;
use crate::reload::reload;
use crate::shared::Failure;

/// Threads that run machines; what blocks has threads of its own. More would cost memory and gain nothing.
const WORKERS: usize = 2;
const BLOCKING_THREADS: usize = 16;

/// Reads the settings; faults in them exit 2, so that systemd does not start us over and over.
pub fn load(file: &File) -> Result<Settings, Failure> {
    Settings::load(file, std::env::vars_os().filter_map(text), COMPILED_PUBLIC_KEY).map_err(|error| match error {
        ConfigError::Invalid(problems) => Failure::Usage(problems.into()),
        other => Failure::Usage(other.into()),
    })
}

fn text((name, value): (std::ffi::OsString, std::ffi::OsString)) -> Option<(String, String)> {
    Some((name.into_string().ok()?, value.into_string().ok()?))
}

pub fn runtime() -> Result<tokio::runtime::Runtime, Failure> {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(WORKERS).max_blocking_threads(BLOCKING_THREADS).thread_keep_alive(Duration::from_secs(2));
    Ok(builder.enable_all().build()?)
}

pub fn run(file: &File) -> Result<(), Failure> {
    ownership::settings_file(file)?;
    let settings = load(file)?;
    let level = logging::start(&settings.log);
    ownership::check(file, &settings)?;
    ownership::socket_directory(&settings)?;
    let runtime = runtime()?;
    let result = runtime.block_on(daemon(file, settings, &level));
    // A command that hangs in the kernel must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

enum Asked {
    Stop,
    Reload,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hangup.recv() => Asked::Reload,
        }
    }
}

async fn daemon(file: &File, mut settings: Settings, level: &LevelHandle) -> Result<(), Failure> {
    let mut signals = Signals::listen()?;
    let parts = Parts::open(&settings).await?;
    let mut daemon = Daemon::start(&settings, parts).await?;
    announce(&settings);
    notify(&[NotifyState::Ready]);
    let watchdog = tokio::spawn(feed_watchdog(daemon.host.clone()));
    loop {
        match signals.next().await {
            Asked::Stop => break,
            Asked::Reload => {}
        }
        reload(file, &mut settings, &mut daemon, level).await;
    }
    notify(&[NotifyState::Stopping]);
    tracing::info!("stopping");
    watchdog.abort();
    daemon.stop().await;
    Ok(())
}

fn announce(settings: &Settings) {
    let store = settings.kv.target.display();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), %store, state_dir = %settings.state_dir.display(), "machinesd runs");
    warn_of_trust(settings);
}

/// Says whose specifications are taken where that is not those of known keys.
pub fn warn_of_trust(settings: &Settings) {
    match settings.trust {
        _ if !settings.sync.enabled => tracing::info!("no specification is followed ([sync] enabled = false)"),
        Trust::Keys(_) => {}
        Trust::Nobody => tracing::warn!("no specification is followed: {}", SpecificationError::NoTrustedKey),
        Trust::Anyone => tracing::warn!(
            "[trust] allow_unsigned = true: anyone who can write to bucket {} decides what runs here; make keys with \
             `mms keys`, set [trust] public_keys to the public one and remove allow_unsigned",
            settings.sync.bucket
        ),
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {error}");
    }
}

/// Tells systemd that we live, as long as the host answers: a host that hangs is a daemon that hangs.
async fn feed_watchdog(host: HostHandle) {
    let Some(interval) = sd_notify::watchdog_enabled() else { return };
    loop {
        if tokio::time::timeout(interval / 2, host.answers()).await.unwrap_or(false) {
            notify(&[NotifyState::Watchdog]);
        }
        tokio::time::sleep(interval / 3).await;
    }
}
