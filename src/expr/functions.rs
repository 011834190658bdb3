//! The functions and variables an expression may use. In: a scope and a name. Out: the function, or the nearest name
//! for "did you mean".

use std::path::Path;

use super::error::Problem;
use super::value::Value;
use crate::node::FactsError;

/// The names that an expression may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scope {
    /// What the expression is for, as messages name it.
    pub purpose: &'static str,
    /// Names that stand for a value.
    pub variables: &'static [&'static str],
    /// Functions that may be called.
    pub functions: &'static [Function],
}

impl Scope {
    /// The scope of `match`: the reference's four functions, and those of the language that read text.
    pub const MATCH: Self = Self {
        purpose: "match",
        variables: &[],
        functions: &[
            Function::Identity,
            Function::HasFile,
            Function::HasDirectory,
            Function::HasCommand,
            Function::Len,
            Function::Lower,
            Function::Upper,
            Function::Trim,
            Function::HasPrefix,
            Function::HasSuffix,
        ],
    };

    /// The scope of `match` in a specification of the `plugins` form, which can look at facts too.
    pub const PLUGINS_MATCH: Self = Self {
        purpose: "match",
        variables: &[],
        functions: &[
            Function::Identity,
            Function::HasFile,
            Function::HasDirectory,
            Function::HasCommand,
            Function::GetFact,
            Function::Len,
            Function::Lower,
            Function::Upper,
            Function::Trim,
            Function::HasPrefix,
            Function::HasSuffix,
        ],
    };

    /// The scope of watchers: `identity` is a text here, and facts and data are at hand.
    pub const WATCHER: Self = Self {
        purpose: "watcher",
        variables: &["data", "facts", "identity"],
        functions: &[
            Function::GetFact,
            Function::Len,
            Function::Lower,
            Function::Upper,
            Function::Trim,
            Function::HasPrefix,
            Function::HasSuffix,
        ],
    };

    /// The scope of what stands between `{{` and `}}` in hierarchical data.
    pub const HIERARCHY: Self = Self {
        purpose: "hierarchy",
        variables: &["facts", "identity"],
        functions: &[
            Function::Lookup,
            Function::Len,
            Function::Lower,
            Function::Upper,
            Function::Trim,
            Function::HasPrefix,
            Function::HasSuffix,
        ],
    };

    pub(super) fn function(&self, name: &str) -> Result<Function, Problem> {
        if let Some(function) = self.functions.iter().find(|function| function.name() == name) {
            return Ok(*function);
        }
        let known: Vec<&str> = self.functions.iter().map(|function| function.name()).collect();
        let help = crate::suggest::did_you_mean(name, &known);
        Err(Problem::UnknownFunction { name: super::lexer::shorten(name), help })
    }

    pub(super) fn variable(&self, name: &str) -> Result<(), Problem> {
        if self.variables.contains(&name) {
            return Ok(());
        }
        let name = super::lexer::shorten(name);
        if let Some(function) = self.functions.iter().find(|function| function.name() == name) {
            let help = format!("it is a function: write {}", function.usage());
            return Err(Problem::UnknownName { name, help });
        }
        let help = if self.variables.is_empty() {
            format!("a {} expression has no variables; text needs quotes", self.purpose)
        } else {
            crate::suggest::did_you_mean(&name, self.variables)
        };
        Err(Problem::UnknownName { name, help })
    }
}

/// One function of the language.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// `identity(regex)`: the node's identity matches the regular expression.
    Identity,
    /// `has_file(path)`: a regular file is there, symbolic links followed.
    HasFile,
    /// `has_directory(path)`: a directory is there, symbolic links followed.
    HasDirectory,
    /// `has_command(name)`: an executable of that name is in the search path.
    HasCommand,
    /// `get_fact(path)`: the fact at a GJSON path, or nil.
    GetFact,
    /// `lookup(path, default)`: the value at a GJSON path into `{"facts": …}`, or the default, or nil.
    Lookup,
    /// `len(value)`: characters of a text, items of an array or a map.
    Len,
    Lower,
    Upper,
    Trim,
    HasPrefix,
    HasSuffix,
}

