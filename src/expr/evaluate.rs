//! Runs a checked tree on a node. In: tree, node, facts and data. Out: a value, or the problem with its place; every function call
//! that was made, in order. `&&`, `||`, `??` and `?:` evaluate only the side that counts.

use serde_json::Value as Json;

use super::error::Problem;
use super::functions::Function;
use super::lexer::{Refused, shorten};
use super::pattern::Pattern;
use super::tree::{Absent, Binary, Part, Tree, Unary};
use super::value::{Budget, Value};
use super::{Call, World};
use crate::node::Node;

pub(super) struct Evaluator<'a> {
    world: &'a World<'a>,
    budget: Budget,
    calls: Vec<Call>,
}

/// Facts or data that are looked into where they are.
enum Found<'a> {
    Json(&'a Json),
    /// All data.
    Items,
    /// There is no such key.
    Nil,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(world: &'a World<'a>) -> Self {
        Self { world, budget: Budget::default(), calls: Vec::new() }
    }

    pub(super) fn into_calls(self) -> Vec<Call> {
        self.calls
    }

    /// What a variable or a chain of members of one stands for, without a copy of the whole; `None` for all else.
    fn find(&mut self, tree: &Tree) -> Result<Option<Found<'a>>, Refused> {
        match &tree.part {
            Part::Variable(name) => Ok(match name.as_str() {
                "facts" => {
                    let facts = self.world.facts.usable().map_err(|error| (tree.offset, Problem::Facts(error)))?;
                    Some(Found::Json(facts))
                }
                "data" => Some(Found::Items),
                _ => None,
            }),
            Part::Index { of, index, absent } => {
                let Some(found) = self.find(of)? else { return Ok(None) };
                if let (Found::Nil | Found::Json(Json::Null), Absent::IsNil) = (&found, absent) {
                    return Ok(Some(Found::Nil));
                }
                let index = self.value(index)?;
                let at = |problem| (tree.offset, problem);
                match (&found, &index) {
                    (Found::Items, Value::Text(key)) => {
                        Ok(Some(self.world.data.get(key.as_str()).map_or(Found::Nil, |value| Found::Json(value))))
                    }
                    (Found::Json(Json::Object(map)), Value::Text(key)) => {
                        Ok(Some(map.get(key).map_or(Found::Nil, Found::Json)))
                    }
                    (Found::Json(Json::Array(items)), Value::Integer(position)) => {
                        let item = item(items, *position).map_err(at)?;
                        Ok(Some(Found::Json(item)))
                    }
                    _ => {
                        let of = self.copied(&found).map_err(at)?;
                        member(&of, &index).map_err(at).map(|_| None)
                    }
                }
            }
            _ => Ok(None),
        }
    }

    fn copied(&mut self, found: &Found<'_>) -> Result<Value, Problem> {
        match found {
            Found::Nil => Ok(Value::Nil),
            Found::Json(json) => self.budget.copy(json),
            Found::Items => {
                let items = self.world.data.iter();
                let items = items.map(|(name, value)| Ok(((*name).to_owned(), self.budget.copy(value)?)));
                items.collect::<Result<_, _>>().map(Value::Map)
            }
        }
    }

    pub(super) fn value(&mut self, tree: &Tree) -> Result<Value, Refused> {
        match &tree.part {
            Part::Literal(value) => Ok(value.clone()),
            Part::Variable(name) if name == "identity" => Ok(Value::Text(self.world.node.identity.to_string())),
            // The parser admits only the scope's variables.
            Part::Variable(name) => {
                if let Some(found) = self.find(tree)? {
                    return self.copied(&found).map_err(|problem| (tree.offset, problem));
                }
                let help = "it has no value here".to_owned();
                Err((tree.offset, Problem::UnknownName { name: shorten(name), help }))
            }
            Part::Array(items) => items.iter().map(|item| self.value(item)).collect::<Result<_, _>>().map(Value::Array),
            Part::Map(entries) => {
                let entries = entries.iter().map(|(key, value)| Ok((key.clone(), self.value(value)?)));
                entries.collect::<Result<_, _>>().map(Value::Map)
            }
            Part::Call { function, arguments, pattern } => {
                self.call(*function, arguments, pattern.as_ref(), tree.offset)
            }
            Part::Unary { operator, operand } => {
                let value = self.value(operand)?;
                unary(*operator, value).map_err(|problem| (tree.offset, problem))
            }
            Part::Binary { operator, left, right, pattern } => {
                self.binary(*operator, left, right, pattern.as_ref(), tree.offset)
            }
            Part::Conditional { condition, then, otherwise } => match self.value(condition)? {
                Value::Boolean(true) => self.value(then),
                Value::Boolean(false) => self.value(otherwise),
                value => Err((tree.offset, Problem::Operands { operator: "?:", operands: value.describe() })),
            },
            Part::Index { of, index, absent } => {
                if let Some(found) = self.find(tree)? {
                    return self.copied(&found).map_err(|problem| (tree.offset, problem));
                }
                let of = self.value(of)?;
                if of == Value::Nil && *absent == Absent::IsNil {
                    return Ok(Value::Nil);
                }
                let index = self.value(index)?;
                member(&of, &index).map_err(|problem| (tree.offset, problem))
            }
        }
    }

    fn binary(
        &mut self,
        operator: Binary,
        left: &Tree,
        right: &Tree,
        pattern: Option<&Pattern>,
        offset: usize,
    ) -> Result<Value, Refused> {
        let first = self.value(left)?;
        match (operator, &first) {
            (Binary::Coalesce, Value::Nil) => return self.value(right),
            (Binary::And, Value::Boolean(false)) | (Binary::Or, Value::Boolean(true)) | (Binary::Coalesce, _) => {
                return Ok(first);
            }
            _ => {}
        }
        let second = self.value(right)?;
        apply(operator, &first, &second, pattern).map_err(|problem| (offset, problem))
    }

    fn call(
        &mut self,
        function: Function,
        arguments: &[Tree],
        pattern: Option<&Pattern>,
        offset: usize,
    ) -> Result<Value, Refused> {
        let arguments = arguments.iter().map(|argument| self.value(argument)).collect::<Result<Vec<_>, _>>()?;
        let list: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let call = format!("{}({})", function.name(), list.join(", "));
        let result = match (function, arguments.as_slice()) {
            (Function::GetFact | Function::Lookup, [Value::Text(path), default @ ..]) => {
                self.look_up(function, path, default.first())
            }
            (function, arguments) => run(function, arguments, pattern, self.world.node),
        };
        let returned = match &result {
            Ok(value) => value.to_string(),
            Err(problem) => format!("error: {problem}"),
        };
        self.calls.push(Call { call, returned });
        result.map_err(|problem| (offset, problem))
    }

    fn look_up(&mut self, function: Function, path: &str, default: Option<&Value>) -> Result<Value, Problem> {
        let path = if function == Function::Lookup { path.strip_prefix("facts.").unwrap_or(path) } else { path };
        match self.world.fact(path)? {
            None | Some(Json::Null) => Ok(default.cloned().unwrap_or(Value::Nil)),
            Some(found) => self.budget.copy(&found),
        }
    }
}

