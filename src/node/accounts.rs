//! The users and groups of this host, from `/etc/passwd` and `/etc/group`. Those that only a directory service knows
//! have to be given by number. In: a name or a number. Out: the number.

use std::path::Path;

/// Larger files than this are refused, in bytes.
const LIMIT_BYTES: u64 = 16 * 1024 * 1024;

/// A user or a group that can't be told.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    #[error("there is no {what} {name:?} in {file}; give its number if another service knows it")]
    Unknown { what: &'static str, name: String, file: &'static str },
    #[error(transparent)]
    Read(#[from] crate::fs::FileError),
}

/// The number of a user.
///
/// # Errors
/// When there is no such user.
pub fn user(name: &str) -> Result<u32, AccountError> {
    find("user", name, "/etc/passwd")
}

/// The number of a group.
///
/// # Errors
/// When there is no such group.
pub fn group(name: &str) -> Result<u32, AccountError> {
    find("group", name, "/etc/group")
}

fn find(what: &'static str, name: &str, file: &'static str) -> Result<u32, AccountError> {
    // The highest number means "leave it as it is" to the system.
    if let Ok(number) = name.parse::<u32>()
        && number != u32::MAX
    {
        return Ok(number);
    }
    let text = String::from_utf8_lossy(&crate::fs::read(Path::new(file), LIMIT_BYTES)?).into_owned();
    number_of(&text, name).ok_or_else(|| AccountError::Unknown { what, name: name.chars().take(80).collect(), file })
}

/// The third field of the line that begins with the name.
fn number_of(text: &str, name: &str) -> Option<u32> {
    let fields = text.lines().map(|line| line.split(':'));
    let mut found = fields.filter_map(|mut fields| (fields.next()? == name).then(|| fields.nth(1)).flatten());
    found.find_map(|number| number.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_told() {
        assert_eq!(number_of("root:x:0:0::/root:/bin/sh\nweb:x:33:33::/:/bin/sh\n", "web"), Some(33));
        assert_eq!(number_of("web\n:x:5:\nx:y:z:\n", "web"), None);
        assert_eq!((user("root").unwrap(), group("root").unwrap(), user("4711").unwrap()), (0, 0, 4711));
        let message = user("no such user").unwrap_err().to_string();
        assert!(message.starts_with("there is no user \"no such user\" in /etc/passwd"), "{message}");
        assert!(user("4294967295").is_err());
    }
}
