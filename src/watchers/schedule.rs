//! `schedule`: on while any of its schedules is within its duration. What counts is the time of day at each check, not
//! what happened before: after a restart, a suspended host or a clock that was set, a window that is open is on.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use croner::Cron;
use croner::parser::{CronParser, Seconds, Year};
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::digest::Sha256Digest;
use crate::machine::watcher::{BuildContext, Built, Check, Fire, Fires, Kind, Report, Seen, Watcher, schema_of};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "schedule",
    summary: "is on at some times of the day and off at others",
    minimum_interval: Duration::from_secs(1),
    default_interval: None,
    outcomes: &["unknown", "off", "on", "skipped"],
    build,
    example: "schedules: [\"0 2 * * *\", \"@every 12h\"]\nduration: 1h\nstart_splay: 10m\n\
              skip_trigger_on_reenter: true\ntimezone: Europe/Berlin\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

/// More schedules than this in one watcher are refused.
const MAXIMUM_SCHEDULES: usize = 256;
/// Waits are counted by a clock that stands still while the host is suspended and does not see the time of day being
/// set; so the time of day is looked at again after this at the latest.
const LONGEST_WAIT: Duration = Duration::from_secs(20);
/// After an end that could not be computed, and as the shortest wait.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// When it turns on: five cron fields (`0 2 * * MON`), `@hourly`, `@daily`, `@midnight`, `@weekly`, `@monthly`,
    /// `@yearly`, or `@every 90m`, which counts from 1970-01-01T00:00:00Z, so that a restart does not shift it. A time that
    /// a change of the clocks skips is when the clocks have changed; one that comes twice counts once.
    schedules: Vec<String>,
    /// How long it stays on.
    #[serde(default = "one_minute", deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    duration: Duration,
    /// Turns on later by a part of this that differs from node to node but stays the same on each; it turns off when it
    /// would have without. At most half of `duration`.
    #[serde(default, deserialize_with = "crate::duration::deserialize")]
    #[schemars(schema_with = "crate::duration::schema")]
    start_splay: Duration,
    /// Coming back into a state in which the watcher works fires no transition before it turns on or off.
    #[serde(default)]
    skip_trigger_on_reenter: bool,
    /// IANA name of the time zone of `schedules`, for example `Europe/Berlin`; without it, that of the host.
    timezone: Option<String>,
}

fn one_minute() -> Duration {
    Duration::from_secs(60)
}

enum When {
    Cron(Box<Cron>),
    /// Each whole multiple of so many seconds since 1970.
    Every(i64),
}

struct Schedule {
    schedules: Vec<When>,
    zone: TimeZone,
    duration: Duration,
    start_splay: Duration,
    skip_trigger_on_reenter: bool,
    /// Whether it was on at the last check; `None` before the first one since the watcher works in the state.
    last: Mutex<Option<bool>>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if properties.schedules.is_empty() {
        problems.push(context.fault("schedules", "schedules is empty; it needs at least one, such as \"0 2 * * *\""));
    }
    if properties.schedules.len() > MAXIMUM_SCHEDULES {
        let message =
            format!("{} schedules are more than the limit of {MAXIMUM_SCHEDULES}", properties.schedules.len());
        problems.push(context.fault("schedules", message));
    }
    let mut schedules = Vec::new();
    for (index, text) in properties.schedules.iter().enumerate().take(MAXIMUM_SCHEDULES) {
        match When::parse(text) {
            Ok(when) => schedules.push(when),
            Err(reason) => {
                let message = format!("schedule {text:?} can't be used: {reason}");
                problems.push(context.fault(&format!("schedules/{index}"), message));
            }
        }
    }
    if properties.duration < Duration::from_secs(1) {
        problems.push(context.fault("duration", "duration must be at least 1s"));
    }
    if properties.start_splay > properties.duration / 2 {
        let longest = crate::duration::format(properties.duration / 2);
        problems.push(
            context.fault("start_splay", format!("start_splay must be at most half of duration, which is {longest}")),
        );
    }
    let zone = match &properties.timezone {
        None => TimeZone::system(),
        Some(name) => TimeZone::get(name).unwrap_or_else(|_| {
            let message =
                format!("there is no time zone {name:?}; use an IANA name such as \"Europe/Berlin\" or \"UTC\"");
            problems.push(context.fault("timezone", message));
            TimeZone::UTC
        }),
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Arc::new(Schedule {
        schedules,
        zone,
        duration: properties.duration,
        start_splay: properties.start_splay,
        skip_trigger_on_reenter: properties.skip_trigger_on_reenter,
        last: Mutex::new(None),
    }))
}