/// An item by its place, counted from the end when it is negative.
fn item<T>(items: &[T], position: i64) -> Result<&T, Problem> {
    let count = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let position = if position < 0 { position.saturating_add(count) } else { position };
    let item = usize::try_from(position).ok().and_then(|position| items.get(position));
    item.ok_or(Problem::OutOfRange { operator: "[]" })
}

fn run(function: Function, arguments: &[Value], pattern: Option<&Pattern>, node: &Node) -> Result<Value, Problem> {
    for argument in arguments {
        function.check_argument(argument)?;
    }
    let probed = |subject: &str, result: std::io::Result<bool>| {
        result
            .map(Value::Boolean)
            .map_err(|error| Problem::Probe { subject: shorten(subject), reason: error.to_string() })
    };
    match (function, arguments) {
        (Function::Identity, [Value::Text(text)]) => {
            let matched = match pattern {
                Some(pattern) => pattern.is_match(node.identity.as_str()),
                None => Pattern::compile(text)?.is_match(node.identity.as_str()),
            };
            Ok(Value::Boolean(matched))
        }
        (Function::HasFile, [Value::Text(path)]) => probed(path, node.has_file(path.as_ref())),
        (Function::HasDirectory, [Value::Text(path)]) => probed(path, node.has_directory(path.as_ref())),
        (Function::HasCommand, [Value::Text(name)]) => probed(name, node.has_command(name)),
        (Function::Len, [Value::Text(text)]) => Ok(length(text.chars().count())),
        (Function::Len, [Value::Array(items)]) => Ok(length(items.len())),
        (Function::Len, [Value::Map(entries)]) => Ok(length(entries.len())),
        (Function::Lower, [Value::Text(text)]) => Ok(Value::Text(text.to_lowercase())),
        (Function::Upper, [Value::Text(text)]) => Ok(Value::Text(text.to_uppercase())),
        (Function::Trim, [Value::Text(text)]) => Ok(Value::Text(text.trim().to_owned())),
        (Function::HasPrefix, [Value::Text(text), Value::Text(prefix)]) => {
            Ok(Value::Boolean(text.starts_with(prefix.as_str())))
        }
        (Function::HasSuffix, [Value::Text(text), Value::Text(suffix)]) => {
            Ok(Value::Boolean(text.ends_with(suffix.as_str())))
        }
        // Count and types were checked by the parser and above; a gap there is an error, not an answer.
        _ => {
            let (_, expected) = function.signature();
            let found = arguments.iter().map(Value::describe).collect::<Vec<_>>().join(" and ");
            Err(Problem::Arguments { function: function.name(), expected, found })
        }
    }
}

fn length(count: usize) -> Value {
    Value::Integer(i64::try_from(count).unwrap_or(i64::MAX))
}

