//! Expressions over a machine's data and the node's facts. In: a text and a scope. Out: what it says of a [`World`], and,
//! for those who must know when to ask again, what it looks at.

use serde_json::Value as Json;

use super::error::{ExpressionError, Problem};
use super::evaluate::Evaluator;
use super::functions::{Function, Scope};
use super::tree::{Part, Tree};
use super::value::Value;
use super::{World, parser};
use crate::node::{escaped, split_first};

/// A parsed and checked expression.
#[derive(Debug)]
pub struct WatcherExpression {
    source: Box<str>,
    tree: Tree,
}

impl WatcherExpression {
    /// Reads and checks an expression in the scope of watchers.
    ///
    /// # Errors
    /// The first problem, with its place; a blank text is one.
    pub fn parse(source: &str) -> Result<Self, ExpressionError> {
        Self::parse_in(source, &Scope::WATCHER)
    }

    /// As [`Self::parse`], with the names of another scope.
    ///
    /// # Errors
    /// As there.
    pub fn parse_in(source: &str, scope: &Scope) -> Result<Self, ExpressionError> {
        let blank = || (0, Problem::Unexpected { expected: "an expression", found: "nothing".to_owned() });
        let parsed = parser::parse(source, scope).and_then(|tree| tree.ok_or_else(blank));
        let tree = parsed.map_err(|(offset, problem)| ExpressionError::new(source, offset, problem))?;
        Ok(Self { source: source.into(), tree })
    }

    /// The text as it was given.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Whether it is true.
    ///
    /// # Errors
    /// When it can't be evaluated, or is neither true nor false.
    pub fn is_true(&self, world: &World<'_>) -> Result<bool, ExpressionError> {
        match self.evaluate(world)? {
            Value::Boolean(answer) => Ok(answer),
            other => Err(ExpressionError::new(&self.source, 0, Problem::NotBoolean { value: other.to_string() })),
        }
    }

    /// What it gives, as JSON.
    ///
    /// # Errors
    /// When it can't be evaluated.
    pub fn json(&self, world: &World<'_>) -> Result<Json, ExpressionError> {
        Ok(to_json(self.evaluate(world)?))
    }

    fn evaluate(&self, world: &World<'_>) -> Result<Value, ExpressionError> {
        let result = Evaluator::new(world).value(&self.tree);
        result.map_err(|(offset, problem)| ExpressionError::new(&self.source, offset, problem))
    }

    /// GJSON paths into `{"facts": …, "data": …}` that it looks at, as far as they stand in it literally; just `data` or
    /// `facts` where which part it looks at is not known before.
    pub fn lookups(&self) -> Vec<String> {
        let mut paths = Vec::new();
        collect(&self.tree, &mut paths);
        paths.sort();
        paths.dedup();
        paths
    }

    /// The data items that it looks at, as far as they are known.
    pub fn items(&self) -> Vec<String> {
        let paths = self.lookups();
        let mut items: Vec<String> =
            paths.iter().filter_map(|path| path.strip_prefix("data.")).map(|path| split_first(path).0).collect();
        items.dedup();
        items
    }
}

/// The path that a variable or a chain of literal members of one is.
fn path(tree: &Tree) -> Option<String> {
    match &tree.part {
        Part::Variable(name) if name != "identity" => Some(name.clone()),
        Part::Index { of, index, .. } => match &index.part {
            Part::Literal(Value::Text(key)) => Some(format!("{}.{}", path(of)?, escaped(key))),
            Part::Literal(Value::Integer(position)) if *position >= 0 => Some(format!("{}.{position}", path(of)?)),
            _ => None,
        },
        _ => None,
    }
}

fn collect(tree: &Tree, paths: &mut Vec<String>) {
    if let Some(path) = path(tree) {
        paths.push(path);
        return;
    }
    match &tree.part {
        Part::Literal(_) | Part::Variable(_) => {}
        Part::Array(items) => items.iter().for_each(|item| collect(item, paths)),
        Part::Map(entries) => entries.iter().for_each(|(_, value)| collect(value, paths)),
        Part::Call { function, arguments, .. } => {
            if let (Function::GetFact, [Tree { part: Part::Literal(Value::Text(path)), .. }]) =
                (function, arguments.as_slice())
            {
                paths.push(format!("facts.{path}"));
            }
            arguments.iter().for_each(|argument| collect(argument, paths));
        }
        Part::Unary { operand, .. } => collect(operand, paths),
        Part::Binary { left, right, .. } => {
            collect(left, paths);
            collect(right, paths);
        }
        Part::Conditional { condition, then, otherwise } => {
            [condition, then, otherwise].into_iter().for_each(|part| collect(part, paths));
        }
        Part::Index { of, index, .. } => {
            collect(of, paths);
            collect(index, paths);
        }
    }
}

