//! The users and groups of this host, as the system's name service knows them, directory services included. In: a name or
//! a number. Out: the number. Blocks: names may come over the network.

use nix::unistd::{Group, User};

/// A user or a group that can't be told.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is no {what} {name:?} on this node")]
    Unknown { what: &'static str, name: String },
    #[error("could not look up the {what} {name:?}")]
    LookUp { what: &'static str, name: String, source: nix::Error },
}

/// The number of a user.
///
/// # Errors
/// When there is no such user.
pub fn user(name: &str) -> Result<u32, AccountError> {
    find("user", name, |name| Ok(User::from_name(name)?.map(|user| user.uid.as_raw())))
}

/// The number of a group.
///
/// # Errors
/// When there is no such group.
pub fn group(name: &str) -> Result<u32, AccountError> {
    find("group", name, |name| Ok(Group::from_name(name)?.map(|group| group.gid.as_raw())))
}

/// The name of a user, or the number where there is none.
pub fn name_of_user(number: u32) -> String {
    let user = User::from_uid(nix::unistd::Uid::from_raw(number));
    user.ok().flatten().map_or_else(|| number.to_string(), |user| user.name)
}

fn find(
    what: &'static str,
    name: &str,
    look_up: impl Fn(&str) -> nix::Result<Option<u32>>,
) -> Result<u32, AccountError> {
    // The highest number means "leave it as it is" to the system.
    if let Ok(number) = name.parse::<u32>()
        && number != u32::MAX
    {
        return Ok(number);
    }
    let shown = || name.chars().take(80).collect();
    // The system's names are C strings.
    let found = if name.contains('\0') { Ok(None) } else { look_up(name) };
    match found {
        Ok(Some(number)) => Ok(number),
        Ok(None) => Err(AccountError::Unknown { what, name: shown() }),
        Err(source) => Err(AccountError::LookUp { what, name: shown(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_told() {
        assert_eq!((user("root").unwrap(), group("root").unwrap(), user("4711").unwrap()), (0, 0, 4711));
        let message = user("no such user").unwrap_err().to_string();
        assert_eq!(message, "there is no user \"no such user\" on this node");
        assert!(user("4294967295").is_err() && group("a\0b").is_err());
    }
}