fn unary(operator: Unary, value: Value) -> Result<Value, Problem> {
    match (operator, value) {
        (Unary::Not, Value::Boolean(value)) => Ok(Value::Boolean(!value)),
        (Unary::Minus, Value::Integer(value)) => {
            value.checked_neg().map(Value::Integer).ok_or(Problem::OutOfRange { operator: "-" })
        }
        (Unary::Minus, Value::Float(value)) => Ok(Value::Float(-value)),
        (Unary::Plus, value @ (Value::Integer(_) | Value::Float(_))) => Ok(value),
        (operator, value) => Err(Problem::Operands { operator: operator.sign(), operands: value.describe() }),
    }
}

fn member(of: &Value, index: &Value) -> Result<Value, Problem> {
    match (of, index) {
        (Value::Map(_), Value::Text(key)) => Ok(of.member(key).cloned().unwrap_or(Value::Nil)),
        (Value::Array(items), Value::Integer(position)) => item(items, *position).cloned(),
        _ => {
            let operands = format!("{} and {}", of.describe(), index.describe());
            Err(Problem::Operands { operator: "[]", operands })
        }
    }
}

fn apply(operator: Binary, left: &Value, right: &Value, pattern: Option<&Pattern>) -> Result<Value, Problem> {
    let answer = match (operator, left, right) {
        // Short cuts were taken before: the left side let the right side decide.
        (Binary::And | Binary::Or, Value::Boolean(_), Value::Boolean(right)) => *right,
        (Binary::Equal, left, right) => left.equals(right),
        (Binary::NotEqual, left, right) => !left.equals(right),
        (Binary::In, left, Value::Array(items)) => items.iter().any(|item| item.equals(left)),
        (Binary::In, Value::Text(key), map @ Value::Map(_)) => map.member(key).is_some(),
        (Binary::Contains, Value::Text(left), Value::Text(right)) => left.contains(right.as_str()),
        (Binary::StartsWith, Value::Text(left), Value::Text(right)) => left.starts_with(right.as_str()),
        (Binary::EndsWith, Value::Text(left), Value::Text(right)) => left.ends_with(right.as_str()),
        (Binary::Matches, Value::Text(left), Value::Text(right)) => match pattern {
            Some(pattern) => pattern.is_match(left),
            None => Pattern::compile(right)?.is_match(left),
        },
        (operator, Value::Text(left), Value::Text(right)) if operator.is_ordering() => {
            ordered(operator, left.partial_cmp(right))
        }
        (Binary::Add, Value::Text(left), Value::Text(right)) => return Ok(Value::Text(format!("{left}{right}"))),
        (operator, Value::Integer(left), Value::Integer(right)) => return integers(operator, *left, *right),
        (operator, left, right) => match (number(left), number(right)) {
            (Some(left), Some(right)) => return floats(operator, left, right),
            _ => {
                let operands = format!("{} and {}", left.describe(), right.describe());
                return Err(Problem::Operands { operator: operator.sign(), operands });
            }
        },
    };
    Ok(Value::Boolean(answer))
}

fn ordered(operator: Binary, ordering: Option<std::cmp::Ordering>) -> bool {
    ordering.is_some_and(|ordering| match operator {
        Binary::Less => ordering.is_lt(),
        Binary::LessOrEqual => ordering.is_le(),
        Binary::Greater => ordering.is_gt(),
        _ => ordering.is_ge(),
    })
}

#[expect(clippy::cast_precision_loss, reason = "the language computes mixed numbers as floats")]
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Integer(value) => Some(*value as f64),
        Value::Float(value) => Some(*value),
        _ => None,
    }
}

#[expect(clippy::cast_precision_loss, reason = "the language divides and raises integers as floats")]
fn integers(operator: Binary, left: i64, right: i64) -> Result<Value, Problem> {
    let exact = match operator {
        Binary::Add => left.checked_add(right),
        Binary::Subtract => left.checked_sub(right),
        Binary::Multiply => left.checked_mul(right),
        Binary::Remainder => left.checked_rem(right),
        operator if operator.is_ordering() => return Ok(Value::Boolean(ordered(operator, Some(left.cmp(&right))))),
        operator => return floats(operator, left as f64, right as f64),
    };
    exact.map(Value::Integer).ok_or(Problem::OutOfRange { operator: operator.sign() })
}

fn floats(operator: Binary, left: f64, right: f64) -> Result<Value, Problem> {
    let result = match operator {
        Binary::Add => left + right,
        Binary::Subtract => left - right,
        Binary::Multiply => left * right,
        Binary::Divide => left / right,
        Binary::Power => left.powf(right),
        operator if operator.is_ordering() => return Ok(Value::Boolean(ordered(operator, left.partial_cmp(&right)))),
        operator => {
            let operands = format!("the numbers {left:?} and {right:?}");
            return Err(Problem::Operands { operator: operator.sign(), operands });
        }
    };
    // Infinity and "not a number" compare in ways nobody means; the machine is then held, not removed.
    if result.is_finite() { Ok(Value::Float(result)) } else { Err(Problem::OutOfRange { operator: operator.sign() }) }
}
