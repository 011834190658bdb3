//! Properties with Go template actions in them, as the reference has them: `{{ lookup "facts.role" "web" }}` and the
//! functions below. A template is parsed once when its machine is validated, so that a fault has its place in the file,
//! and rendered with the facts and the data of the moment.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gotmpl::parse::{Expr, ListNode, Node, Parser, PipeNode};
use gotmpl::{FuncMap, TemplateError as GoError, Value as GoValue};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::node::{Facts, split_first};

pub use crate::node::query;

use super::data::{Snapshot, to_json};

/// What a template makes may be this long, in bytes.
pub const MAXIMUM_OUTPUT_BYTES: usize = 1024 * 1024;
/// Rounds of all `range` actions of one rendering together.
const MAXIMUM_ROUNDS: u64 = 10_000;

/// The library's parser takes an open `if` and an `end` too many for the end of the template; where this mark, put after
/// it, ends up tells.
const END_MARK: &str = "\u{0}end";

/// The functions that every Go template has.
const GO_FUNCTIONS: [&str; 19] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print", "printf",
    "println", "slice", "urlquery",
];

/// A text with or without actions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: Arc<str>,
    lookups: Vec<String>,
}

/// A template that can't be read, or not rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error("the template {template:?} can't be read: {source}")]
    Syntax { template: String, source: Box<GoError> },
    #[error("the template {template:?} has an if, range, with or define without its end, or an end too many")]
    Unbalanced { template: String },
    #[error("the template {template:?} calls {function:?}, which is no function; {help}")]
    UnknownFunction { template: String, function: String, help: String },
    #[error("the template {template:?} can't be rendered: {source}")]
    Render { template: String, source: Box<GoError> },
    #[error("the template {template:?} makes more than {MAXIMUM_OUTPUT_BYTES} bytes")]
    TooLong { template: String },
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
    pub fn lookup(&self, path: &str) -> Option<Value> {
        if let Some(path) = path.strip_prefix("facts.") {
            return query(self.facts.text(), path);
        }
        let data = self.data_text.get_or_init(|| to_json(&self.data).to_string());
        if let Some(path) = path.strip_prefix("data.") {
            return query(data, path);
        }
        query(&format!("{{\"facts\":{},\"data\":{data}}}", self.facts.text()), path)
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
    /// When it is not a template, or names a function that does not exist.
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
        let refuse = |source| TemplateError::Syntax { template: template.shown(), source: Box::new(source) };
        let marked = format!("{text}{END_MARK}");
        let (body, defined) = Parser::new(&marked, "{{", "}}").and_then(Parser::parse).map_err(refuse)?;
        let ends_well = matches!(body.nodes.last(), Some(Node::Text(last)) if last.text.ends_with(END_MARK));
        if !ends_well {
            return Err(TemplateError::Unbalanced { template: template.shown() });
        }
        let mut calls = Calls::default();
        calls.list(&body);
        defined.iter().for_each(|defined| calls.list(&defined.body));
        let own = functions(None);
        let known = own.keys().map(String::as_str).chain(GO_FUNCTIONS).chain(more_functions.iter().copied());
        let known: Vec<&str> = known.collect();
        if let Some(unknown) = calls.functions.iter().find(|name| !known.contains(&name.as_str())) {
            return Err(TemplateError::UnknownFunction {
                template: template.shown(),
                function: unknown.clone(),
                help: crate::suggest::did_you_mean(unknown, &known),
            });
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

    /// The text with the values of the moment.
    ///
    /// # Errors
    /// When an action fails, or the text grows too long.
    pub fn render(&self, scope: &Scope) -> Result<Cow<'_, str>, TemplateError> {
        self.render_with(scope, FuncMap::new())
    }

    /// As [`Self::render`], with more functions.
    ///
    /// # Errors
    /// As there.
    pub fn render_with(&self, scope: &Scope, more_functions: FuncMap) -> Result<Cow<'_, str>, TemplateError> {
        if self.is_plain() {
            return Ok(Cow::Borrowed(&self.source));
        }
        let mut functions = functions(Some(scope));
        functions.extend(more_functions);
        let compiled = self.compile(functions)?;
        let mut output = Bounded::default();
        match compiled.execute_fmt(&mut output, &GoValue::Nil) {
            Ok(()) => Ok(Cow::Owned(output.text)),
            Err(_) if output.full => Err(TemplateError::TooLong { template: self.shown() }),
            Err(source) => Err(TemplateError::Render { template: self.shown(), source: Box::new(source) }),
        }
    }

    fn compile(&self, functions: FuncMap) -> Result<gotmpl::Template, TemplateError> {
        let template = gotmpl::Template::new("property").max_range_iters(MAXIMUM_ROUNDS).funcs(functions);
        template
            .parse(&self.source)
            .map_err(|source| TemplateError::Syntax { template: self.shown(), source: Box::new(source) })
    }

    /// For messages: a template may be a whole file.
    fn shown(&self) -> String {
        self.source.chars().take(80).collect()
    }
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