impl Function {
    /// The name as written in an expression.
    pub fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::HasFile => "has_file",
            Self::HasDirectory => "has_directory",
            Self::HasCommand => "has_command",
            Self::GetFact => "get_fact",
            Self::Lookup => "lookup",
            Self::Len => "len",
            Self::Lower => "lower",
            Self::Upper => "upper",
            Self::Trim => "trim",
            Self::HasPrefix => "hasPrefix",
            Self::HasSuffix => "hasSuffix",
        }
    }

    /// An example call.
    fn usage(self) -> &'static str {
        match self {
            Self::Identity => "identity('^web')",
            Self::HasFile => "has_file('/etc/os-release')",
            Self::HasDirectory => "has_directory('/etc')",
            Self::HasCommand => "has_command('facter')",
            Self::GetFact => "get_fact('os.id')",
            Self::Lookup => "lookup('facts.os.id', 'debian')",
            Self::Len => "len('text')",
            Self::Lower => "lower('TEXT')",
            Self::Upper => "upper('text')",
            Self::Trim => "trim(' text ')",
            Self::HasPrefix => "hasPrefix('text', 'te')",
            Self::HasSuffix => "hasSuffix('text', 'xt')",
        }
    }

    /// How many arguments, and what they must be.
    pub(super) fn signature(self) -> (usize, &'static str) {
        match self {
            Self::Identity => (1, "one string, a regular expression"),
            Self::HasFile | Self::HasDirectory => (1, "one string, an absolute path"),
            Self::HasCommand => (1, "one string, the name of a command"),
            Self::GetFact => (1, "one string, the path of a fact"),
            Self::Lookup => (1, "one string, a path such as 'facts.os.id', and perhaps a default"),
            Self::Len => (1, "one string, array or map"),
            Self::Lower | Self::Upper | Self::Trim => (1, "one string"),
            Self::HasPrefix | Self::HasSuffix => (2, "two strings"),
        }
    }

    /// Whether it can be called with so many arguments.
    pub(super) fn takes(self, arguments: usize) -> bool {
        arguments == self.signature().0 || (self == Self::Lookup && arguments == 2)
    }

    /// Checks an argument, which may be a literal (at parse) or a value (at evaluation).
    pub(super) fn check_argument(self, argument: &Value) -> Result<(), Problem> {
        let (_, expected) = self.signature();
        let wrong_type = || Problem::Arguments { function: self.name(), expected, found: argument.describe() };
        match (self, argument) {
            // The default of a lookup may be anything; what is wrong with its path is seen when it is called.
            (Self::Lookup, _) | (Self::Len, Value::Text(_) | Value::Array(_) | Value::Map(_)) => Ok(()),
            (Self::Len, _) => Err(wrong_type()),
            (Self::GetFact, Value::Text(path)) => {
                crate::node::check_path(path).map_err(|error| Problem::Facts(FactsError::Query(error)))
            }
            (Self::HasFile | Self::HasDirectory, Value::Text(path)) => check_path("a path", path, &PathForm::Absolute),
            (Self::HasCommand, Value::Text(name)) => check_path("a command name", name, &PathForm::NameOrAbsolute),
            (_, Value::Text(_)) => Ok(()),
            (_, _) => Err(wrong_type()),
        }
    }
}

#[derive(PartialEq, Eq)]
enum PathForm {
    Absolute,
    NameOrAbsolute,
}

/// A relative path would be looked up in whatever directory the daemon happens to run in.
fn check_path(what: &'static str, path: &str, form: &PathForm) -> Result<(), Problem> {
    let refuse = |reason| Err(Problem::Path { what, path: super::lexer::shorten(path), reason });
    let relative = !Path::new(path).is_absolute();
    if path.is_empty() {
        refuse("it is empty")
    } else if path.contains('\0') {
        refuse("it contains a zero byte")
    } else if relative && *form == PathForm::Absolute {
        refuse("it must be absolute, starting with \"/\"")
    } else if relative && path.contains('/') {
        refuse("use a plain name, or an absolute path")
    } else {
        Ok(())
    }
}
