//! The contract between the runner and the kinds of watchers. The runner owns interval, state gating, forced checks,
//! cancellation, time limits, announcements and status; a kind has typed properties, their validation, and one check.

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use crate::archive::Fetcher;
use crate::clock::Clock;
use crate::duration::Chance;
use crate::governor::{Governors, StoreGovernors};
use crate::kv::Store;
use crate::names::Label;
use crate::node::Node;
use crate::notices::Notices;
use crate::process::{self, Commands};
use crate::spec::TrustInForce;
use crate::sync::Reconciler;

use super::data::{Change, Snapshot};
use super::definition::{Definition, WatcherDefinition};
use super::neighbours::Neighbours;
use super::panel::Panel;
use super::problem::Problem;
use super::rule::{INVALID_PROPERTY, UNKNOWN_KEY, UNKNOWN_WATCHER_TYPE};
use super::template::{Hazard, Scope};

/// A watcher, or all that is wrong with its properties.
pub type Built = Result<Arc<dyn Watcher>, Vec<Problem>>;

/// A watcher and its kind.
pub type OfKind = (Kind, Arc<dyn Watcher>);

/// A kind of watcher: one row of `KINDS`.
#[derive(Clone, Copy)]
pub struct Kind {
    /// The `type` in machine.yaml and in events.
    pub name: &'static str,
    /// One line for people.
    pub summary: &'static str,
    /// Shorter intervals are refused.
    pub minimum_interval: Duration,
    /// For watchers without `interval`; `None`: they are checked when a state is entered and when something changes.
    pub default_interval: Option<Duration>,
    /// Every outcome that a check may have.
    pub outcomes: &'static [&'static str],
    /// Validates the properties and makes the watcher. The node is not touched: it also serves `machinesd validate`.
    pub build: fn(&BuildContext<'_>) -> Built,
    /// Properties that the conformance suite builds the kind from, as YAML.
    pub example: &'static str,
    /// Which transitions its checks may ask for; for the checker.
    pub fires: Fires,
    /// The JSON Schema of its properties, for editors.
    pub schema: fn() -> schemars::Schema,
}

/// Which transitions the checks of a kind may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fires {
    /// Both `success_transition` and `fail_transition`.
    Both,
    /// `fail_transition` only.
    Fail,
    /// Those of these names, whatever the watcher says.
    Named(&'static [&'static str]),
    Nothing,
}

/// Data items that a watcher may write; for the checker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writes {
    Items(Vec<String>),
    /// What it will write is not known before it runs.
    Anything,
}

/// The schema of a kind's properties.
pub fn schema_of<T: schemars::JsonSchema>() -> schemars::Schema {
    schemars::schema_for!(T)
}

/// What a kind may look at while it validates.
pub struct BuildContext<'a> {
    pub machine: &'a Definition,
    pub watcher: &'a WatcherDefinition,
}

impl BuildContext<'_> {
    /// Reads the properties into the kind's own type.
    ///
    /// # Errors
    /// The first property that is unknown, missing or of the wrong type, with its place.
    pub fn properties<T: serde::de::DeserializeOwned>(&self) -> Result<T, Vec<Problem>> {
        self.watcher.properties.typed().map_err(|problem| {
            let message = format!("{} watcher \"{}\": {}", self.watcher.kind, self.watcher.name, problem.message);
            let rule = if problem.rule == UNKNOWN_KEY { UNKNOWN_KEY } else { INVALID_PROPERTY };
            vec![Problem { message, rule, ..problem }]
        })
    }

    /// A fault of one property, or of the properties as a whole when it is missing.
    pub fn fault(&self, property: &str, message: impl std::fmt::Display) -> Problem {
        let place = self.watcher.properties.place(&format!("/{property}"));
        let place = place.or_else(|| self.watcher.places.of("properties"));
        let message = format!("{} watcher \"{}\": {message}", self.watcher.kind, self.watcher.name);
        Problem::new(place, message).rule(INVALID_PROPERTY)
    }
}

