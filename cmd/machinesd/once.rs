//! `machinesd run --once`: one sync pass without running anything, for images, cron and tests.

use std::time::Duration;

use machines::config::{File, Settings};
use machines::control::MaintenanceConsent;
use machines::kv::KvError;
use machines::sync::{Pass, Reconciler, Removals, nothing_published};

use crate::daemon::{Parts, SLOT_PATIENCE, purge};
use crate::logging;
use crate::ownership;
use crate::run::{load, runtime, warn_of_trust};
use crate::shared::{Failure, converged_unless, line};

/// A connection that is being made is given this long.
const CONNECT_PATIENCE: Duration = Duration::from_secs(15);

pub fn once(file: &File, consent: MaintenanceConsent) -> Result<(), Failure> {
    ownership::settings_file(file)?;
    let settings = load(file)?;
    logging::start(&settings.log);
    ownership::check(file, &settings)?;
    if !settings.sync.enabled {
        return Err(Failure::Usage("[sync] enabled = false: there is nothing to do".into()));
    }
    let runtime = runtime()?;
    let result = runtime.block_on(pass(&settings, consent));
    // A disk that hangs must not hold up the exit.
    runtime.shutdown_timeout(Duration::from_secs(1));
    result
}

async fn pass(settings: &Settings, consent: MaintenanceConsent) -> Result<(), Failure> {
    warn_of_trust(settings);
    let parts = Parts::open(settings).await?;
    let reconciler = match (consent, parts.reconciler.maintenance()) {
        (MaintenanceConsent::Overridden, _) => parts.reconciler.in_maintenance(),
        (MaintenanceConsent::Respected, None) => Reconciler::clone(&parts.reconciler),
        (MaintenanceConsent::Respected, Some(maintenance)) => return converged_unless(&[maintenance.to_string()]),
    };
    let offered = offered(settings, &parts).await;
    let pass = match &offered {
        Ok(Some(value)) => Some(reconciler.reconcile(value, &settings.trust, purge(settings), Removals::Guarded).await),
        _ => reconciler.resume(&settings.trust, purge(settings)).await,
    };
    parts.governors.settle(SLOT_PATIENCE).await;
    let mut complaints = Vec::new();
    match &offered {
        Ok(Some(_)) => {}
        Ok(None) => {
            complaints.push(nothing_published(&settings.sync.bucket, &settings.sync.key, &parts.store.connection()));
        }
        Err(error) => complaints.push(machines::errors::chain(error)),
    }
    if let Some(pass) = &pass {
        report(pass);
        complaints.extend(pass.complaints());
    }
    converged_unless(&complaints)
}

async fn offered(settings: &Settings, parts: &Parts) -> Result<Option<bytes::Bytes>, KvError> {
    let deadline = tokio::time::Instant::now() + CONNECT_PATIENCE;
    loop {
        let got = parts.store.bucket(&settings.sync.bucket)?.get(&settings.sync.key).await;
        match got {
            Ok(entry) => return Ok(entry.map(|entry| entry.value)),
            Err(error) if tokio::time::Instant::now() >= deadline || parts.store.connection().connected => {
                return Err(error);
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}

fn report(pass: &Pass) {
    for machine in &pass.machines {
        if machine.result.is_ok() {
            line(format!("{}: {}", machine.name, machine.action));
        }
    }
}
