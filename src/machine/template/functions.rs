//! The functions of templates: the reference's, our own, and those of Go that make values larger, which are replaced by
//! some that count. In: a scope and a budget. Out: functions for the library.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use gotmpl::{FuncMap, TemplateError as GoError, Value as GoValue};
use serde_json::Value;

use super::Scope;
use super::budget::{Budget, Exhausted, MAXIMUM_HELD_BYTES, size, weight};
use super::prepare::{COMPARED, PRINTED};
use super::rendered::Announcement;

/// The functions that every Go template has.
pub const GO_FUNCTIONS: [&str; 19] = [
    "and", "call", "eq", "ge", "gt", "html", "index", "js", "le", "len", "lt", "ne", "not", "or", "print", "printf",
    "println", "slice", "urlquery",
];

/// The functions that machines have besides.
pub const OWN_FUNCTIONS: [&str; 9] =
    ["Base64Decode", "Base64Encode", "Capitalize", "Quote", "StringsJoin", "Title", "ToLower", "ToUpper", "lookup"];

type Result<T> = std::result::Result<T, GoError>;

/// The width and precision that the library prints at most.
const MAXIMUM_WIDTH: usize = 65_535;
/// A character is printed as at most so many, as in `\u{10ffff}`.
const LONGEST_ESCAPE: usize = 10;
/// Texts are escaped in pieces of so many bytes, so that the budget is asked between them.
const PIECE_BYTES: usize = 64 * 1024;

/// All functions of one rendering.
pub fn functions(scope: &Scope, budget: &Budget, announcement: &Announcement) -> FuncMap {
    let mut functions = FuncMap::new();
    let mut add = |name: &str, function: fn(&Budget, &[GoValue]) -> Result<GoValue>| {
        let budget = budget.clone();
        functions.insert(name.to_owned(), Arc::new(move |arguments: &[GoValue]| function(&budget, arguments)) as _);
    };
    add("print", |budget, arguments| print(budget, arguments, Separated::WhereGoDoes));
    add("println", |budget, arguments| print(budget, arguments, Separated::Always));
    add("printf", printf);
    add("slice", slice);
    add("StringsJoin", strings_join);
    add(COMPARED, compared);
    for (name, function) in [
        ("html", gotmpl::html_escape as fn(&str) -> String),
        ("js", gotmpl::js_escape),
        ("urlquery", gotmpl::url_encode),
    ] {
        let budget = budget.clone();
        let call = move |arguments: &[GoValue]| escape(&budget, one(name, arguments)?, function);
        functions.insert(name.to_owned(), Arc::new(call) as _);
    }
    for (name, function) in TEXT_FUNCTIONS {
        let budget = budget.clone();
        let call = move |arguments: &[GoValue]| {
            let text = function(&budget.print(one(name, arguments)?)?)
                .map_err(|reason| GoError::Exec(format!("{name}: {reason}")))?;
            budget.hold(text.len())?;
            Ok(GoValue::String(text.into()))
        };
        functions.insert((*name).to_owned(), Arc::new(call) as _);
    }
    let (scope, own) = (scope.clone(), budget.clone());
    functions.insert("lookup".to_owned(), Arc::new(move |arguments: &[GoValue]| lookup(&scope, &own, arguments)) as _);
    let (announcement, own) = (announcement.clone(), budget.clone());
    let printed = move |arguments: &[GoValue]| {
        let text = printed(&own, one("print", arguments)?)?;
        announcement.make();
        Ok(text)
    };
    functions.insert(PRINTED.to_owned(), Arc::new(printed) as _);
    functions
}

type TextFunction = fn(&str) -> std::result::Result<String, String>;

const TEXT_FUNCTIONS: &[(&str, TextFunction)] = &[
    ("ToLower", |text| Ok(text.to_lowercase())),
    ("ToUpper", |text| Ok(text.to_uppercase())),
    ("Title", |text| Ok(title(text))),
    ("Capitalize", |text| Ok(capitalize(text))),
    ("Quote", quote),
    ("Base64Encode", |text| Ok(STANDARD.encode(text))),
    ("Base64Decode", |text| {
        let bytes = STANDARD.decode(text).map_err(|error| error.to_string())?;
        String::from_utf8(bytes).map_err(|_| "the result is not text".to_owned())
    }),
];

fn one<'a>(name: &str, arguments: &'a [GoValue]) -> Result<&'a GoValue> {
    match arguments {
        [argument] => Ok(argument),
        _ => Err(GoError::Exec(format!("{name} takes one argument, not {}", arguments.len()))),
    }
}

fn lookup(scope: &Scope, budget: &Budget, arguments: &[GoValue]) -> Result<GoValue> {
    let (path, default) = match arguments {
        [path] => (path, GoValue::String("".into())),
        [path, default] => (path, default.clone()),
        _ => {
            return Err(GoError::Exec(format!("lookup takes a path and a default, not {} arguments", arguments.len())));
        }
    };
    let path = budget.print(path)?;
    let found = scope.lookup_within(&path, budget)?;
    let Some(found) = found.filter(|value| !value.is_null()) else { return Ok(default) };
    budget.hold(weight(&found))?;
    Ok(from_json(&found))
}

/// As the library would write it, in one piece.
fn printed(budget: &Budget, value: &GoValue) -> Result<GoValue> {
    match value {
        GoValue::Nil => Ok(GoValue::String("<no value>".into())),
        GoValue::String(_) => Ok(value.clone()),
        other => Ok(GoValue::String(budget.print(other)?.into())),
    }
}