/// What the daemon offers to its watchers.
#[derive(Clone)]
pub struct Services {
    pub node: Arc<Node>,
    pub store: Arc<dyn Store>,
    pub fetcher: Arc<Fetcher>,
    /// Bounds of the archives that archive watchers unpack.
    pub archive_limits: crate::archive::Limits,
    /// `None` where no specification is managed, for example for `run-machine`.
    pub sync: Option<Arc<Reconciler>>,
    /// The machines' directories are another's, and are only read, as those are that sync installs.
    pub directories_are_foreign: bool,
    /// Who may own what is run.
    pub owners: Owners,
    /// What the settings and the binary say; keys there override those of a machine.
    pub trust: TrustInForce,
    /// Limits on how many do something at once.
    pub governors: Arc<dyn Governors>,
    /// Runs commands.
    pub commands: Arc<dyn Commands>,
    pub clock: Clock,
    /// How long random waits are.
    pub chance: Chance,
    /// The machines that run beside it.
    pub neighbours: Arc<Neighbours>,
    /// Where watchers show what the HTTP listener and Prometheus read.
    pub panel: Arc<Panel>,
    /// Tells of changes in directories.
    pub notices: Notices,
}

/// Who may own the machines of a node, and what they keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Owners {
    /// Root or the daemon's user, who alone may write to them: they are run by a daemon that nobody looks at.
    OursAlone,
    /// Anyone: an author runs by hand what is in front of him.
    Anyone,
}

impl Services {
    /// The services of a node that manages no specification, with what is usual for everything else.
    pub fn new(node: Arc<Node>, store: Arc<dyn Store>, fetcher: Arc<Fetcher>) -> Self {
        let governors = Arc::new(StoreGovernors::new(&*store));
        Self {
            node,
            store,
            governors,
            fetcher,
            archive_limits: crate::archive::Limits::default(),
            sync: None,
            directories_are_foreign: false,
            owners: Owners::OursAlone,
            trust: TrustInForce::default(),
            commands: Arc::new(process::System::default()),
            clock: Clock::System,
            chance: Chance::Random,
            neighbours: Arc::default(),
            panel: Arc::default(),
            notices: Notices::default(),
        }
    }
}

/// The running machine that a watcher belongs to.
#[derive(Clone)]
pub struct Context {
    pub services: Arc<Services>,
    pub definition: Arc<Definition>,
    pub watcher: Label,
    /// Unique for each start of the machine.
    pub instance: Arc<str>,
    /// The directory of machine.yaml; commands run in it.
    pub directory: PathBuf,
    /// Where the machine may keep files; survives upgrades.
    pub data_directory: PathBuf,
}

/// Why a check runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// A state in which the watcher is active was entered, the start included.
    Entered,
    Interval,
    /// Something the watcher depends on changed: data, a key, a file.
    Signal,
    /// The time that the last report asked for under `again` has come.
    Again,
}

/// The stay of the machine in a watcher's states, as a check sees it.
#[derive(Clone)]
pub struct Stay {
    visits: watch::Receiver<u64>,
    visit: u64,
}

impl Stay {
    pub(super) fn new(visits: watch::Receiver<u64>) -> Self {
        let visit = *visits.borrow();
        Self { visits, visit }
    }

    /// Waits until these states are left, and answers at once when they have been left before.
    pub async fn ended(mut self) {
        let visit = self.visit;
        // Nobody counts any more: the machine is gone.
        _ = self.visits.wait_for(|current| *current != visit).await;
    }
}

/// One check.
pub struct Check {
    pub context: Context,
    /// Ends when the watcher's states are left.
    pub stay: Stay,
    pub cause: Cause,
    pub state: Label,
    pub data: Snapshot,
    /// The outcome of the check before, `unknown` at first.
    pub previous_outcome: &'static str,
}

impl Check {
    /// What templates see.
    pub fn scope(&self) -> Scope {
        Scope::new(self.context.services.node.facts(), Arc::clone(&self.data))
    }
}

/// Whether a state event is published for a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announce {
    Yes,
    No,
}

/// Whether the log has a check's fault already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    Yes,
    No,
}