fn to_json(value: Value) -> Json {
    match value {
        Value::Nil => Json::Null,
        Value::Boolean(value) => value.into(),
        Value::Integer(value) => value.into(),
        Value::Float(value) => value.into(),
        Value::Text(text) => text.into(),
        Value::Array(items) => items.into_iter().map(to_json).collect(),
        Value::Map(entries) => Json::Object(entries.into_iter().map(|(key, value)| (key, to_json(value))).collect()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::names::Identity;
    use crate::node::Node;

    fn judge(source: &str, data: &Json) -> Result<bool, String> {
        let facts = json!({"os": {"id": "debian"}, "cpus": 2, "tags": ["a", "b"], "a.b": 1, "load": 0.5, "none": null});
        let node = Node::new(Identity::new("web1.example.net").unwrap(), facts, Arc::from([]));
        let facts = node.facts();
        let items = data.as_object().into_iter().flatten();
        let data: BTreeMap<&str, &Json> = items.map(|(name, value)| (name.as_str(), value)).collect();
        let expression = WatcherExpression::parse(source).map_err(|error| format!("parse: {error}"))?;
        expression.is_true(&World::new(&node, &facts, data)).map_err(|error| error.to_string())
    }

    #[test]
    fn looks_into_facts_and_data_where_they_are() {
        let data = json!({"n": 3, "deep": {"list": [{"x": 1}, {"x": 2}]}, "my key": "v"});
        for source in [
            "facts.os.id == 'debian' && facts['os']['id'] == \"debian\" && facts.tags[0] == 'a' && facts.tags[-1] == 'b'",
            "data.deep.list[1].x + data.n == 5 && data['my key'] == 'v' && len(data.deep.list) == 2",
            "get_fact('os.id') == 'debian' && get_fact('tags.#') == 2 && get_fact('a\\\\.b') == 1 && get_fact('x') == nil",
            "facts.nope == nil && facts.none == nil && facts?.nope?.deeper == nil && (facts.nope ?? 5) == 5",
            "'n' in data && 'x' not in data && facts.load * 2 == 1 && 'a' in facts.tags",
            "data == {n: 3, deep: {list: [{x: 1}, {x: 2}]}, 'my key': 'v'}",
            "identity startsWith 'web1' && [facts.cpus, data.n] == [2, 3]",
        ] {
            assert_eq!(judge(source, &data), Ok(true), "{source}");
        }
        for (source, message) in [
            ("facts.nope.deeper == 1", "at column 11: [] can't be applied to nil and the string \"deeper\""),
            ("facts.cpus.x == 1", "at column 11: [] can't be applied to the number 2 and the string \"x\""),
            ("facts.tags[2] == 'c'", "at column 11: the result of [] is out of range"),
            ("facts.tags.x == 'c'", "at column 11: [] can't be applied to an array and the string \"x\""),
            ("data[1] == 1", "at column 5: [] can't be applied to a map and the number 1"),
            ("fact.x == 1", "parse: at column 1: unknown name \"fact\"; did you mean \"facts\"?"),
            ("identity('x')", "parse: at column 1: unknown function \"identity\"; known are"),
        ] {
            let error = judge(source, &data).unwrap_err();
            assert!(error.starts_with(message), "{source}: {error}");
        }
    }

    #[test]
    fn takes_in_a_bounded_part_of_large_data() {
        let data = json!({"big": vec!["x".repeat(1_000); 5_000], "small": 1});
        assert_eq!(judge("len(data.big[7]) == 1000 && data.small == 1", &data), Ok(true));
        let terms = ["data.big"; 3].join(", ");
        let error = judge(&format!("[{terms}] == []"), &data).unwrap_err();
        assert!(error.contains("takes in more than 8388608 bytes of facts and data"), "{error}");
    }

    #[test]
    fn agrees_with_the_language_as_another_implementation_reads_it() {
        let data = json!({"a": 1, "b": "ab", "c": true, "d": 2.5});
        let mut context = expr::Context::default();
        context.insert("data", expr::eval("{a: 1, b: 'ab', c: true, d: 2.5}", &expr::Context::default()).unwrap());
        context.insert("identity", "web1.example.net");
        let atoms = ["data.a", "data.b", "data['a']", "data.c", "data.d", "identity", "1", "'ab'", "true", "2.5"];
        let operators = ["==", "!=", "<", ">", "+", "-", "*", "contains", "startsWith", "&&", "||"];
        let mut compared = 0;
        for left in atoms {
            for operator in operators {
                for right in atoms {
                    for tail in ["", " == 2", " == true"] {
                        let source = format!("({left} {operator} {right}){tail}");
                        let Ok(ours) = judge(&source, &data) else { continue };
                        let theirs = expr::eval(&source, &context).map(|value| value.as_bool());
                        assert!(matches!(theirs, Ok(Some(theirs)) if theirs == ours), "{source}: {ours}, {theirs:?}");
                        compared += 1;
                    }
                }
            }
        }
        assert!(compared > 300, "{compared}");
    }
}