impl When {
    fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if let Some(every) = text.strip_prefix("@every ") {
            let every = crate::duration::parse(every.trim()).map_err(|error| error.to_string())?;
            if every < Duration::from_secs(1) || every.subsec_nanos() != 0 {
                return Err("@every takes whole seconds, at least 1s".to_owned());
            }
            return i64::try_from(every.as_secs()).map(Self::Every).map_err(|error| error.to_string());
        }
        let text = if text == "@midnight" { "@daily" } else { text };
        let parser = CronParser::builder().seconds(Seconds::Disallowed).year(Year::Disallowed).build();
        let cron = parser.parse(text).map_err(|error| error.to_string())?;
        let reference = Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
        if cron.find_next_occurrence(&reference, true).is_err() {
            return Err("there is no such time, ever".to_owned());
        }
        Ok(Self::Cron(Box::new(cron)))
    }

    /// The last time at or before `at`.
    fn last(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = at.as_second();
        match self {
            Self::Every(every) => Timestamp::from_second(second.div_euclid(*every).checked_mul(*every)?).ok(),
            Self::Cron(cron) => {
                let from = Timestamp::from_second(second).ok()?.to_zoned(zone.clone());
                cron.find_previous_occurrence(&from, true).ok().map(|found| found.timestamp())
            }
        }
    }

    /// The first time after `at`.
    fn next(&self, at: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let second = at.as_second();
        match self {
            Self::Every(every) => {
                let count = second.div_euclid(*every).checked_add(1)?;
                Timestamp::from_second(count.checked_mul(*every)?).ok()
            }
            Self::Cron(cron) => {
                let from = Timestamp::from_second(second).ok()?.to_zoned(zone.clone());
                cron.find_next_occurrence(&from, false).ok().map(|found| found.timestamp())
            }
        }
    }
}

impl Schedule {
    /// Whether it is on, and when that may change next.
    fn at(&self, now: Timestamp, delay: SignedDuration) -> (bool, Option<Timestamp>) {
        let mut on = false;
        let mut changes: Vec<Timestamp> = Vec::new();
        // A start that is delayed looks as if the clock were behind.
        let Ok(shifted) = now.checked_sub(delay) else { return (false, None) };
        for when in &self.schedules {
            let end = when
                .last(shifted, &self.zone)
                .and_then(|start| start.checked_add(SignedDuration::try_from(self.duration).ok()?).ok());
            if let Some(end) = end.filter(|end| *end > now) {
                on = true;
                changes.push(end);
            }
            changes.extend(when.next(shifted, &self.zone).and_then(|start| start.checked_add(delay).ok()));
        }
        (on, changes.into_iter().min())
    }

    /// This node's part of `start_splay`.
    fn delay(&self, check: &Check) -> SignedDuration {
        if self.start_splay.is_zero() {
            return SignedDuration::ZERO;
        }
        let context = &check.context;
        let subject = format!("{} {} {}", context.services.node.identity, context.definition.name, context.watcher);
        let digest = Sha256Digest::of(subject.as_bytes()).to_string();
        let number = digest.get(..8).and_then(|digits| u32::from_str_radix(digits, 16).ok()).unwrap_or_default();
        let delay = self.start_splay.mul_f64(f64::from(number) / f64::from(u32::MAX));
        SignedDuration::try_from(delay).unwrap_or_default()
    }
}

#[async_trait]
impl Watcher for Schedule {
    async fn check(&self, check: Check) -> Report {
        let clock = &check.context.services.clock;
        let now = clock.now();
        let (on, change) = self.at(now, self.delay(&check));
        let wait = change.and_then(|change| Duration::try_from(change.duration_since(now)).ok());
        let longest = if matches!(clock, Clock::System) { LONGEST_WAIT } else { Duration::MAX };
        let again = wait.map_or(LONGEST_WAIT, |wait| wait.clamp(SHORTEST_WAIT, longest));
        let report = Report { again: Some(again), ..Report::new(if on { "on" } else { "off" }) };
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let before = last.replace(on);
        let fires = match before {
            Some(before) => before != on,
            // At the start of the machine, being off is no turning off.
            None if is_start(&check) => on,
            None => !self.skip_trigger_on_reenter,
        };
        let news = before != Some(on);
        let report = if news { report.announce() } else { report };
        match (fires, on) {
            (true, true) => report.fire(Fire::Success),
            (true, false) => report.fire(Fire::Fail),
            (false, _) => report,
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn left(&self) -> Option<Report> {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Some(Report::new("skipped"))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        Map::from_iter([("state".to_owned(), json!(seen.outcome))])
    }
}

/// Whether the first check of a watcher is the one that its machine starts with.
fn is_start(check: &Check) -> bool {
    check.previous_outcome == "unknown" && check.state == check.context.definition.initial_state
}