/// Which transition a check asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fire {
    Success,
    Fail,
    /// The one of this name, as nagios watchers do.
    Named(&'static str),
}

/// An error or a detail is no longer than this, in bytes.
const MAXIMUM_TEXT_BYTES: usize = 16 * 1024;

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// One of the kind's outcomes.
    pub outcome: &'static str,
    /// The fault, for the log and the status.
    pub error: Option<String>,
    pub told: Told,
    pub fire: Option<Fire>,
    pub announce: Announce,
    pub changes: Vec<Change>,
    /// Check again after this time, besides the interval.
    pub again: Option<Duration>,
    /// What a person may want to see of a good check, for example the output of a command.
    pub detail: Option<String>,
}

impl Report {
    /// A check with this outcome that asks for nothing.
    pub fn new(outcome: &'static str) -> Self {
        Self {
            outcome,
            error: None,
            told: Told::No,
            fire: None,
            announce: Announce::No,
            changes: Vec::new(),
            again: None,
            detail: None,
        }
    }

    /// The fault has been said in the log already, in more detail.
    #[must_use]
    pub fn told(mut self) -> Self {
        self.told = Told::Yes;
        self
    }

    /// A failed check: the fail transition, announced.
    pub fn error(message: impl Into<String>) -> Self {
        Self { error: Some(message.into()), ..Self::new("error") }.fire(Fire::Fail).announce()
    }

    /// With an error and a detail that status and the log can hold for each of a thousand watchers: an error may repeat a
    /// command, or a value, of a mebibyte.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.error = self.error.map(short);
        self.detail = self.detail.map(short);
        self
    }

    /// Asks for a transition.
    #[must_use]
    pub fn fire(mut self, fire: Fire) -> Self {
        self.fire = Some(fire);
        self
    }

    /// Publishes the watcher's state.
    #[must_use]
    pub fn announce(mut self) -> Self {
        self.announce = Announce::Yes;
        self
    }
}

/// A text that is too long without its middle: the beginning says what it is about, the end what the matter is.
fn short(text: String) -> String {
    if text.len() <= MAXIMUM_TEXT_BYTES {
        return text;
    }
    // Half a secret has no form by which it could be known later.
    let text = crate::secret::masked(&text);
    let head = text.floor_char_boundary(MAXIMUM_TEXT_BYTES / 4);
    let tail = text.ceil_char_boundary(text.len().saturating_sub(MAXIMUM_TEXT_BYTES / 2));
    let (head, tail) = (text.get(..head).unwrap_or_default(), text.get(tail..).unwrap_or_default());
    format!("{head} … {tail}")
}

/// Calls for a check of one watcher, from wherever a change was seen; cheap to clone.
#[derive(Clone, Default)]
pub struct Signal {
    raised: Arc<AtomicBool>,
    wake: Arc<Notify>,
}

impl Signal {
    /// A signal of another watcher of the same machine.
    pub(super) fn sibling(&self) -> Self {
        Self { raised: Arc::default(), wake: Arc::clone(&self.wake) }
    }

    /// Calls for a check at once; several calls before it starts make one check. Without effect when the machine is
    /// gone or in a state in which the watcher does not work.
    pub fn check(&self) {
        self.raised.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Whether it was raised; lowers it.
    pub(super) fn take(&self) -> bool {
        self.raised.swap(false, Ordering::AcqRel)
    }

    /// Waits until any signal of this machine is raised.
    pub(super) async fn raised(&self) {
        self.wake.notified().await;
    }
}

/// Calls for a check whenever the node's facts change.
pub async fn follow_facts(node: Arc<Node>, signal: Signal) {
    let mut facts = node.follow_facts();
    while facts.changed().await.is_ok() {
        signal.check();
    }
}

/// A task that runs for as long as its machine.
pub type Background = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A watcher of some kind, with valid properties.
#[async_trait]
pub trait Watcher: Send + Sync {
    /// Looks once and acts. Dropping the future cancels it; it must then leave nothing running. It never panics on
    /// input; the runner survives it if it does.
    async fn check(&self, check: Check) -> Report;

