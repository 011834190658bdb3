//! Properties with Go template actions in them, as the reference has them: `{{ lookup "facts.role" "web" }}` and the
//! functions of [`functions`]. A template is parsed once when its machine is validated, so that a fault has its place in
//! the file, and rendered with the facts and the data of the moment, within the bounds of [`budget`].

mod budget;
mod calls;
mod functions;
mod prepare;
mod rendered;
mod words;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use gotmpl::parse::{DefineNode, ListNode, Node, Parser};
use gotmpl::{FuncMap, TemplateError as GoError, Value as GoValue};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::data::{Snapshot, to_json};
use crate::node::{Facts, FactsError, QueryError, check_path, cost, split_first};

pub use budget::{Exhausted, MAXIMUM_HELD_BYTES, MAXIMUM_WORK_BYTES};
pub use calls::{Form, Hazard, HazardPlace};
pub use rendered::{CommandError, MAXIMUM_OUTPUT_BYTES, Rendered};

pub use crate::node::query;

/// Rounds of all `range` actions of one rendering together.
const MAXIMUM_ROUNDS: u64 = 10_000;

/// The library's parser takes an open `if` and an `end` too many for the end of the template; where this mark, put after
/// it, ends up tells.
const END_MARK: &str = "\u{0}end";

/// The name of the whole among the templates that are defined in it; no `define` can have it.
const WHOLE: &str = "\u{0}whole";

/// Most `else if` and `else with` in a template: the library's parser calls itself for each, and has no bound of its own.
const MAXIMUM_ALTERNATIVES: usize = 100;

/// Of a template, and of what the library says of it, so much is shown: a template may be a whole file.
const SHOWN_CHARACTERS: usize = 80;
/// Of the command that a failure names.
const BRIEF_CHARACTERS: usize = 256;
const SHOWN_REASON_CHARACTERS: usize = 400;

/// A text with or without actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: Arc<str>,
    lookups: Vec<String>,
}

/// A template that can't be read, or not rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the template {template:?} can't be read: {reason}")]
    Syntax { template: String, reason: String },
    #[error("the template {template:?} has an if, range, with or define without its end, or an end too many")]
    Unbalanced { template: String },
    #[error("the template {template:?} has more than {MAXIMUM_ALTERNATIVES} else if and else with")]
    TooManyAlternatives { template: String },
    #[error("the template {template:?} calls {function:?}, which is no function; {help}")]
    UnknownFunction { template: String, function: String, help: String },
    #[error("the template {template:?} looks up a path that can't be followed: {source}")]
    Path { template: String, source: QueryError },
    #[error("the template {template:?} can't be rendered: {reason}")]
    Render { template: String, reason: String },
    #[error("the template {template:?} makes more than {MAXIMUM_OUTPUT_BYTES} bytes")]
    TooLong { template: String },
    #[error("the template {template:?} can't be rendered: {exhausted}; let it do less")]
    TooMuch { template: String, exhausted: Exhausted },
}

/// What a template may look up.
#[derive(Clone)]
pub struct Scope {
    facts: Arc<Facts>,
    data: Snapshot,
    data_text: Arc<OnceLock<String>>,
}

impl Scope {
    pub fn new(facts: Arc<Facts>, data: Snapshot) -> Self {
        Self { facts, data, data_text: Arc::default() }
    }

    /// The value at a GJSON path into `{"facts": …, "data": …}`; `None` when there is none.
    ///
    /// # Errors
    /// When the path may lead into facts and they can't be used, or the path can't be followed.
    pub fn lookup(&self, path: &str) -> Result<Option<Value>, FactsError> {
        if let Some(path) = path.strip_prefix("facts.") {
            return self.facts.query(path);
        }
        let data = self.data_text();
        if let Some(path) = path.strip_prefix("data.") {
            return Ok(query(data, path)?);
        }
        if split_first(path).0 == "data" {
            return Ok(query(&format!("{{\"data\":{data}}}"), path)?);
        }
        self.facts.usable()?;
        Ok(query(&format!("{{\"facts\":{},\"data\":{data}}}", self.facts.text()), path)?)
    }

