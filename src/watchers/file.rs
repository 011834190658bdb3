//! `file`: looks after one file of the machine. Without `contents` it tells of changes; with `contents` it keeps the file
//! as it should be. A change is seen at once; the interval is the safety net.

use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::fs::{Attributes, Beneath};
use crate::machine::template::{Template, items_of};
use crate::machine::watcher::{
    Background, BuildContext, Built, Check, Context, Fire, Fires, Kind, Report, Seen, Signal, Watcher, follow_facts,
    schema_of,
};
use crate::node::accounts;

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "file",
    summary: "tells of changes of a file, or keeps it as it should be",
    minimum_interval: Duration::from_millis(500),
    default_interval: Some(Duration::from_secs(5)),
    outcomes: &["unknown", "error", "skipped", "unchanged", "changed"],
    build,
    example: "path: settings.conf\ngather_initial_state: true\ncontents: \"role {{ lookup `facts.role` `none` }}\"\n\
              owner: \"0\"\ngroup: \"0\"\nmode: \"0600\"\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

/// Changes come in bursts.
const SETTLE: Duration = Duration::from_millis(50);
/// A directory that is not there yet, or can't be watched, is tried again after this.
const TRY_AGAIN: Duration = Duration::from_secs(5);

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// The file, relative to the machine's directory and inside it; links are not followed. The directory of a machine
    /// that sync installed is verified and read-only: there it is relative to the machine's data directory
    /// (`$MACHINE_DATA_DIR`), and without `contents` a file that came with the machine counts while there is none.
    path: Template,
    /// The file as it is at the first check is not yet a change. Without this it is one, also each time that a state is
    /// entered in which the watcher works.
    #[serde(default)]
    gather_initial_state: bool,
    /// The file is kept at this content, at most 1 MiB.
    contents: Option<Template>,
    /// With `contents`: the name or the number of the user who owns it.
    owner: Option<Template>,
    /// With `contents`: the name or the number of its group.
    group: Option<Template>,
    /// With `contents`: its permission bits, such as "0640"; "0644" unless said.
    mode: Option<String>,
}

struct File {
    path: Template,
    gather_initial_state: bool,
    contents: Option<Template>,
    owner: Option<Template>,
    group: Option<Template>,
    mode: u32,
    seen: Arc<Mutex<Latest>>,
}

/// What is known of the file.
#[derive(Default)]
struct Latest {
    modified: Option<SystemTime>,
    /// Whether there was a check before.
    met: bool,
    /// The full path, as the last check has looked it up.
    path: Option<PathBuf>,
    /// The directory of the file changed its name with the path.
    moved: Arc<tokio::sync::Notify>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let mut problems = Vec::new();
    if properties.path.is_plain()
        && let Err(reason) = check_path(properties.path.source())
    {
        problems.push(context.fault("path", format!("path {:?} can't be used: {reason}", properties.path.source())));
    }
    if properties.contents.is_none() {
        for (name, given) in [
            ("owner", properties.owner.is_some()),
            ("group", properties.group.is_some()),
            ("mode", properties.mode.is_some()),
        ] {
            if given {
                problems.push(context.fault(name, format!("{name} belongs to contents, which is missing")));
            }
        }
    }
    let mode = match properties.mode.as_deref().map(parse_mode) {
        None => 0o644,
        Some(Some(mode)) => mode,
        Some(None) => {
            let text = properties.mode.unwrap_or_default();
            let message =
                format!("mode {text:?} must be three octal digits, with or without a 0 before them: \"0640\"");
            problems.push(context.fault("mode", message));
            0
        }
    };
    if !problems.is_empty() {
        return Err(problems);
    }
    Ok(Arc::new(File {
        path: properties.path,
        gather_initial_state: properties.gather_initial_state,
        contents: properties.contents,
        owner: properties.owner,
        group: properties.group,
        mode,
        seen: Arc::default(),
    }))
}

fn check_path(path: &str) -> Result<(), &'static str> {
    let is_plain = |part: Component<'_>| matches!(part, Component::CurDir | Component::Normal(_));
    let path = Path::new(path);
    if path.as_os_str().is_empty() || path.file_name().is_none() {
        Err("it names no file")
    } else if path.is_absolute() {
        Err("it must be relative to the machine")
    } else if !path.components().all(is_plain) {
        Err("it must not have .. in it")
    } else {
        Ok(())
    }
}

