//! Keeps two things one: whether the node is in maintenance, which is written down, and the state MAINTENANCE of the
//! manager, which the reference has. Whichever of them a person changes, the other follows; what is written down is the
//! truth. One task does all of it, so that no two requests meet half-way. In: requests, and time. Out: both in step.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{mpsc, oneshot};

use crate::host::HostHandle;
use crate::host::built_in::{MAINTENANCE, MANAGER};
use crate::names::Label;
use crate::sync::{Maintenance, Reconciler};

use super::{MaintenanceAnswer, MaintenanceRequest};

/// The manager's transitions to its state and from it.
pub(super) const ENTER: &str = "enter_maintenance";
pub(super) const RESUME: &str = "resume";

/// The two are compared this often, though nobody asks: the manager may have been started anew, or the time be over.
const LOOK: Duration = Duration::from_secs(2);
const MAXIMUM_REASON_BYTES: usize = 500;

enum Ask {
    Set(MaintenanceRequest, Option<u32>, oneshot::Sender<Result<MaintenanceAnswer, String>>),
    /// A transition of the manager.
    Move(String, Option<u32>, oneshot::Sender<Result<Label, String>>),
}

/// Where maintenance is asked for; cheap to clone.
#[derive(Clone)]
pub struct MaintenanceDesk(mpsc::Sender<Ask>);

impl MaintenanceDesk {
    /// Begins or ends it, for this user.
    ///
    /// # Errors
    /// A sentence for people.
    pub(super) async fn set(&self, request: MaintenanceRequest, by: Option<u32>) -> Result<MaintenanceAnswer, String> {
        let (answer, answered) = oneshot::channel();
        _ = self.0.send(Ask::Set(request, by, answer)).await;
        answered.await.unwrap_or_else(|_| Err("the daemon ends".to_owned()))
    }

    /// Makes one of the two transitions of the manager that mean the same.
    pub(super) async fn transition(&self, event: &str, by: Option<u32>) -> Result<Label, String> {
        let (answer, answered) = oneshot::channel();
        _ = self.0.send(Ask::Move(event.to_owned(), by, answer)).await;
        answered.await.unwrap_or_else(|_| Err("the daemon ends".to_owned()))
    }
}

/// The desk, and the task behind it, which works until it is dropped.
pub fn open(reconciler: Arc<Reconciler>, host: HostHandle) -> (MaintenanceDesk, impl Future<Output = ()>) {
    let (asks, mut asked) = mpsc::channel(4);
    let keeper = Keeper { reconciler, host };
    let mut told = None;
    let work = async move {
        loop {
            tokio::select! {
                Some(ask) = asked.recv() => match ask {
                    Ask::Set(request, by, answer) => _ = answer.send(keeper.set(request, by).await),
                    Ask::Move(event, by, answer) => _ = answer.send(keeper.transition(&event, by).await),
                },
                () = tokio::time::sleep(LOOK) => keeper.look(&mut told).await,
            }
        }
    };
    (MaintenanceDesk(asks), work)
}

struct Keeper {
    reconciler: Arc<Reconciler>,
    host: HostHandle,
}

impl Keeper {
    async fn set(&self, request: MaintenanceRequest, by: Option<u32>) -> Result<MaintenanceAnswer, String> {
        let before = self.reconciler.maintenance();
        match request {
            MaintenanceRequest::On { seconds, because } => {
                let now = Timestamp::now();
                let until = seconds.map(|seconds| until(now, seconds)).transpose()?;
                let because = because.map(reason).transpose()?;
                let since = before.as_ref().map_or(now, |before| before.since);
                self.begin(Maintenance { since, until, because, by }).await?;
            }
            MaintenanceRequest::Off => self.end("ended by hand").await?,
        }
        self.agree().await;
        Ok(MaintenanceAnswer { before, now: self.reconciler.maintenance() })
    }

    async fn transition(&self, event: &str, by: Option<u32>) -> Result<Label, String> {
        let is_possible = self.manager().is_some_and(|(_, events)| events.iter().any(|label| label.as_str() == event));
        if is_possible && event == ENTER && self.reconciler.maintenance().is_none() {
            self.begin(Maintenance { since: Timestamp::now(), until: None, because: None, by }).await?;
        }
        if is_possible && event == RESUME {
            self.end("ended by hand").await?;
        }
        self.host.transition(MANAGER, event).await.map_err(|error| error.to_string())
    }

    async fn begin(&self, maintenance: Maintenance) -> Result<(), String> {
        self.reconciler.begin_maintenance(maintenance).await.map_err(|error| {
            let why = crate::errors::chain(&error);
            format!("the node is in maintenance, but not beyond a restart, as that could not be written down: {why}")
        })
    }

    async fn end(&self, how: &'static str) -> Result<(), String> {
        self.reconciler.end_maintenance(how).await.map_err(|error| {
            format!("what says that the node is in maintenance could not be removed: {}", crate::errors::chain(&error))
        })
    }

    /// `told` is the fault that the log knows of.
    async fn look(&self, told: &mut Option<String>) {
        if self.reconciler.maintenance_is_over() {
            let fault = self.end("its time is over").await.err();
            if let Some(fault) = fault.as_ref().filter(|fault| told.as_ref() != Some(fault)) {
                tracing::warn!("{fault}");
            }
            *told = fault;
        }
        self.agree().await;
    }

    /// Moves the manager to where it belongs.
    async fn agree(&self) {
        let Some((state, _)) = self.manager() else { return };
        let event = match (self.reconciler.maintenance(), state.as_str() == MAINTENANCE) {
            (Some(_), false) => ENTER,
            (None, true) => RESUME,
            _ => return,
        };
        if let Err(error) = self.host.transition(MANAGER, event).await {
            tracing::debug!("the manager does not follow yet: {error}");
        }
    }

    /// The state of the manager and what is possible there; `None` when it does not run.
    fn manager(&self) -> Option<(Label, Vec<Label>)> {
        let mut running = self.host.reports().into_iter().filter_map(|report| report.machine);
        let manager = running.find(|machine| machine.name.as_str() == MANAGER)?;
        Some((manager.state.clone(), manager.available_transitions.clone()))
    }
}

fn until(now: Timestamp, seconds: u64) -> Result<Timestamp, String> {
    let unusable = || format!("maintenance for {seconds} seconds has no end on the calendar");
    if seconds == 0 {
        return Err(
            "maintenance for no time at all is none: give --for a longer time, or leave it out for one without an end"
                .to_owned(),
        );
    }
    now.checked_add(Duration::from_secs(seconds)).map_err(|_| unusable())
}

fn reason(text: String) -> Result<String, String> {
    if text.len() > MAXIMUM_REASON_BYTES {
        return Err(format!("the reason is longer than {MAXIMUM_REASON_BYTES} bytes"));
    }
    if text.trim().is_empty() || text.chars().any(char::is_control) {
        return Err("the reason must be one line of text".to_owned());
    }
    Ok(text)
}