fn compared(budget: &Budget, arguments: &[GoValue]) -> Result<GoValue> {
    let value = one("a comparison", arguments)?;
    budget.work(size(value))?;
    Ok(value.clone())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Separated {
    Always,
    /// Between two values of which none is a text.
    WhereGoDoes,
}

fn print(budget: &Budget, arguments: &[GoValue], separated: Separated) -> Result<GoValue> {
    let is_text = |value: &GoValue| matches!(value, GoValue::String(_));
    let mut text = budget.text();
    let mut before: Option<&GoValue> = None;
    for argument in arguments {
        let apart =
            before.is_some_and(|before| separated == Separated::Always || !(is_text(before) || is_text(argument)));
        text.add(format_args!("{}{argument}", if apart { " " } else { "" }))?;
        before = Some(argument);
    }
    if separated == Separated::Always {
        text.add(format_args!("\n"))?;
    }
    Ok(GoValue::String(text.into_text().into()))
}

/// The library's own, which can only be called from a template, after its largest possible result has been judged.
fn printf(budget: &Budget, arguments: &[GoValue]) -> Result<GoValue> {
    let Some(GoValue::String(format)) = arguments.first() else {
        return Err(GoError::Exec("printf: the first argument must be a format text".to_owned()));
    };
    let mut longest = 0;
    for argument in arguments.iter().skip(1) {
        let length = budget.print(argument)?.len();
        longest = longest.max(length);
    }
    let verbs = format.matches('%').count() + arguments.len();
    let of_a_verb = width(format) + (longest + 16).saturating_mul(LONGEST_ESCAPE);
    if format.len().saturating_add(verbs.saturating_mul(of_a_verb)) > MAXIMUM_HELD_BYTES {
        budget.hold(MAXIMUM_HELD_BYTES + 1)?;
    }
    let places: String = (0..arguments.len()).map(|place| format!(" (index . {place})")).collect();
    let template = gotmpl::Template::new("").parse(&format!("{{{{ printf{places} }}}}"))?;
    let mut text = budget.text();
    let written = template.execute_fmt(&mut text, &GoValue::List(arguments.into()));
    written.map_err(|error| budget.exhausted().map_or(error, Exhausted::into))?;
    Ok(GoValue::String(text.into_text().into()))
}

/// The widest that a verb of the format can be asked to be.
fn width(format: &str) -> usize {
    if format.contains('*') {
        return MAXIMUM_WIDTH;
    }
    let numbers = format.split(|character: char| !character.is_ascii_digit()).filter(|digits| !digits.is_empty());
    numbers.map(|digits| digits.parse().unwrap_or(MAXIMUM_WIDTH).min(MAXIMUM_WIDTH)).max().unwrap_or_default()
}

fn slice(budget: &Budget, arguments: &[GoValue]) -> Result<GoValue> {
    let index = |value: &GoValue| match value {
        GoValue::Int(number) => Ok(*number),
        GoValue::Uint(number) if i64::try_from(*number).is_ok() => Ok(i64::try_from(*number).unwrap_or(i64::MAX)),
        other => Err(GoError::Exec(format!("slice: an index must be an integer, not {}", other.type_name()))),
    };
    let [of, indices @ ..] = arguments else {
        return Err(GoError::Exec("slice takes a value and up to three indices".to_owned()));
    };
    let indices = indices.iter().map(index).collect::<Result<Vec<i64>>>()?;
    let sliced = match (indices.as_slice(), of) {
        ([], _) => of.slice(None, None)?,
        ([from], _) => of.slice(Some(*from), None)?,
        ([from, to], _) => of.slice(Some(*from), Some(*to))?,
        ([from, to, capacity], GoValue::List(list)) => {
            let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
            if to > capacity || *capacity > length {
                return Err(GoError::Exec(format!(
                    "slice: index out of range [{from}:{to}:{capacity}] with length {length}"
                )));
            }
            of.slice(Some(*from), Some(*to))?
        }
        ([_, _, _], other) => {
            return Err(GoError::Exec(format!("slice: three indices can't slice a {}", other.type_name())));
        }
        _ => return Err(GoError::Exec(format!("slice takes up to three indices, not {}", indices.len()))),
    };
    budget.hold(size(&sliced))?;
    Ok(sliced)
}

fn escape(budget: &Budget, value: &GoValue, function: fn(&str) -> String) -> Result<GoValue> {
    let GoValue::String(text) = printed(budget, value)? else { return Ok(GoValue::Nil) };
    let mut escaped = budget.text();
    let mut rest: &str = &text;
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(rest.floor_char_boundary(PIECE_BYTES));
        escaped.add(format_args!("{}", function(piece)))?;
        rest = after;
    }
    Ok(GoValue::String(escaped.into_text().into()))
}

fn strings_join(budget: &Budget, arguments: &[GoValue]) -> Result<GoValue> {
    let [GoValue::List(list), separator] = arguments else {
        return Err(GoError::Exec("StringsJoin takes a list and a separator".to_owned()));
    };
    let mut text = budget.text();
    for (index, item) in list.iter().enumerate() {
        if index > 0 {
            text.add(format_args!("{separator}"))?;
        }
        text.add(format_args!("{item}"))?;
    }
    Ok(GoValue::String(text.into_text().into()))
}

/// As one word of a shell, whatever it holds.
fn quote(text: &str) -> std::result::Result<String, String> {
    if text.contains('\0') {
        return Err("a value with a NUL character can't be a word of a shell".to_owned());
    }
    Ok(format!("'{}'", text.replace('\'', "'\\''")))
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

/// The depth of documents bounds the recursion.
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
