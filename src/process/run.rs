//! One run of a command: from what a watcher asks for to the order for the helper, and from the helper's answers and the
//! command's output to how it ended.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::cgroup::{Controller, Leaf};
use super::confine::{Resolved, TaskCount};
use super::group::Group;
use super::lines::Lines;
use super::order::{End, Order, Refusal, Step};
use super::scratch::Files;
use super::start::Helper;
use super::{Command, Ended, MAXIMUM_OUTPUT_BYTES, ProcessError, System};
use crate::duration;

/// Between asking a command to end and killing it.
const GRACE: Duration = Duration::from_millis(500);

/// After the command has ended, a grandchild may still hold its output open; that long we read on.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// What a command keeps of the daemon's environment, besides `PATH`. Everything else stays here: the daemon's may hold
/// the password of the store.
const KEPT_VARIABLES: [&str; 8] = ["HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR"];

/// A program is looked for in no more directories than this.
const MAXIMUM_PLACES: usize = 1_024;
/// Of a `PATH`, a message shows this many characters.
const SHOWN_PATH: usize = 1_024;

/// What is made and found on disk for one run.
struct Prepared {
    files: Files,
    data_directory: PathBuf,
    leaf: Unused,
    confined: Resolved,
    program: PathBuf,
}

/// A leaf that no command is in yet: removed when dropped, by a run that was cancelled or could not start.
struct Unused(Option<Leaf>);

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(leaf) = self.0.take() {
            leaf.remove();
        }
    }
}

impl Command {
    pub(super) async fn run(self, system: &System) -> Result<Ended, ProcessError> {
        let prepared = self.prepare(system).await?;
        let order = self.order(&prepared);
        let containment = &system.containment;
        let mut helper = Helper::spawn(&system.helper, containment.form())?;
        let Prepared { files, mut leaf, .. } = prepared;
        let group = Group::new(helper.leader(), containment, leaf.0.take(), files.data.path(), self.remains);
        let (mut standard_output, mut standard_error) = (Kept::default(), Kept::default());
        let (out, err) = (helper.child.stdout.take(), helper.child.stderr.take());
        let lines = || Lines::new(&self.machine, &self.watcher);
        let reading = async {
            tokio::join!(standard_output.fill(out, lines()), standard_error.fill(err, lines()));
        };
        let (failure, exit_code) = {
            tokio::pin!(reading);
            let mut read = false;
            let ended = {
                let deadline = tokio::time::sleep(self.timeout);
                let excess = group.excess(self.confinement.limits, containment);
                let working = helper.carry_out(&order);
                tokio::pin!(deadline, excess, working);
                loop {
                    tokio::select! {
                        end = &mut working => break Ok(end),
                        () = &mut reading, if !read => read = true,
                        excess = &mut excess => break Err(excess),
                        () = &mut deadline => {
                            break Err(format!("took longer than {}", duration::format(self.timeout)));
                        }
                    }
                }
            };
            match ended {
                // What a supervisor that was killed leaves is nobody's background.
                Ok(Err(error)) => {
                    group.end().await;
                    return Err(error);
                }
                Ok(Ok(end)) => {
                    let failure = self.describe(end, &group);
                    group.release().await;
                    _ = tokio::time::timeout(LAST_WORDS, helper.child.wait()).await;
                    if !read {
                        _ = tokio::time::timeout(LAST_WORDS, &mut reading).await;
                    }
                    (failure, end.code())
                }
                Err(reason) => {
                    group.terminate().await;
                    _ = tokio::time::timeout(GRACE, async { tokio::join!(helper.child.wait(), &mut reading) }).await;
                    group.end().await;
                    // What hangs in the kernel is not waited for.
                    _ = tokio::time::timeout(GRACE, helper.child.wait()).await;
                    (Some(format!("{reason} and was killed")), None)
                }
            }
        };
        let truncated = standard_output.truncated;
        let mut output = standard_output.bytes.clone();
        output.extend_from_slice(&standard_error.bytes);
        Ok(Ended { failure, exit_code, standard_output: standard_output.bytes, output, truncated })
    }

    /// Looks up names and makes files, where blocking is allowed.
    async fn prepare(&self, system: &System) -> Result<Prepared, ProcessError> {
        let (data, facts, data_directory) = (self.data.clone(), self.facts.clone(), self.data_directory.clone());
        let (confinement, system) = (self.confinement.clone(), system.clone());
        let name = self.words.first().cloned().unwrap_or_default();
        let (directory, search) = (self.directory.clone(), self.search());
        let work = move || {
            let program = find(&name, &directory, &search)?;
            let is_counted = system.containment.has(Controller::Pids);
            let confined = confinement.resolve(if is_counted { TaskCount::OfCommand } else { TaskCount::OfUser })?;
            let failed = |source| ProcessError::DataDirectory { path: data_directory.clone(), source };
            crate::fs::create_directory(&data_directory, 0o755).map_err(failed)?;
            let data_directory = match confined.owner {
                None => data_directory.clone(),
                Some((user, group)) => {
                    let name = format!("user-{user}");
                    let path = data_directory.join(&name);
                    crate::fs::give_directory(&data_directory, &name, user, group)
                        .map_err(|source| ProcessError::DataDirectory { path: path.clone(), source })?;
                    path
                }
            };
            let files = system.scratch.write(&data, &facts, confined.owner).map_err(ProcessError::Files)?;
            let leaf = system.containment.subtree().map(|subtree| subtree.leaf(&confinement.limits)).transpose()?;
            Ok::<_, ProcessError>(Prepared { files, data_directory, leaf: Unused(leaf), confined, program })
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| ProcessError::Files(std::io::Error::other(error)))?
    }