/// Set-user-id and the like are not for files that a template fills.
fn parse_mode(text: &str) -> Option<u32> {
    let digits = if text.len() == 4 { text.strip_prefix('0')? } else { text };
    let octal = digits.len() == 3 && digits.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    octal.then(|| u32::from_str_radix(digits, 8).ok()).flatten()
}

/// A file as it should be.
struct Wanted {
    content: String,
    attributes: Attributes,
}

impl File {
    fn templates(&self) -> impl Iterator<Item = &Template> {
        [&self.path].into_iter().chain(&self.contents).chain(&self.owner).chain(&self.group)
    }

    fn wanted(&self, check: &Check) -> Result<Option<Wanted>, String> {
        let Some(contents) = &self.contents else { return Ok(None) };
        let scope = check.scope();
        let text = |error: crate::machine::template::TemplateError| crate::errors::chain(&error);
        let render = |template: &Template| template.render(&scope).map(std::borrow::Cow::into_owned).map_err(text);
        let content = render(contents)?;
        let user = self.owner.as_ref().map(render).transpose()?;
        let user = user.map(|name| accounts::user(&name)).transpose().map_err(|error| crate::errors::chain(&error))?;
        let group = self.group.as_ref().map(render).transpose()?;
        let group =
            group.map(|name| accounts::group(&name)).transpose().map_err(|error| crate::errors::chain(&error))?;
        Ok(Some(Wanted { content, attributes: Attributes { mode: Some(self.mode), user, group } }))
    }

    fn latest(&self) -> MutexGuard<'_, Latest> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compares the time of the last change with the one known.
    fn compare(&self, modified: Option<SystemTime>, path: &Path) -> Report {
        let mut latest = self.latest();
        let before = std::mem::replace(&mut latest.modified, modified);
        match (before, modified) {
            (_, None) => Report::error(format!("{} does not exist", path.display())),
            (Some(before), Some(now)) if before == now => Report::new("unchanged"),
            _ => Report::new("changed").fire(Fire::Success).announce(),
        }
    }

    /// Notes the full path for the event, and for those who watch its directory.
    fn note_path(&self, path: &Path) {
        let mut latest = self.latest();
        if latest.path.as_deref() != Some(path) {
            latest.path = Some(path.to_owned());
            latest.moved.notify_one();
        }
    }
}

/// The directories in which a path is looked for, in order; new files are made in the first one.
fn bases(context: &Context) -> Vec<PathBuf> {
    let store = context.services.sync.as_ref().map(|sync| sync.store_directory());
    let installed = store.is_some_and(|store| context.directory.starts_with(store));
    if installed || context.services.directories_are_foreign {
        vec![context.data_directory.clone(), context.directory.clone()]
    } else {
        vec![context.directory.clone()]
    }
}

/// When the file was last changed; `None` when there is none.
fn modified(bases: &[PathBuf], relative: &Path) -> Result<Option<SystemTime>, crate::fs::FileError> {
    for base in bases {
        let place = Beneath::find(base, relative)?;
        if let Some(file) = place.map(|place| place.open()).transpose()?.flatten() {
            return Ok(Some(file.modified));
        }
    }
    Ok(None)
}

/// Makes the file as it should be. Whether it was not.
fn keep(base: &Path, relative: &Path, wanted: &Wanted) -> Result<bool, crate::fs::FileError> {
    let place = match Beneath::find(base, relative)? {
        Some(place) => place,
        None => {
            // The data directory of a machine is made when there is something for it; those inside are the machine's.
            crate::fs::create_directory(base, 0o755)?;
            Beneath::find(base, relative)?.ok_or_else(|| crate::fs::FileError {
                operation: "write",
                path: base.join(relative),
                source: std::io::Error::new(std::io::ErrorKind::NotFound, "its directory does not exist"),
            })?
        }
    };
    if let Some(mut file) = place.open()?
        && file.has(wanted.attributes)
        && file.has_content(wanted.content.as_bytes())?
    {
        return Ok(false);
    }
    place.write(wanted.content.as_bytes(), wanted.attributes)?;
    Ok(true)
}