    /// As [`Self::lookup`], where what is looked at counts.
    fn lookup_within(&self, path: &str, budget: &budget::Budget) -> Result<Option<Value>, GoError> {
        let facts = if path.starts_with("data.") { 0 } else { cost(self.facts.text(), path) };
        let data = if path.starts_with("facts.") { 0 } else { cost(self.data_text(), path) };
        budget.work(facts.saturating_add(data))?;
        self.lookup(path).map_err(|error| GoError::Exec(error.to_string()))
    }

    fn data_text(&self) -> &str {
        self.data_text.get_or_init(|| to_json(&self.data).to_string())
    }
}

/// The data items that paths into `{"facts": …, "data": …}` look up; their change calls for a check at once.
pub fn items_of<'a>(lookups: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let item = |path: &str| match split_first(path) {
        (root, rest) if root == "data" && !rest.is_empty() => Some(split_first(rest).0),
        _ => None,
    };
    let mut items: Vec<String> = lookups.into_iter().filter_map(item).collect();
    items.sort();
    items.dedup();
    items
}

impl Template {
    /// Reads a template; a text without actions is one too.
    ///
    /// # Errors
    /// When it is not a template, names a function that does not exist, or looks up a path that can't be followed.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        Self::parse_with(text, &[])
    }

    /// As [`Self::parse`], where some more functions exist.
    ///
    /// # Errors
    /// As there.
    pub fn parse_with(text: &str, more_functions: &[&str]) -> Result<Self, TemplateError> {
        let template = Self { source: text.into(), lookups: Vec::new() };
        if template.is_plain() {
            return Ok(template);
        }
        if template.alternatives() > MAXIMUM_ALTERNATIVES {
            return Err(TemplateError::TooManyAlternatives { template: template.shown() });
        }
        // It looks for templates that are defined twice, which the parser alone does not.
        gotmpl::Template::new("").parse(text).map_err(|error| template.refuse(&error))?;
        let (body, defined) = template.tree(&format!("{text}{END_MARK}"))?;
        let ends_well = matches!(body.nodes.last(), Some(Node::Text(last)) if last.text.ends_with(END_MARK));
        if !ends_well {
            return Err(TemplateError::Unbalanced { template: template.shown() });
        }
        let mut calls = calls::Calls::default();
        calls.list(&body);
        defined.iter().for_each(|defined| calls.list(&defined.body));
        let known = functions::OWN_FUNCTIONS.into_iter().chain(functions::GO_FUNCTIONS);
        let known: Vec<&str> = known.chain(more_functions.iter().copied()).collect();
        if let Some(unknown) = calls.functions.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(TemplateError::UnknownFunction {
                template: template.shown(),
                function: unknown.clone(),
                help: crate::suggest::did_you_mean(unknown, &known),
            });
        }
        for path in &calls.lookups {
            check_path(path).map_err(|source| TemplateError::Path { template: template.shown(), source })?;
        }
        Ok(Self { lookups: calls.lookups, ..template })
    }

    /// Whether there is nothing to render.
    pub fn is_plain(&self) -> bool {
        !self.source.contains("{{")
    }

    /// As it is written.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The paths that it looks up, as far as they stand in it literally; for the checker.
    pub fn lookups(&self) -> &[String] {
        &self.lookups
    }

    /// The values of the machine's data that can do more in a text of this form than be a value; for the checker.
    pub fn hazards(&self, form: Form) -> Vec<Hazard> {
        if self.is_plain() {
            return Vec::new();
        }
        // What can't be read was refused before.
        self.tree(&self.source).map(|(body, defined)| calls::Hazards::of(form, &body, &defined)).unwrap_or_default()
    }

    /// The text with the values of the moment.
    ///
    /// # Errors
    /// When an action fails, or the text or what is made for it grows too long.
    pub fn render(&self, scope: &Scope) -> Result<Cow<'_, str>, TemplateError> {
        if self.is_plain() {
            return Ok(Cow::Borrowed(&self.source));
        }
        Ok(Cow::Owned(self.render_command(scope)?.into_text()))
    }

    /// As [`Self::render`], for a text in which it matters what was a value.
    ///
    /// # Errors
    /// As there.
    pub fn render_command(&self, scope: &Scope) -> Result<Rendered, TemplateError> {
        self.render_command_with(scope, FuncMap::new())
    }

    /// As [`Self::render_command`], with more functions.
    ///
    /// # Errors
    /// As there.
    pub fn render_command_with(&self, scope: &Scope, more_functions: FuncMap) -> Result<Rendered, TemplateError> {
        if self.is_plain() {
            return Ok(Rendered::plain(&*self.source));
        }
        let budget = budget::Budget::default();
        let mut output = rendered::Output::new(budget.clone());
        let mut functions = functions::functions(scope, &budget, &output.announcement);
        functions.extend(more_functions);
        let compiled = self.compile(functions)?;
        match compiled.execute_template_fmt(&mut output, WHOLE, &GoValue::Nil) {
            Ok(()) => Ok(output.rendered),
            Err(_) if output.full => Err(TemplateError::TooLong { template: self.shown() }),
            Err(error) => Err(match budget.exhausted() {
                Some(exhausted) => TemplateError::TooMuch { template: self.shown(), exhausted },
                None => TemplateError::Render { template: self.shown(), reason: shorten(&error) },
            }),
        }
    }

    fn compile(&self, functions: FuncMap) -> Result<gotmpl::Template, TemplateError> {
        let (body, defined) = self.tree(&self.source)?;
        let mut template = gotmpl::Template::new("").max_range_iters(MAXIMUM_ROUNDS).funcs(functions);
        for DefineNode { name, body, .. } in defined {
            // Of two that have a name, one is empty, and does not count.
            if !(body.is_empty_tree() && template.lookup(&name).is_some()) {
                template = template.add_parse_tree(&name, prepare::prepare(body));
            }
        }
        Ok(template.add_parse_tree(WHOLE, prepare::prepare(body)))
    }

    fn tree(&self, text: &str) -> Result<(ListNode, Vec<DefineNode>), TemplateError> {
        Parser::new(text, "{{", "}}").and_then(Parser::parse).map_err(|error| self.refuse(&error))
    }

    fn refuse(&self, error: &GoError) -> TemplateError {
        TemplateError::Syntax { template: self.shown(), reason: shorten(error) }
    }

    /// At least the `else if` and `else with`, whatever texts and comments may hide.
    fn alternatives(&self) -> usize {
        let begins = |action: &str| {
            let word = action.trim_start_matches('-').trim_start().strip_prefix("else")?;
            Some(!word.trim_start().trim_start_matches('-').starts_with("}}"))
        };
        self.source.split("{{").filter_map(begins).filter(|is_alternative| *is_alternative).count()
    }

    fn shown(&self) -> String {
        self.source.chars().take(SHOWN_CHARACTERS).collect()
    }

    /// As it is written, or the beginning of that: for what is said at each check, which would fill the log.
    pub fn brief(&self) -> Cow<'_, str> {
        let Some((end, _)) = self.source.char_indices().nth(BRIEF_CHARACTERS) else {
            return Cow::Borrowed(&self.source);
        };
        // Half a secret has no form by which it could be known later. What is masked keeps its columns, not its bytes.
        let beginning = self.source.get(..self.source.floor_char_boundary(16 * BRIEF_CHARACTERS)).unwrap_or_default();
        let masked = crate::secret::masked(beginning);
        let end = masked.char_indices().nth(BRIEF_CHARACTERS).map_or(end, |(end, _)| end);
        Cow::Owned(format!("{}…", masked.get(..end).unwrap_or_default()))
    }
}

/// What the library says may hold a whole value.
fn shorten(error: &GoError) -> String {
    error.to_string().chars().take(SHOWN_REASON_CHARACTERS).collect()
}

impl<'de> Deserialize<'de> for Template {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Template {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.source)
    }
}

impl schemars::JsonSchema for Template {
    fn schema_name() -> Cow<'static, str> {
        "Template".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "type": "string",
            "description": "A text; Go template actions such as {{ lookup \"facts.role\" \"web\" }} are rendered in it."
        })
    }
}