#[derive(Default)]
struct Bounded {
    text: String,
    full: bool,
}

impl fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> fmt::Result {
        if self.text.len() + more.len() > MAXIMUM_OUTPUT_BYTES {
            self.full = true;
            return Err(fmt::Error);
        }
        self.text.push_str(more);
        Ok(())
    }
}

/// What a template calls.
#[derive(Default)]
struct Calls {
    functions: Vec<String>,
    /// The literal first arguments of `lookup`.
    lookups: Vec<String>,
}

/// The parser bounds how deep templates nest.
impl Calls {
    fn list(&mut self, list: &ListNode) {
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

/// The functions of the reference. Without a scope nothing is looked up: that is for reading a template only.
fn functions(scope: Option<&Scope>) -> FuncMap {
    let mut functions = FuncMap::new();
    let mut text_function = |name: &str, function: fn(&str) -> Result<String, String>| {
        let called = name.to_owned();
        let call = move |arguments: &[GoValue]| match arguments {
            [argument] => {
                function(&argument.to_string()).map(|text| GoValue::String(text.into())).map_err(GoError::Exec)
            }
            _ => Err(GoError::Exec(format!("{called} takes one argument, not {}", arguments.len()))),
        };
        functions.insert(name.to_owned(), Arc::new(call) as _);
    };
    text_function("ToLower", |text| Ok(text.to_lowercase()));
    text_function("ToUpper", |text| Ok(text.to_uppercase()));
    text_function("Title", |text| Ok(title(text)));
    text_function("Capitalize", |text| Ok(capitalize(text)));
    text_function("Base64Encode", |text| Ok(STANDARD.encode(text)));
    text_function("Base64Decode", |text| {
        let bytes = STANDARD.decode(text).map_err(|error| format!("Base64Decode: {error}"))?;
        String::from_utf8(bytes).map_err(|_| "Base64Decode: the result is not text".to_owned())
    });
    functions.insert("StringsJoin".to_owned(), Arc::new(strings_join));
    let scope = scope.cloned();
    let lookup = move |arguments: &[GoValue]| {
        let (path, default) = match arguments {
            [path] => (path.to_string(), GoValue::String("".into())),
            [path, default] => (path.to_string(), default.clone()),
            _ => {
                return Err(GoError::Exec(format!(
                    "lookup takes a path and a default, not {} arguments",
                    arguments.len()
                )));
            }
        };
        let found = scope.as_ref().and_then(|scope| scope.lookup(&path));
        Ok(found.filter(|value| !value.is_null()).map_or(default, |value| from_json(&value)))
    };
    functions.insert("lookup".to_owned(), Arc::new(lookup));
    functions
}

fn strings_join(arguments: &[GoValue]) -> Result<GoValue, GoError> {
    let [GoValue::List(list), separator] = arguments else {
        return Err(GoError::Exec("StringsJoin takes a list and a separator".to_owned()));
    };
    let parts: Vec<String> = list.iter().map(ToString::to_string).collect();
    Ok(GoValue::String(parts.join(&separator.to_string()).into()))
}

/// The first letter of each word in upper case.
fn title(text: &str) -> String {
    let mut output = String::with_capacity(text.len());
    let mut begins = true;
    for character in text.chars() {
        if begins {
            output.extend(character.to_uppercase());
        } else {
            output.push(character);
        }
        begins = !(character.is_alphanumeric() || character == '_' || character == '\'');
    }
    output
}

/// The first letter of the text in upper case.
fn capitalize(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}

fn from_json(value: &Value) -> GoValue {
    match value {
        Value::Null => GoValue::Nil,
        Value::Bool(value) => GoValue::Bool(*value),
        Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
            (Some(integer), ..) => GoValue::Int(integer),
            (None, Some(integer), _) => GoValue::Uint(integer),
            (None, None, float) => GoValue::Float(float.unwrap_or_default()),
        },
        Value::String(text) => GoValue::String(text.as_str().into()),
        Value::Array(items) => GoValue::List(items.iter().map(from_json).collect()),
        Value::Object(map) => {
            GoValue::Map(Arc::new(map.iter().map(|(key, value)| (key.as_str().into(), from_json(value))).collect()))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::super::data::Item;
    use super::*;

    fn scope() -> Scope {
        let facts =
            Facts::new(json!({"role": "web", "cpus": 2, "load": 0.5, "tags": ["a", "b"], "os": {"id": "debian"}}));
        let data =
            BTreeMap::from([("count".to_owned(), Item::new(json!(7))), ("on".to_owned(), Item::new(json!(true)))]);
        Scope::new(Arc::new(facts), Arc::new(data))
    }

    fn render(text: &str) -> String {
        Template::parse(text).unwrap().render(&scope()).unwrap().into_owned()
    }

    #[test]
    fn looks_values_up_by_gjson_paths_with_a_default() {
        assert_eq!(render("plain"), "plain");
        assert_eq!(render("{{ lookup \"facts.role\" \"db\" }}"), "web");
        assert_eq!(render("{{ lookup \"facts.os.id\" \"\" }}-{{ lookup `data.count` 1 }}"), "debian-7");
        assert_eq!(render("{{ lookup \"facts.tags.#\" 0 }}{{ lookup \"facts.tags.1\" 0 }}"), "2b");
        assert_eq!(render("{{ lookup \"facts.nope\" \"db\" }} {{ lookup \"data.nope\" 5 }}"), "db 5");
        assert_eq!(render("{{ lookup \"facts.load\" 1 }} {{ lookup \"facts.cpus\" 1 }}"), "0.5 2");
        assert_eq!(render("{{ if lookup \"data.on\" false }}yes{{ end }}"), "yes");
        assert_eq!(render("{{ range lookup \"facts.tags\" \"\" }}<{{ . }}>{{ end }}"), "<a><b>");
    }

    #[test]
    fn has_the_functions_of_the_reference() {
        assert_eq!(render("{{ \"ab cd\" | Title }} {{ Capitalize \"ab cd\" }}"), "Ab Cd Ab cd");
        assert_eq!(render("{{ ToUpper \"a\" }}{{ ToLower \"B\" }}"), "Ab");
        assert_eq!(render("{{ StringsJoin (lookup \"facts.tags\" \"\") \", \" }}"), "a, b");
        assert_eq!(render("{{ Base64Decode (Base64Encode \"hi\") }}"), "hi");
    }

    #[test]
    fn a_fault_is_found_when_the_template_is_read() {
        let message = Template::parse("{{ Titel (lookup `a` 1) }}").unwrap_err().to_string();
        assert!(message.ends_with("calls \"Titel\", which is no function; did you mean \"Title\"?"), "{message}");
        for bad in ["{{ lookup", "{{ lookup \"a }}"] {
            let message = Template::parse(bad).unwrap_err().to_string();
            assert!(message.starts_with("the template") && message.contains("can't be read"), "{bad}: {message}");
        }
        for bad in ["{{ if true }}x", "x{{ end }}y", "{{ if true }}a{{ else }}b", "{{ define \"a\" }}x"] {
            let message = Template::parse(bad).unwrap_err().to_string();
            assert!(message.contains("without its end"), "{bad}: {message}");
        }
        for good in ["{{ if true }}x{{ end }}", "x{{- /* a comment */ -}}  ", "{{ define \"a\" }}x{{ end }}"] {
            Template::parse(good).unwrap();
        }
    }

    #[test]
    fn a_fault_in_rendering_is_told_and_the_output_is_bounded() {
        let error = |text: &str| Template::parse(text).unwrap().render(&scope()).unwrap_err().to_string();
        assert!(error("{{ Base64Decode \"%\" }}").contains("Base64Decode"));
        assert!(error("{{ lookup }}").contains("lookup takes a path"));
        let endless = "{{ range 9000 }}{{ printf \"%9000d\" 1 }}{{ end }}";
        assert!(error(endless).contains("more than 1048576 bytes"), "{}", error(endless));
        assert!(error("{{ range 90000 }}{{ end }}").contains("budget"));
    }

    #[test]
    fn what_it_looks_up_is_known_to_the_checker() {
        let template = Template::parse("{{ lookup \"data.a\" 1 }}{{ Title (lookup `facts.b.c` `x`) }}").unwrap();
        assert_eq!(template.lookups(), ["data.a", "facts.b.c"]);
    }
}