    /// Where its program is looked for, as the command itself will have it.
    fn search(&self) -> OsString {
        if let Some((_, path)) = self.environment.iter().rev().find(|(name, _)| name == "PATH") {
            return path.into();
        }
        let mut search = std::env::var_os("PATH").unwrap_or_default();
        if !search.is_empty() {
            search.push(":");
        }
        search.push(&self.directory);
        search
    }

    fn order(&self, prepared: &Prepared) -> Order {
        let Prepared { files, data_directory, leaf, confined, program } = prepared;
        let text = |value: &OsStr| value.to_string_lossy().into_owned();
        let path = |value: &Path| text(value.as_os_str());
        let kept = KEPT_VARIABLES.into_iter().filter_map(|name| Some((name, text(&std::env::var_os(name)?))));
        let account = confined.environment.iter().map(|(name, value)| (*name, value.clone()));
        let ours = [
            ("PATH", text(&self.search())),
            ("MACHINE_WATCHER_NAME", self.watcher.clone()),
            ("MACHINE_NAME", self.machine.clone()),
            ("MACHINE_DATA_DIR", path(data_directory)),
            ("WATCHER_DATA", path(files.data.path())),
            ("WATCHER_FACTS", path(files.facts.path())),
        ];
        let mut environment: Vec<(String, String)> =
            kept.chain(account).chain(ours).map(|(name, value)| (name.to_owned(), value)).collect();
        environment.extend(self.environment.iter().cloned());
        Order {
            program: program.clone(),
            arguments: self.words.get(1..).unwrap_or_default().to_vec(),
            environment,
            directory: self.directory.clone(),
            cgroup: leaf.0.as_ref().map(|leaf| leaf.path.clone()),
            rights: confined.rights.clone(),
        }
    }

    /// Why an end counts as failed.
    fn describe(&self, end: End, group: &Group) -> Option<String> {
        let limits = self.confinement.limits;
        match end {
            End::Code(0) => None,
            End::Code(code) => Some(format!("exited with code {code}")),
            End::Signal(signal) if signal == Signal::XCPU.as_raw() => {
                let limit = limits.cpu.map_or_else(|| "the system's".to_owned(), duration::format);
                Some(format!("used more processor time than its limit of {limit} and was ended"))
            }
            End::Signal(signal) => {
                let memory =
                    limits.memory_bytes.filter(|_| signal == Signal::KILL.as_raw() && group.ran_out_of_memory());
                Some(match memory {
                    Some(limit) => format!("used more memory than its limit of {limit} bytes and was killed"),
                    None => format!("was ended by signal {signal}"),
                })
            }
        }
    }
}

impl End {
    fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) => None,
        }
    }
}

impl ProcessError {
    /// As if the daemon itself had tried.
    pub(super) fn refused(order: &Order, refusal: Refusal) -> Self {
        let path = order.program.clone();
        match refusal.step {
            Step::Start => Self::Start { path, source: refusal.source() },
            ref step => Self::Prepare { step: step.to_string(), path, source: refusal.source() },
        }
    }
}

/// Resolves a program as a shell would in `directory`, without depending on the daemon's own directory. Blocks: an agent may
/// choose `PATH`, and so how long this takes.
fn find(name: &str, directory: &Path, search: &OsStr) -> Result<PathBuf, ProcessError> {
    let not_found = || ProcessError::NotFound {
        name: name.to_owned(),
        path: crate::shown::cut(&search.to_string_lossy(), SHOWN_PATH),
    };
    if name.contains('/') {
        let path = directory.join(name);
        return path.exists().then_some(path).ok_or_else(not_found);
    }
    let places = || std::env::split_paths(search);
    if places().nth(MAXIMUM_PLACES).is_some() {
        return Err(ProcessError::ManyPlaces { name: name.to_owned(), maximum: MAXIMUM_PLACES });
    }
    places().map(|path| directory.join(path).join(name)).find(|path| is_program(path)).ok_or_else(not_found)
}

fn is_program(path: &Path) -> bool {
    path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok()
}

/// The first part of an output stream.
#[derive(Default)]
struct Kept {
    bytes: Vec<u8>,
    truncated: bool,
}

impl Kept {
    async fn fill(&mut self, reader: Option<impl AsyncRead + Unpin>, mut lines: Option<Lines<'_>>) {
        let Some(mut reader) = reader else { return };
        let mut buffer = vec![0u8; 16 * 1024];
        while let Ok(count @ 1..) = reader.read(&mut buffer).await {
            let room = MAXIMUM_OUTPUT_BYTES - self.bytes.len();
            self.truncated |= count > room;
            self.bytes.extend_from_slice(buffer.get(..count.min(room)).unwrap_or_default());
            if let Some(lines) = &mut lines {
                lines.take(buffer.get(..count).unwrap_or_default());
            }
        }
        if let Some(lines) = &mut lines {
            lines.end();
        }
    }
}
