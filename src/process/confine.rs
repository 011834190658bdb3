//! Under whose rights and within what limits a command runs: from what a machine says to numbers that the kernel knows.
//! Names are looked up in the daemon, so that an unknown user is told before anything starts; `helper` does the rest.

use std::ffi::CString;
use std::path::PathBuf;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User};

use super::order::{Privileges, Rights};
use super::tree;

/// A user or a group, as a machine names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Account {
    Number(u32),
    Name(String),
}

impl std::fmt::Display for Account {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => write!(formatter, "{number}"),
            Self::Name(name) => write!(formatter, "{name:?}"),
        }
    }
}

/// What a machine asks for; by default nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    pub user: Option<Account>,
    pub group: Option<Account>,
    /// Permission bits that new files do not get.
    pub umask: Option<u32>,
    pub limits: Limits,
}

/// Limits that hold for a command and all it starts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Of each process in its own memory, and of all together in resident memory.
    pub memory_bytes: Option<u64>,
    /// Processor time, of all processes together.
    pub cpu: Option<Duration>,
    /// Processes and threads at one time.
    pub tasks: Option<u32>,
}

impl Limits {
    pub(super) fn are_set(&self) -> bool {
        *self != Self::default()
    }
}

/// A confinement that can't be given.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("there is no {kind} {account} on this node; create it, or correct {kind}")]
    Unknown { kind: &'static str, account: Account },
    #[error("could not look up the {kind} {account}: {source}")]
    LookUp { kind: &'static str, account: Account, source: nix::Error },
    #[error("user {number} has no entry on this node, so its group is not known; set group too")]
    NoGroup { number: u32 },
    #[error(
        "the daemon runs as user {own} and may not run a command as another user or group ({wanted}); \
         run machinesd as root, or leave out user and group"
    )]
    NotRoot { own: u32, wanted: String },
    #[error("tasks does not bind a command that runs as root, which the kernel exempts from it; set user too")]
    TasksOfRoot,
}

/// Who counts the tasks of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TaskCount {
    /// The kernel, those of the command alone.
    OfCommand,
    /// The kernel, those of the command's user.
    OfUser,
}

/// What is asked for, in the kernel's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Resolved {
    pub rights: Rights,
    /// User and group of what is made for the command, when the user is not the daemon's.
    pub owner: Option<(u32, u32)>,
    /// `USER`, `LOGNAME` and `HOME` of another user.
    pub environment: Vec<(&'static str, String)>,
}

impl Confinement {
    /// Looks up the names. Blocks: names may come over the network.
    pub(super) fn resolve(&self, counted: TaskCount) -> Result<Resolved, ConfineError> {
        if *self == Self::default() {
            return Ok(Resolved::default());
        }
        let mut rights = Rights { umask: self.umask, memory_bytes: self.limits.memory_bytes, ..Rights::default() };
        rights.cpu_seconds = self.limits.cpu.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        let mut environment = Vec::new();
        let group = self.group.as_ref().map(find_group).transpose()?;
        let (own_user, own_group) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let mut uid = own_user;
        if let Some(account) = &self.user {
            let (found, user) = find_user(account)?;
            uid = found;
            let primary = user.as_ref().map(|user| user.gid);
            let gid = group.or(primary).ok_or(ConfineError::NoGroup { number: uid.as_raw() })?;
            rights.groups = Some(match &user {
                Some(user) => groups_of(user, gid, account)?,
                None => vec![gid.as_raw()],
            });
            (rights.uid, rights.gid) = (Some(uid.as_raw()), Some(gid.as_raw()));
            // Who has no entry has no home, and none of the daemon's.
            let (home, name) = match user {
                Some(user) => (user.dir, user.name),
                None => (PathBuf::from("/"), uid.to_string()),
            };
            environment.push(("HOME", home.to_string_lossy().into_owned()));
            environment.extend(["USER", "LOGNAME"].map(|variable| (variable, name.clone())));
        } else if let Some(gid) = group {
            (rights.gid, rights.groups) = (Some(gid.as_raw()), Some(vec![gid.as_raw()]));
        }
        if !own_user.is_root() {
            let same = uid == own_user && rights.gid.is_none_or(|gid| gid == own_group.as_raw());
            if !same {
                return Err(ConfineError::NotRoot { own: own_user.as_raw(), wanted: self.wanted() });
            }
            (rights.uid, rights.gid, rights.groups) = (None, None, None);
        }
        // Who gives up rights means it: nothing that the command starts gets them back.
        if self.user.is_some() && !uid.is_root() {
            rights.privileges = Privileges::NoNew;
        }
        if let Some(tasks) = self.limits.tasks.filter(|_| counted == TaskCount::OfUser) {
            if uid.is_root() {
                return Err(ConfineError::TasksOfRoot);
            }
            // The kernel counts all of a user's tasks, wherever they come from.
            rights.tasks = Some(tree::tasks_of(uid.as_raw()).saturating_add(u64::from(tasks)));
        }
        let own = own_user.as_raw();
        let owner = rights.uid.filter(|uid| *uid != own).map(|uid| (uid, rights.gid.unwrap_or(own_group.as_raw())));
        Ok(Resolved { rights, owner, environment })
    }

    fn wanted(&self) -> String {
        let user = self.user.iter().map(|account| format!("user {account}"));
        let group = self.group.iter().map(|account| format!("group {account}"));
        user.chain(group).collect::<Vec<_>>().join(", ")
    }
}

fn find_user(account: &Account) -> Result<(Uid, Option<User>), ConfineError> {
    let failed = |source| ConfineError::LookUp { kind: "user", account: account.clone(), source };
    match account {
        Account::Number(number) => {
            let uid = Uid::from_raw(*number);
            Ok((uid, User::from_uid(uid).map_err(failed)?))
        }
        Account::Name(name) => match User::from_name(name).map_err(failed)? {
            Some(user) => Ok((user.uid, Some(user))),
            None => Err(ConfineError::Unknown { kind: "user", account: account.clone() }),
        },
    }
}

fn find_group(account: &Account) -> Result<Gid, ConfineError> {
    let failed = |source| ConfineError::LookUp { kind: "group", account: account.clone(), source };
    match account {
        Account::Number(number) => Ok(Gid::from_raw(*number)),
        Account::Name(name) => match Group::from_name(name).map_err(failed)? {
            Some(group) => Ok(group.gid),
            None => Err(ConfineError::Unknown { kind: "group", account: account.clone() }),
        },
    }
}

/// The groups that a login of this user would have.
fn groups_of(user: &User, gid: Gid, account: &Account) -> Result<Vec<u32>, ConfineError> {
    let failed = |source| ConfineError::LookUp { kind: "user", account: account.clone(), source };
    let name = CString::new(user.name.as_str()).map_err(|_| failed(nix::Error::EINVAL))?;
    let groups = nix::unistd::getgrouplist(&name, gid).map_err(failed)?;
    Ok(groups.into_iter().map(Gid::as_raw).collect())
}
