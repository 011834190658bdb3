//! What a command reads: a file or, for `-`, standard input; never more than a limit.

use std::fmt;
use std::io::{IsTerminal, Read};
use std::path::{Path, PathBuf};

use machines::fs;

use crate::shared::{Failure, note};

/// More than any store takes as one value.
pub const LIMIT_BYTES: u64 = 64 * 1024 * 1024;

/// A place to read from.
#[derive(Debug, Clone)]
pub enum Input {
    File(PathBuf),
    Standard,
}

impl Input {
    /// `-` is standard input.
    pub fn new(path: &Path) -> Self {
        if path.as_os_str() == "-" { Self::Standard } else { Self::File(path.to_owned()) }
    }

    /// Everything in it, or a failure that names it.
    pub fn read(&self) -> Result<Vec<u8>, Failure> {
        match self {
            Self::File(path) => Ok(fs::read(path, LIMIT_BYTES)?),
            Self::Standard => read_standard(),
        }
    }
}

impl fmt::Display for Input {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(formatter, "{}", path.display()),
            Self::Standard => formatter.write_str("(standard input)"),
        }
    }
}

fn read_standard() -> Result<Vec<u8>, Failure> {
    let input = std::io::stdin().lock();
    if input.is_terminal() {
        note("reading standard input; end it with Ctrl-D");
    }
    let mut content = Vec::new();
    let count = input.take(LIMIT_BYTES + 1).read_to_end(&mut content);
    count.map_err(|error| format!("could not read standard input: {error}"))?;
    if content.len() as u64 > LIMIT_BYTES {
        return Err(format!("could not read standard input: it is larger than {LIMIT_BYTES} bytes").into());
    }
    Ok(content)
}