    /// A check that takes longer is cancelled and counts as an error.
    fn timeout(&self) -> Duration;

    /// Names of the data items whose change calls for a check at once.
    fn reads(&self) -> Vec<String> {
        Vec::new()
    }

    /// GJSON paths into `{"facts": …, "data": …}` that it looks up; for the checker.
    fn looks_up(&self) -> Vec<String> {
        Vec::new()
    }

    /// Values of the machine's data that can do more in its commands than be a value; for the checker.
    fn hazards(&self) -> Vec<Hazard> {
        Vec::new()
    }

    /// Data items that it may write; for the checker.
    fn writes(&self) -> Writes {
        Writes::Items(Vec::new())
    }

    /// Whether a check in a state just entered may ask for a transition every time, also when nothing has changed since
    /// the check before, as commands do; for the checker.
    fn fires_on_entry(&self) -> bool {
        false
    }

    /// A task that looks for changes outside and calls for checks.
    fn observe(&self, _context: &Context, _signal: Signal) -> Option<Background> {
        None
    }

    /// A data item that the running check has read is no longer what it was; another check follows. A kind whose checks
    /// may take long ends the running one here.
    fn superseded(&self) {}

    /// The machine left the states in which this watcher is active; a report here can't fire. Called again after a
    /// check that was under way at that moment, so that nothing which it began stays behind.
    fn left(&self) -> Option<Report> {
        None
    }

    /// The transition that the last check asked for was not made: the state was left before. For watchers that report
    /// a change once.
    fn not_fired(&self, _asked: Fire) {}

    /// What the state event of this kind says, besides what all say; the reference (Choria Autonomous
    /// Agents) has the same fields.
    fn event_fields(&self, seen: &Seen) -> Map<String, Value>;
}

/// The history of a watcher that its event tells.
#[derive(Debug, Clone)]
pub struct Seen {
    pub outcome: &'static str,
    pub run_time: Duration,
}

impl Seen {
    /// `previous_run_time`, in nanoseconds.
    pub fn run_time_nanos(&self) -> u64 {
        u64::try_from(self.run_time.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Makes the watchers of a definition: unknown kinds, intervals below the minimum and bad properties are all reported
/// together.
///
/// # Errors
/// Every fault of every watcher.
pub fn build_all(definition: &Definition, kinds: &[Kind]) -> Result<Vec<OfKind>, Vec<Problem>> {
    let (watchers, problems) = build_each(definition, kinds);
    if problems.is_empty() { Ok(watchers.into_iter().flatten().collect()) } else { Err(problems) }
}

/// Makes the watchers of a definition that can be made, in its order, and gives every fault of the others.
pub fn build_each(definition: &Definition, kinds: &[Kind]) -> (Vec<Option<OfKind>>, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut watchers = Vec::new();
    for watcher in &definition.watchers {
        let Some(kind) = kinds.iter().find(|kind| kind.name == watcher.kind) else {
            let known: Vec<&str> = kinds.iter().map(|kind| kind.name).collect();
            let problem =
                Problem::new(watcher.places.of("type"), format!("there is no watcher type {:?}", watcher.kind))
                    .rule(UNKNOWN_WATCHER_TYPE);
            watchers.push(None);
            problems.push(match crate::suggest::nearest(&watcher.kind, known.iter().copied()) {
                Some(meant) => problem.help(format!("did you mean {meant:?}?")),
                None => problem.help(format!("known are: {}", known.join(", "))),
            });
            continue;
        };
        if watcher.interval.is_some_and(|interval| interval < kind.minimum_interval) {
            let minimum = crate::duration::format(kind.minimum_interval);
            let message = format!("interval of a {} watcher must be at least {minimum}", kind.name);
            problems.push(Problem::new(watcher.places.of("interval"), message));
        }
        match (kind.build)(&BuildContext { machine: definition, watcher }) {
            Ok(built) => watchers.push(Some((*kind, built))),
            Err(faults) => {
                watchers.push(None);
                problems.extend(faults);
            }
        }
    }
    (watchers, problems)
}
