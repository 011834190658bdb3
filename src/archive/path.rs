//! The newtype for paths that an archive or a checksums list names: in come raw bytes, out comes a plain relative path
//! that can only lie below the directory it is joined to.

use super::Limits;

/// Why a path is refused. The text names the remedy as well, so that it reads the same for an archive entry, a line
/// of a checksums list and a file of a directory to be packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathProblem {
    /// Starts with `/`.
    #[error("the path is absolute; only paths relative to the top directory are accepted")]
    Absolute,
    /// Has a `..` component.
    #[error("the path has a \"..\" component, which could lead outside; remove it")]
    Parent,
    /// Has a `.` component.
    #[error("the path has a \".\" component; name files without it, as in name/file")]
    Current,
    /// Is empty or has an empty component.
    #[error("the path is empty or has an empty component (\"//\"); write one slash between names")]
    Empty,
    /// Is not UTF-8.
    #[error("the path is not UTF-8; rename the file")]
    NotUtf8,
    /// Has a control character.
    #[error("the path has a control character; rename the file")]
    Control,
    /// Has a backslash, which other systems read as a separator.
    #[error("the path has a backslash; rename the file")]
    Backslash,
    /// Has too many components.
    #[error("the path is deeper than the limit of {limit} directories; flatten the tree")]
    TooDeep {
        /// From [`Limits::depth`].
        limit: usize,
    },
    /// Has a component that is too long.
    #[error("a name in the path is longer than the limit of {limit} bytes; shorten it")]
    LongComponent {
        /// From [`Limits::component_bytes`].
        limit: usize,
    },
}

/// A relative path of plain components, separated by single slashes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct EntryPath(String);

impl EntryPath {
    /// Accepts only what every tool and every file system reads the same way.
    pub(super) fn parse(bytes: &[u8], limits: &Limits) -> Result<Self, PathProblem> {
        let text = std::str::from_utf8(bytes).map_err(|_| PathProblem::NotUtf8)?;
        if text.starts_with('/') {
            return Err(PathProblem::Absolute);
        }
        if text.chars().any(char::is_control) {
            return Err(PathProblem::Control);
        }
        if text.contains('\\') {
            return Err(PathProblem::Backslash);
        }
        for (index, component) in text.split('/').enumerate() {
            match component {
                "" => return Err(PathProblem::Empty),
                "." => return Err(PathProblem::Current),
                ".." => return Err(PathProblem::Parent),
                _ if component.len() > limits.component_bytes => {
                    return Err(PathProblem::LongComponent { limit: limits.component_bytes });
                }
                _ if index >= limits.depth => return Err(PathProblem::TooDeep { limit: limits.depth }),
                _ => {}
            }
        }
        Ok(Self(text.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The first component, and the rest when there is one.
    pub(super) fn split_top(&self) -> (&str, Option<&str>) {
        match self.0.split_once('/') {
            Some((top, rest)) => (top, Some(rest)),
            None => (&self.0, None),
        }
    }
}

/// The directories above a clean relative path, outermost first: `a`, `a/b` for `a/b/c`.
pub(super) fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    path.match_indices('/').filter_map(|(end, _)| path.get(..end))
}

/// A path from outside for a message: lossy, and cut so that it cannot flood a log. The messages print it with
/// `{:?}`, which makes control characters visible.
pub(super) fn shown(bytes: &[u8]) -> String {
    const MAXIMUM_CHARACTERS: usize = 160;
    let text = String::from_utf8_lossy(bytes);
    match text.char_indices().nth(MAXIMUM_CHARACTERS) {
        Some((end, _)) => format!("{}…", text.get(..end).unwrap_or_default()),
        None => text.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_pass() {
        let limits = Limits { depth: 3, component_bytes: 5, ..Limits::default() };
        for good in ["a", "a/b/c", ".git/x", "a b", "é", "...", "-x"] {
            assert_eq!(EntryPath::parse(good.as_bytes(), &limits).unwrap().as_str(), good);
        }
        let bad: [(&[u8], PathProblem); 14] = [
            (b"/a", PathProblem::Absolute),
            (b"../a", PathProblem::Parent),
            (b"a/..", PathProblem::Parent),
            (b"./a", PathProblem::Current),
            (b"a/./b", PathProblem::Current),
            (b"", PathProblem::Empty),
            (b"a//b", PathProblem::Empty),
            (b"a/", PathProblem::Empty),
            (b"a\xff", PathProblem::NotUtf8),
            (b"a\nb", PathProblem::Control),
            (b"a\0b", PathProblem::Control),
            (b"a\\b", PathProblem::Backslash),
            (b"a/b/c/d", PathProblem::TooDeep { limit: 3 }),
            (b"abcdef", PathProblem::LongComponent { limit: 5 }),
        ];
        for (bytes, problem) in bad {
            assert_eq!(EntryPath::parse(bytes, &limits), Err(problem), "{}", shown(bytes));
        }
    }

    #[test]
    fn ancestors_are_outermost_first() {
        assert_eq!(ancestors("a/b/c").collect::<Vec<_>>(), ["a", "a/b"]);
        assert_eq!(ancestors("a").count(), 0);
    }

    #[test]
    fn a_shown_path_is_cut() {
        assert!(shown(&[b'a'; 5_000]).len() < 200);
    }
}
