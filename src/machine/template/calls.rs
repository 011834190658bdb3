//! What a template says without being rendered: the functions that it calls, the paths that it looks up, and the values
//! of others that it puts into a command where they can do more than be a value. For those who judge a machine.

use std::collections::{BTreeMap, BTreeSet};

use gotmpl::parse::{ActionNode, BranchNode, CommandNode, DefineNode, Expr, ListNode, Node, PipeNode, SmolStr};

use super::words::{Quoting, Splitter};
use crate::node::split_first;

/// Functions of which no result can be more than one word.
const HARMLESS: [&str; 9] = ["Quote", "eq", "ge", "gt", "le", "len", "lt", "ne", "not"];
/// Programs that take a script as an argument.
const INTERPRETERS: [&str; 12] =
    ["ash", "bash", "dash", "ksh", "perl", "python", "python3", "ruby", "runuser", "sh", "su", "zsh"];
/// Templates that call templates are followed so deep.
const MAXIMUM_DEPTH: usize = 16;
/// So many nodes of a template are looked at for hazards.
const MAXIMUM_NODES: usize = 10_000;

/// What a template calls.
#[derive(Default)]
pub struct Calls {
    pub functions: Vec<String>,
    /// The literal first arguments of `lookup`.
    pub lookups: Vec<String>,
}

/// A value of the machine's data that can do more in a command than be one word of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hazard {
    /// Where the value comes from, as it stands in the template.
    pub source: String,
    pub place: HazardPlace,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HazardPlace {
    /// It becomes as many words as it likes.
    OutsideOfQuotes,
    /// An interpreter of this name reads it as a part of its program.
    Script { of: String },
    /// It chooses which variable of the environment is set.
    NameOfVariable,
}

/// What a text is that is looked at for hazards.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Command,
    /// `NAME=value`.
    Variable,
}

/// The parser bounds how deep templates nest.
impl Calls {
    pub fn list(&mut self, list: &ListNode) {
        for node in &list.nodes {
            match node {
                Node::List(list) => self.list(list),
                Node::Action(action) => self.pipe(&action.pipe),
                Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                    self.pipe(&branch.pipe);
                    self.list(&branch.body);
                    branch.else_body.iter().for_each(|list| self.list(list));
                }
                Node::Template(template) => template.pipe.iter().for_each(|pipe| self.pipe(pipe)),
                Node::Define(define) => self.list(&define.body),
                Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
            }
        }
    }

    fn pipe(&mut self, pipe: &PipeNode) {
        for command in &pipe.commands {
            if let [Expr::Identifier(_, name), Expr::String(_, path), ..] = command.args.as_slice()
                && name == "lookup"
            {
                self.lookups.push(path.to_string());
            }
            command.args.iter().for_each(|argument| self.argument(argument));
        }
    }

    fn argument(&mut self, argument: &Expr) {
        match argument {
            Expr::Identifier(_, name) => self.functions.push(name.to_string()),
            Expr::Pipe(_, pipe) => self.pipe(pipe),
            Expr::Chain(_, inner, _) => self.argument(inner),
            _ => {}
        }
    }
}

/// Looks for hazards in a command. What a branch would choose is not known, so that all are read one after the other.
pub struct Hazards<'a> {
    form: Form,
    defined: &'a [DefineNode],
    splitter: Splitter,
    /// The `=` of a variable has been read.
    is_named: bool,
    /// Where the values of variables come from, and that of the dot.
    tainted: BTreeMap<SmolStr, String>,
    found: Vec<Hazard>,
    nodes: usize,
}

/// The dot among the variables.
const DOT: SmolStr = SmolStr::new_static(".");

impl<'a> Hazards<'a> {
    /// The hazards of a text, each once.
    pub fn of(form: Form, body: &ListNode, defined: &'a [DefineNode]) -> Vec<Hazard> {
        let mut hazards = Self {
            form,
            defined,
            splitter: Splitter::default(),
            is_named: false,
            tainted: BTreeMap::new(),
            found: Vec::new(),
            nodes: 0,
        };
        // A variable may be set after it is read, in a loop; what is tainted grows with each look.
        let mut known = usize::MAX;
        while known != hazards.tainted.len() {
            known = hazards.tainted.len();
            hazards.learn(body);
            defined.iter().for_each(|define| hazards.learn(&define.body));
        }
        hazards.list(body, 0);
        hazards.found
    }

    fn learn(&mut self, list: &ListNode) {
        for node in &list.nodes {
            match node {
                Node::List(list) => self.learn(list),
                Node::Action(action) => self.learn_pipe(&action.pipe),
                Node::If(branch) => self.learn_branch(branch),
                Node::Range(branch) | Node::With(branch) => {
                    if let Some(source) = self.source_of(&branch.pipe) {
                        self.tainted.entry(DOT).or_insert(source);
                    }
                    self.learn_branch(branch);
                }
                Node::Template(template) => {
                    if let Some(source) = template.pipe.as_ref().and_then(|pipe| self.source_of(pipe)) {
                        self.tainted.entry(DOT).or_insert_with(|| source.clone());
                        self.tainted.entry("$".into()).or_insert(source);
                    }
                }
                Node::Define(_) | Node::Text(_) | Node::Break(_) | Node::Continue(_) => {}
            }
        }
    }

