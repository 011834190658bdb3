//! `machinesd dev`: a newcomer's first minute. Everything on this machine, for real, in a temporary directory: keys, an
//! archive, a signed specification, the embedded store, the daemon, the agent. It tells what happens as it happens, and
//! takes changes while it runs. In a directory that it made before it goes on with what is there.

mod place;
mod workshop;

use std::path::{Path, PathBuf};
use std::time::Duration;

use machines::config::{File, Settings};
use machines::machine::watcher::Owners;
use tokio::signal::unix::{SignalKind, signal};

use crate::daemon::{Daemon, Parts};
use crate::narrator;
use crate::run::{load, runtime};
use crate::shared::{Failure, line, lines};

use workshop::Workshop;

/// How often the directory is looked at for changes that the newcomer makes.
const LOOK: Duration = Duration::from_millis(300);
/// The hints come when the agent has spoken, or after this.
const FIRST_WORDS: Duration = Duration::from_secs(20);

pub fn dev(directory: Option<&Path>) -> Result<(), Failure> {
    let temporary = match directory {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("machines-dev-").tempdir()?),
    };
    let directory = match (directory, &temporary) {
        (Some(directory), _) => std::path::absolute(directory)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err("there is no directory to work in".into()),
    };
    place::claim(&directory)?;
    let narrator = narrator::start();
    let runtime = runtime()?;
    let result = runtime.block_on(live(&directory, &narrator));
    runtime.shutdown_timeout(Duration::from_secs(1));
    if let Some(temporary) = temporary {
        // What was installed is read-only, which the ordinary removal can't deal with.
        machines::fs::remove_tree(&temporary.keep())?;
        line("Nothing is left behind.");
    }
    result
}

fn settings(directory: &Path, public_key: &str) -> Result<(PathBuf, Settings), Failure> {
    let path = directory.join("machinesd.toml");
    let at = |name: &str| directory.join(name).display().to_string();
    let text = format!(
        "# Settings of `machinesd dev`.\nstate_dir = {:?}\nlocal_dir = {:?}\nfacts = []\n\n[sync]\ninterval = \"5s\"\n\n\
         [trust]\npublic_keys = [{public_key:?}]\n\n[control]\nsocket = {:?}\n",
        at("state"),
        at("machines.d"),
        at("machinesd.sock"),
    );
    place::keep_or_write(&path, text.as_bytes(), 0o644)?;
    if !machines::fs::read_text(&path, 1024 * 1024)?.contains(public_key) {
        line(format!("trust      {} is kept as it is, and does not name this key", path.display()));
    }
    let settings = load(&File::Required(path.clone()))?;
    Ok((path, settings))
}

async fn live(directory: &Path, narrator: &narrator::Narrator) -> Result<(), Failure> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    line("machinesd dev: the whole way of an agent onto a node, on this machine alone.");
    line(format!("Everything is in {}", directory.display()));
    line("");
    let mut workshop = Workshop::make(directory)?;
    let (_, settings) = settings(directory, &workshop.public_key())?;
    // The author is in front of it, with his own files, in whatever directory he works.
    let mut parts = Parts::open(&settings).await?;
    parts.owners = Owners::Anyone;
    let store = std::sync::Arc::clone(&parts.store);
    workshop.publish(&store).await?;
    line("The daemon starts. From here on it tells what it does:");
    line("");
    let daemon = Daemon::start(&settings, parts).await?;
    let spoke = async {
        tokio::select! {
            () = narrator.first_output() => {}
            () = tokio::time::sleep(FIRST_WORDS) => {}
        }
    };
    tokio::pin!(spoke);
    let mut hinted = false;
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            () = &mut spoke, if !hinted => {
                hinted = true;
                hints(directory);
            }
            () = tokio::time::sleep(LOOK) => {
                if let Err(Failure::Error(error) | Failure::Usage(error)) = workshop.follow(&store).await {
                    line(format!("not published: {}", machines::errors::chain(&*error)));
                }
            }
        }
    }
    lines("\nStopping.");
    daemon.stop().await;
    Ok(())
}

fn hints(directory: &Path) {
    let at = |name: &str| directory.join(name).display().to_string();
    // A newcomer who came by `cargo run` has no machinesd on the PATH.
    let program = std::env::current_exe().unwrap_or_else(|_| "machinesd".into());
    lines(format!(
        "\nThe agent runs. In another terminal, try (and watch here):\n\n  \
         1. Change the agent; a new version is built, signed and published:\n     \
         sed -i 's/hello from/good day from/; s/1.0.0/1.1.0/' {}/*\n\n  \
         2. Break an installed file; it is noticed and repaired:\n     \
         chmod u+w {installed} && echo 'echo broken' >> {installed}\n\n  \
         3. Publish a bad signature; it is refused and changes nothing:\n     \
         sed -i 's/\"signature\":\"..../\"signature\":\"0000/' {}\n     \
         (then publish a good one again: touch {}/hello.sh)\n\n\
         How the node stands:\n     {} status --socket {}\n\
         Ctrl-C ends it all.\n",
        at("hello"),
        at("spec.json"),
        at("hello"),
        program.display(),
        at("machinesd.sock"),
        installed = at("state/machines/hello/hello.sh"),
    ));
}
