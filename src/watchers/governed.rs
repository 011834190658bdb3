//! What the watchers that act under a governor share: exec and archive. In: the two properties. Out: a slot, held for as
//! long as the work takes, or the report to end the check with. The waiting has its own limit beside that of the work,
//! and ends when the machine leaves the watcher's states.

use std::time::Duration;

use crate::governor::Slot;
use crate::machine::problem::Problem;
use crate::machine::template::Template;
use crate::machine::watcher::{BuildContext, Check, Report};
use crate::names::GovernorName;

/// Longest `governor_timeout`.
const LONGEST: Duration = Duration::from_secs(12 * 3_600);

/// The default of `governor_timeout`.
pub fn five_minutes() -> Duration {
    Duration::from_secs(300)
}

/// A watcher's governor, if it has one.
pub struct Governed {
    governor: Option<Template>,
    patience: Duration,
}

impl Governed {
    /// Validates the properties `governor` and `governor_timeout`.
    pub fn new(
        context: &BuildContext<'_>,
        governor: Option<Template>,
        patience: Duration,
        problems: &mut Vec<Problem>,
    ) -> Self {
        // As the reference, which can't tell an empty text from none.
        let governor = governor.filter(|governor| !governor.source().is_empty());
        if let Some(Err(error)) = governor
            .as_ref()
            .filter(|governor| governor.is_plain())
            .map(|governor| GovernorName::new(governor.source()))
        {
            problems.push(context.fault("governor", error));
        }
        if !(Duration::from_secs(1)..=LONGEST).contains(&patience) {
            problems.push(context.fault("governor_timeout", "governor_timeout must be 1s to 12h"));
        }
        Self { governor, patience }
    }

    /// Waits for a slot; `None` without a governor. The error is the report of a check that may not act.
    pub async fn enter(&self, check: &Check) -> Result<Option<Slot>, Report> {
        let Some(governor) = &self.governor else { return Ok(None) };
        let name = governor.render(&check.scope()).map_err(|error| Report::error(error.to_string()))?;
        let name = GovernorName::new(&name).map_err(|error| Report::error(error.to_string()))?;
        let context = &check.context;
        let services = &context.services;
        let holder = format!("{}#{} @ {}", context.definition.name, context.watcher, services.node.identity);
        tokio::select! {
            // First, so that nothing is done in a state that it is not for.
            biased;
            () = check.stay.clone().ended() => Err(Report::new("skipped")),
            slot = services.governors.enter(&name, &holder, self.patience) => match slot {
                Ok(slot) => Ok(Some(slot)),
                Err(error) => Err(Report::error(crate::errors::chain(&error))),
            },
        }
    }

    /// How much longer a check may take for the waiting.
    pub fn patience(&self) -> Duration {
        // The store has a moment to answer besides.
        if self.governor.is_some() { self.patience + Duration::from_secs(10) } else { Duration::ZERO }
    }

    /// GJSON paths that the governor's name looks up.
    pub fn looks_up(&self) -> Vec<String> {
        self.governor.as_ref().map(|governor| governor.lookups().to_vec()).unwrap_or_default()
    }
}