#[async_trait]
impl Watcher for File {
    async fn check(&self, check: Check) -> Report {
        let relative = match self.path.render(&check.scope()) {
            Ok(path) => path.into_owned(),
            Err(error) => return Report::error(crate::errors::chain(&error)),
        };
        if let Err(reason) = check_path(&relative) {
            return Report::error(format!("path {relative:?} can't be used: {reason}"));
        }
        let relative = PathBuf::from(relative);
        let bases = bases(&check.context);
        let base = bases.first().cloned().unwrap_or_default();
        let path = base.join(&relative);
        self.note_path(&path);
        let wanted = match self.wanted(&check) {
            Ok(wanted) => wanted,
            Err(error) => return Report::error(format!("{}: {error}", path.display())),
        };
        let worked = tokio::task::spawn_blocking(move || match wanted {
            Some(wanted) => keep(&base, &relative, &wanted).map(Ok),
            None => modified(&bases, &relative).map(Err),
        });
        match worked.await {
            Err(error) => Report::error(error.to_string()),
            Ok(Err(error)) => {
                self.latest().modified = None;
                Report::error(crate::errors::chain(&error))
            }
            Ok(Ok(Ok(true))) => Report::new("changed").fire(Fire::Success).announce(),
            Ok(Ok(Ok(false))) => Report::new("unchanged"),
            Ok(Ok(Err(modified))) => {
                let met = std::mem::replace(&mut self.latest().met, true);
                if self.gather_initial_state && !met && modified.is_some() {
                    self.latest().modified = modified;
                    return Report::new("unchanged");
                }
                self.compare(modified, &path)
            }
        }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(30)
    }

    fn reads(&self) -> Vec<String> {
        items_of(self.templates().flat_map(Template::lookups).map(String::as_str))
    }

    fn looks_up(&self) -> Vec<String> {
        self.templates().flat_map(Template::lookups).cloned().collect()
    }

    fn observe(&self, context: &Context, signal: Signal) -> Option<Background> {
        let (context, seen) = (context.clone(), Arc::clone(&self.seen));
        let asks_facts = self.looks_up().iter().any(|path| !path.starts_with("data."));
        let facts = asks_facts.then(|| follow_facts(Arc::clone(&context.services.node), signal.clone()));
        Some(Box::pin(async move {
            let directory = follow(context, seen, signal);
            match facts {
                Some(facts) => _ = tokio::join!(facts, directory),
                None => directory.await,
            }
        }))
    }

    /// What the file was in another stay counts only for those who wait for changes from the start on.
    fn left(&self) -> Option<Report> {
        if !self.gather_initial_state {
            self.latest().modified = None;
        }
        Some(Report::new("skipped"))
    }

    fn event_fields(&self, seen: &Seen) -> Map<String, Value> {
        let path = self.latest().path.clone();
        let path = path.map_or_else(|| self.path.source().to_owned(), |path| path.display().to_string());
        Map::from_iter([("path".to_owned(), json!(path)), ("previous_outcome".to_owned(), json!(seen.outcome))])
    }
}

/// Calls for a check on each change in the directory of the file.
async fn follow(context: Context, seen: Arc<Mutex<Latest>>, signal: Signal) {
    let latest = || seen.lock().unwrap_or_else(PoisonError::into_inner);
    let moved = Arc::clone(&latest().moved);
    loop {
        let directory = latest().path.as_deref().and_then(Path::parent).map(Path::to_owned);
        let Some(directory) = directory else {
            moved.notified().await;
            continue;
        };
        let Ok(following) = context.services.notices.follow(&directory) else {
            tokio::select! {
                () = moved.notified() => {}
                () = tokio::time::sleep(TRY_AGAIN) => {}
            }
            continue;
        };
        // What happened before it was followed.
        signal.check();
        loop {
            tokio::select! {
                () = moved.notified() => break,
                () = following.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    signal.check();
                    if !directory.is_dir() {
                        break;
                    }
                }
            }
        }
    }
}
