//! The rules that a definition is judged by: an id that stays, how grave a breach is, and what to do about it. Programs
//! that read the checker's output (editors, code hosts) know a fault by the id.

use serde::Serialize;

/// How grave a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The machine runs, but probably not as it was meant.
    Warning,
    /// The machine is refused, or something in it can never work.
    Error,
}

impl Severity {
    /// The word for programs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// What finds a breach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the file: a node refuses it.
    Definition,
    /// The model check: a node runs it.
    Model,
}

/// One rule.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    pub id: &'static str,
    pub severity: Severity,
    pub stage: Stage,
    /// One sentence: what is wrong.
    pub summary: &'static str,
    /// What is judged, what is not, and the remedy.
    pub help: &'static str,
}

macro_rules! rules {
    ($($name:ident = $id:literal, $severity:ident, $stage:ident, $summary:literal, $help:literal;)*) => {
        $(
            #[doc = concat!("The rule `", $id, "`.")]
            pub const $name: &Rule = &Rule {
                id: $id,
                severity: Severity::$severity,
                stage: Stage::$stage,
                summary: $summary,
                help: $help,
            };
        )*
        /// All of them.
        pub const RULES: &[&Rule] = &[$($name),*];
    };
}

rules! {
    UNREADABLE_FILE = "unreadable-file", Error, Definition,
        "machine.yaml can't be read.",
        "A machine is a directory with a machine.yaml of at most 1 MiB of UTF-8 text.";
    INVALID_YAML = "invalid-yaml", Error, Definition,
        "machine.yaml is not one YAML document.",
        "Duplicate keys, a second document, deep nesting and aliases that multiply are refused.";
    INVALID_DEFINITION = "invalid-definition", Error, Definition,
        "A key is missing, or its value is not what it must be.",
        "`machinesd schema` prints the JSON Schema of machine.yaml, with which editors complete and check it.";
    UNKNOWN_KEY = "unknown-key", Error, Definition,
        "A key is not one that belongs here.",
        "Unknown keys are refused, because a mistyped one would silently do nothing.";
    UNDEFINED_STATE = "undefined-state", Error, Definition,
        "A watcher names a state that no transition leaves or leads to.",
        "States are the initial state and every `from` and `destination`.";
    UNDEFINED_TRANSITION = "undefined-transition", Error, Definition,
        "A watcher names a transition that is not defined.",
        "success_transition and fail_transition must be names under `transitions`.";
    UNKNOWN_WATCHER_TYPE = "unknown-watcher-type", Error, Definition,
        "There is no watcher of this type.",
        "`machinesd version --verbose` lists the types that are compiled in.";
    INVALID_PROPERTY = "invalid-property", Error, Definition,
        "A property of a watcher is missing, or not what its type needs.",
        "`machinesd schema` has the properties of every type.";
    UNREACHABLE_STATE = "unreachable-state", Warning, Model,
        "No sequence of transitions leads from the initial state to this state.",
        "Every transition counts here, also those that only a person makes. Add a transition that leads to the state, or \
         remove it.";
    DEAD_END = "dead-end", Warning, Model,
        "No transition leaves the state, and no watcher works in it.",
        "A machine that gets here stays and does nothing until it is started anew. An end that is meant is fine when a \
         watcher works in it, for example one that says so.";
    UNFIRED_TRANSITION = "unfired-transition", Warning, Model,
        "Nothing makes the transition: no watcher in a state that it leaves, and no subscription.",
        "A person may make it with `machinesd transition`. A transition with a `description` counts as documented for \
         a person and is not reported. Otherwise name it in a watcher's success_transition or fail_transition, \
         subscribe it, describe it, or remove it.";
    TRANSITION_NEVER_VALID = "transition-never-valid", Error, Model,
        "A watcher asks for a transition that leaves none of the states in which the watcher works.",
        "The transition would be refused every time. Add one of the watcher's states to the transition's `from`, or \
         the transition's state to the watcher's state_match.";
    OUTCOME_NEVER_FIRED = "outcome-never-fired", Warning, Model,
        "A watcher names a transition that watchers of its type never ask for.",
        "Some types fire only fail_transition, some only transitions of fixed names, some nothing.";
    IDLE_WATCHER = "idle-watcher", Warning, Model,
        "The watcher works only in states that the machine never reaches.",
        "Correct its state_match, or add a transition to one of its states.";
    UNWRITTEN_DATA = "unwritten-data", Warning, Model,
        "A data item is read, but no watcher of the machine writes it.",
        "Nothing is reported when some watcher may write anything (exec with parse_as_data), for an item named `none` \
         (the customary name of an item that must not exist), and for paths that are not literal. A person can write \
         machine_data.json, so that this is no error.";
    DATA_WRITTEN_TWICE = "data-written-twice", Warning, Model,
        "Two watchers that work in the same state write the same data item.",
        "The value is then that of whichever ran last. Let them write different items, or work in different states.";
    UNQUOTED_VALUE = "unquoted-value", Warning, Model,
        "A value of the machine's data can do more in a command than be a value.",
        "Who writes the key, or what fills the data, commands the node with it. A template in quotes is one word, whatever \
         it holds; one outside of quotes is split into words. In a script (`sh -c '…'`) the interpreter reads the value, \
         with quotes or without: pass it as an argument, or use the function Quote. The name of a variable of the \
         environment should stand there literally. Facts are the node's own and are not reported.";
    SPINNING_CYCLE = "spinning-cycle", Warning, Model,
        "The machine can go round in a circle of states without delay.",
        "In each state of the circle a watcher without an interval makes the next transition as soon as it has looked. \
         The engine slows such a machine down to one transition in 5 s. Give one of the watchers an interval, or put a \
         state with a timer into the circle.";
    UNKNOWN_MACHINE = "unknown-machine", Warning, Model,
        "subscribe or foreign_state_required names a machine that is not among those that were checked.",
        "Reported only when several directories are checked together. Check the other machine with them, or correct the \
         name. The built-in machines are known.";
    UNKNOWN_FOREIGN_TRANSITION = "unknown-foreign-transition", Error, Model,
        "subscribe names a transition that the other machine does not have.",
        "The subscription would never fire. Name a transition of the other machine.";
    UNKNOWN_FOREIGN_STATE = "unknown-foreign-state", Error, Model,
        "foreign_state_required names a state that the other machine does not have.",
        "The watcher would never work. Name a state of the other machine.";
    ENDLESS_WAIT = "endless-wait", Error, Model,
        "A watcher or subscription waits for something that can't happen.",
        "The other machine never reaches the state or makes the transition, or only after a watcher that itself waits \
         for this machine. Transitions that no watcher and no subscription makes count as possible, because a person \
         makes them.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_unique_and_plain() {
        for (index, rule) in RULES.iter().enumerate() {
            assert!(rule.id.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{}", rule.id);
            assert!(RULES.iter().skip(index + 1).all(|other| other.id != rule.id), "{}", rule.id);
            assert!(rule.summary.ends_with('.') && rule.help.ends_with('.'), "{}", rule.id);
        }
    }
}
