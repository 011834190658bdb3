//! From a directory to a machine that can be started, or to the reason why it can't.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fs::{Directory, Distrust, trusted};
use crate::machine::data;
use crate::machine::definition::{Definition, FILE_NAME};
use crate::machine::problem::Problems;
use crate::machine::runner::{self, Handle};
use crate::machine::watcher::{Kind, Owners, Watcher, build_all};
use crate::names::MachineName;
use crate::sync::Lease;

use super::scan::Found;
use super::scripts;
use super::{Refusal, Setup, Source};

/// A machine that can be started.
pub struct Loaded {
    pub definition: Arc<Definition>,
    pub directory: PathBuf,
    /// Keeps the files of a managed machine while it runs.
    pub lease: Option<Lease>,
    watchers: Vec<(Kind, Arc<dyn Watcher>)>,
}

impl Loaded {
    /// Starts it.
    pub fn spawn(self, setup: &Setup) -> Handle {
        runner::spawn(runner::Setup {
            data_directory: setup.data_directory.join(self.definition.name.as_str()),
            definition: self.definition,
            watchers: self.watchers,
            directory: self.directory,
            services: Arc::clone(&setup.services),
            bus: setup.bus.clone(),
        })
    }
}

/// Loads what was found; a managed machine only when it is exactly what was installed.
pub async fn load(setup: &Setup, source: Source, found: &Found) -> Result<Loaded, Refusal> {
    let (definition, directory) = match (&found.built_in, source) {
        (Some(definition), _) => (Arc::clone(definition), setup.data_directory.join(definition.name.as_str())),
        (None, Source::Managed) => {
            let name = found.path.file_name().unwrap_or_default().to_string_lossy();
            let name = MachineName::new(&name).map_err(|error| Refusal::Itself(error.to_string()))?;
            let sync = setup
                .services
                .sync
                .as_ref()
                .ok_or_else(|| Refusal::Itself("no specification is managed on this node".to_owned()))?;
            let directory = sync.verify_for_start(&name).await.map_err(Refusal::Unverified)?;
            let definition = read(directory.clone()).await.map_err(Refusal::Itself)?;
            if definition.name != name {
                let message = format!("its machine.yaml is named \"{}\", its directory \"{name}\"", definition.name);
                return Err(Refusal::Itself(message));
            }
            (definition, directory)
        }
        (None, _) => {
            let path = found.path.clone();
            owned(setup, move || crate::fs::check_programs(&path, FILE_NAME)).await?;
            let definition = read(found.path.clone()).await.map_err(Refusal::Itself)?;
            let (read, path) = (Arc::clone(&definition), found.path.clone());
            let scripts = move || scripts::scripts(&read, &path).iter().try_for_each(|script| trusted::check(script));
            owned(setup, scripts).await?;
            (definition, found.path.clone())
        }
    };
    // Its values are put into commands.
    let (directory_of_data, name) = (setup.data_directory.clone(), definition.name.clone());
    owned(setup, move || data_is_ours(&directory_of_data, &name)).await?;
    let watchers = build_all(&definition, setup.kinds)
        .map_err(|problems| Refusal::Itself(Problems::new(&directory.join(FILE_NAME), "", problems).to_string()))?;
    let sync = setup.services.sync.as_ref().filter(|_| source == Source::Managed);
    let lease = sync.and_then(|sync| sync.lease(&directory));
    Ok(Loaded { definition: Arc::new(definition.without_documents()), directory, lease, watchers })
}

/// Asks who could change something, where that matters.
async fn owned(setup: &Setup, ask: impl FnOnce() -> Result<(), Distrust> + Send + 'static) -> Result<(), Refusal> {
    if setup.services.owners == Owners::Anyone {
        return Ok(());
    }
    match tokio::task::spawn_blocking(ask).await {
        Ok(Ok(())) => Ok(()),
        // What is not there was seen a moment ago: whoever can take it away may put his own there before it is read.
        Ok(Err(distrust)) => Err(Refusal::Untrusted(crate::errors::chain(&distrust))),
        Err(error) => Err(Refusal::Untrusted(error.to_string())),
    }
}

/// The directories above it are asked about when the daemon starts. In a directory of ours a file may still be somebody
/// else's, who made it before the directory was given to us.
fn data_is_ours(directory: &Path, name: &MachineName) -> Result<(), Distrust> {
    let data = match Directory::open(directory) {
        // Made when it is first needed, in a state directory that is ours.
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        opened => opened?,
    };
    if data.kind(name.as_str())?.is_none() {
        return Ok(());
    }
    data.enter_trusted(name.as_str())?;
    for file in data::FILE_NAMES {
        match trusted::check(&directory.join(name.as_str()).join(file)) {
            Err(distrust) if !distrust.is_missing() => return Err(distrust),
            _ => {}
        }
    }
    Ok(())
}

async fn read(directory: PathBuf) -> Result<Arc<Definition>, String> {
    let loaded = tokio::task::spawn_blocking(move || Definition::load(&directory)).await;
    match loaded {
        Ok(Ok(definition)) => Ok(Arc::new(definition)),
        Ok(Err(problems)) => Err(problems.to_string()),
        Err(error) => Err(error.to_string()),
    }
}