    fn learn_branch(&mut self, branch: &BranchNode) {
        self.learn_pipe(&branch.pipe);
        self.learn(&branch.body);
        branch.else_body.iter().for_each(|list| self.learn(list));
    }

    fn learn_pipe(&mut self, pipe: &PipeNode) {
        if let Some(source) = self.source_of(pipe) {
            for name in &pipe.decl {
                self.tainted.entry(name.clone()).or_insert_with(|| source.clone());
            }
        }
    }

    /// Where a value of the machine's data in it comes from.
    fn source_of(&self, pipe: &PipeNode) -> Option<String> {
        let last = pipe.commands.last()?;
        if matches!(last.args.first(), Some(Expr::Identifier(_, name)) if HARMLESS.contains(&name.as_str())) {
            return None;
        }
        pipe.commands.iter().find_map(|command| self.source_of_command(command))
    }

    fn source_of_command(&self, command: &CommandNode) -> Option<String> {
        match command.args.as_slice() {
            [Expr::Identifier(_, name), ..] if HARMLESS.contains(&name.as_str()) => None,
            // Facts are the node's own. A default may come from elsewhere.
            [Expr::Identifier(_, name), Expr::String(_, path), rest @ ..] if name == "lookup" => {
                match split_first(path).0.as_str() {
                    "facts" => rest.iter().find_map(|argument| self.source_of_argument(argument)),
                    _ => Some(path.to_string()),
                }
            }
            // The overrides of nagios watchers are an item of the data.
            [Expr::Identifier(_, name), Expr::String(_, path), ..] if name == "o" => Some(path.to_string()),
            [Expr::Identifier(_, name), ..] if name == "lookup" || name == "o" => Some(name.to_string()),
            arguments => arguments.iter().find_map(|argument| self.source_of_argument(argument)),
        }
    }

    fn source_of_argument(&self, argument: &Expr) -> Option<String> {
        match argument {
            Expr::Dot(_) | Expr::Field(..) => self.tainted.get(&DOT).cloned(),
            Expr::Variable(_, name, _) => self.tainted.get(name).cloned(),
            Expr::Pipe(_, pipe) => self.source_of(pipe),
            Expr::Chain(_, inner, _) => self.source_of_argument(inner),
            _ => None,
        }
    }

    /// Reads the text in order.
    fn list(&mut self, list: &ListNode, depth: usize) {
        for node in &list.nodes {
            self.nodes += 1;
            if self.nodes > MAXIMUM_NODES {
                return;
            }
            match node {
                Node::Text(text) => {
                    self.is_named |= text.text.contains('=');
                    self.splitter.literal(&text.text);
                }
                Node::Action(action) if action.pipe.decl.is_empty() => self.action(action),
                Node::List(list) => self.list(list, depth),
                Node::If(branch) | Node::Range(branch) | Node::With(branch) => {
                    self.list(&branch.body, depth);
                    branch.else_body.iter().for_each(|list| self.list(list, depth));
                }
                Node::Template(template) if depth < MAXIMUM_DEPTH => {
                    if let Some(define) = self.defined.iter().find(|define| define.name == template.name) {
                        self.list(&define.body, depth + 1);
                    }
                }
                _ => {}
            }
        }
    }

    fn action(&mut self, action: &ActionNode) {
        let place = match (self.form, self.splitter.quoting()) {
            (Form::Variable, _) => (!self.is_named).then_some(HazardPlace::NameOfVariable),
            (Form::Command, Quoting::Comment) => None,
            (Form::Command, Quoting::Unquoted) => Some(HazardPlace::OutsideOfQuotes),
            (Form::Command, Quoting::Quoted) => self.script().map(|of| HazardPlace::Script { of }),
        };
        if let (Some(place), Some(source)) = (place, self.source_of(&action.pipe)) {
            let hazard = Hazard { source, place };
            if !self.found.contains(&hazard) {
                self.found.push(hazard);
            }
        }
        // Any value that is one word.
        _ = self.splitter.value("x");
    }

    /// The interpreter that reads the word that begins or goes on now as its program.
    fn script(&self) -> Option<String> {
        let [before @ .., flag] = self.splitter.words() else { return None };
        let is_script = flag.starts_with('-') && !flag.starts_with("--") && flag.ends_with(['c', 'e']);
        let names: BTreeSet<&str> = before.iter().filter_map(|word| word.rsplit('/').next()).collect();
        INTERPRETERS.into_iter().find(|name| is_script && names.contains(name)).map(str::to_owned)
    }
}
