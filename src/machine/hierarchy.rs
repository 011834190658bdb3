//! Hierarchical data in one document, as Choria's `tinyhiera` has it (<https://github.com/choria-io/tinyhiera>): data, and
//! what of it is different for some nodes. In: the document and what is known of the node. Out: the data for this node.
//!
//! ```json
//! {"hierarchy": {"order": ["role:{{ lookup('facts.role') }}", "default"], "merge": "deep"},
//!  "data": {"level": "info"}, "overrides": {"role:web": {"level": "debug"}}}
//! ```
//! `first` (also when nothing is said) lays the first override of the order that is there over the data, key by key;
//! `deep` lays all of them, and then objects are merged at every depth, lists joined, and all else is replaced. Between
//! `{{` and `}}` stands an expression, which can `lookup('path', default)` facts; a text that is only one such action
//! becomes the value itself, numbers and lists included.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::expr::{Scope, WatcherExpression, World};
use crate::node::Node;

/// Entries of an order that are looked at; more are refused.
const MAXIMUM_ORDER: usize = 256;
/// Actions in one document; more are refused.
const MAXIMUM_ACTIONS: usize = 10_000;
/// The resolved data may be this large, in bytes of text; joined lists and looked-up facts could make it larger.
const MAXIMUM_BYTES: usize = 4 * 1024 * 1024;

/// A document that can't be resolved.
#[derive(Debug, thiserror::Error)]
pub enum HierarchyError {
    #[error("it is not a hierarchy: {reason}")]
    Shape { reason: &'static str },
    #[error("unknown merge {merge:?} in its hierarchy; known are first, deep")]
    Merge { merge: String },
    #[error("{text:?} in it can't be evaluated: {reason}")]
    Action { text: String, reason: String },
    #[error("its {what} is larger than the limit of {limit}")]
    TooLarge { what: &'static str, limit: usize },
}

/// The data of the document for a node.
///
/// # Errors
/// When it is no such document, or one of its actions can't be evaluated.
pub fn resolve(document: &Value, node: &Node) -> Result<Value, HierarchyError> {
    let shape = |reason| HierarchyError::Shape { reason };
    let hierarchy = document.get("hierarchy").ok_or(shape("\"hierarchy\" is missing"))?;
    let order = hierarchy.get("order").and_then(Value::as_array).ok_or(shape("hierarchy.order is not a list"))?;
    if order.len() > MAXIMUM_ORDER {
        return Err(HierarchyError::TooLarge { what: "order", limit: MAXIMUM_ORDER });
    }
    let deep = match hierarchy.get("merge") {
        None | Some(Value::Null) => false,
        Some(Value::String(merge)) if merge.is_empty() || merge == "first" => false,
        Some(Value::String(merge)) if merge == "deep" => true,
        Some(merge) => return Err(HierarchyError::Merge { merge: merge.to_string().chars().take(40).collect() }),
    };
    let data = document.get("data").and_then(Value::as_object).ok_or(shape("\"data\" is not an object"))?;
    let none = Map::new();
    let overrides = match document.get("overrides") {
        None | Some(Value::Null) => &none,
        Some(overrides) => overrides.as_object().ok_or(shape("\"overrides\" is not an object"))?,
    };
    let facts = node.facts();
    let mut resolver = Resolver { world: World::new(node, &facts, BTreeMap::new()), actions: 0, bytes: 0 };
    let mut result = resolver.object(data)?;
    for entry in order {
        let entry = entry.as_str().ok_or(shape("an entry of hierarchy.order is not a text"))?;
        let name = match resolver.text(entry)? {
            Value::String(name) => name,
            other => other.to_string(),
        };
        let Some(layer) = overrides.get(&name) else { continue };
        let layer = resolver.object(layer.as_object().ok_or(shape("an override is not an object"))?)?;
        if deep {
            merge(&mut result, layer);
        } else {
            result.extend(layer);
            break;
        }
    }
    Ok(Value::Object(result))
}

/// The parser's depth limit (128) bounds the recursion.
fn merge(base: &mut Map<String, Value>, layer: Map<String, Value>) {
    for (key, value) in layer {
        match (base.get_mut(&key), value) {
            (Some(Value::Object(below)), Value::Object(above)) => merge(below, above),
            (Some(Value::Array(below)), Value::Array(above)) => below.extend(above),
            (_, value) => _ = base.insert(key, value),
        }
    }
}

struct Resolver<'a> {
    world: World<'a>,
    actions: usize,
    bytes: usize,
}

impl Resolver<'_> {
    fn object(&mut self, object: &Map<String, Value>) -> Result<Map<String, Value>, HierarchyError> {
        object.iter().map(|(key, value)| Ok((key.clone(), self.value(value)?))).collect()
    }

    fn value(&mut self, value: &Value) -> Result<Value, HierarchyError> {
        match value {
            Value::String(text) => self.text(text),
            Value::Array(items) => items.iter().map(|item| self.value(item)).collect(),
            Value::Object(object) => self.object(object).map(Value::Object),
            other => Ok(other.clone()),
        }
    }

    fn text(&mut self, text: &str) -> Result<Value, HierarchyError> {
        let mut rest = text;
        let mut output = String::new();
        while let Some((before, after)) = rest.split_once("{{") {
            let Some((action, after)) = after.split_once("}}") else { break };
            let value = self.action(action.trim())?;
            if before.is_empty() && after.is_empty() && output.is_empty() {
                return Ok(value);
            }
            output.push_str(before);
            match value {
                Value::Null => {}
                Value::String(text) => output.push_str(&text),
                other => output.push_str(&other.to_string()),
            }
            rest = after;
        }
        output.push_str(rest);
        self.count(output.len())?;
        Ok(Value::String(output))
    }

    fn count(&mut self, bytes: usize) -> Result<(), HierarchyError> {
        self.bytes = self.bytes.saturating_add(bytes);
        let limit = MAXIMUM_BYTES;
        if self.bytes > limit { Err(HierarchyError::TooLarge { what: "text", limit }) } else { Ok(()) }
    }

    fn action(&mut self, action: &str) -> Result<Value, HierarchyError> {
        self.actions += 1;
        if self.actions > MAXIMUM_ACTIONS {
            return Err(HierarchyError::TooLarge { what: "number of actions", limit: MAXIMUM_ACTIONS });
        }
        let expression = WatcherExpression::parse_in(action, &Scope::HIERARCHY);
        let value = expression.and_then(|expression| expression.json(&self.world)).map_err(|error| {
            HierarchyError::Action { text: action.chars().take(80).collect(), reason: error.to_string() }
        })?;
        self.count(value.to_string().len())?;
        Ok(value)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::names::Identity;

    fn resolved(document: &Value) -> Result<Value, String> {
        let facts = json!({"role": "web", "env": "prod", "port": 8080, "net": {"fqdn": "web1"}, "tags": ["a"]});
        let node = Node::new(Identity::new("web1.example.net").unwrap(), facts, Arc::from([]));
        resolve(document, &node).map_err(|error| error.to_string())
    }

    fn document(merge: &Value, order: &Value) -> Value {
        json!({
            "hierarchy": {"order": order, "merge": merge},
            "data": {"level": "info", "packages": ["ca"], "web": {"port": 80, "tls": false}},
            "overrides": {
                "env:prod": {"level": "warn", "packages": ["prod"]},
                "role:web": {"packages": ["nginx"], "web": {"tls": true}},
                "host:web1": {"level": "trace"},
            },
        })
    }

    #[test]
    fn what_all_lookups_of_a_document_look_at_is_bounded() {
        // A few bytes of facts, of which each look makes millions; whoever may write the key wrote this.
        let path = ["[@this,@this]"; 13].join("|");
        let data: Map<String, Value> =
            (0..9_000).map(|number| (number.to_string(), json!(format!("{{{{ lookup('{path}|#') }}}}")))).collect();
        let error = resolved(&json!({"hierarchy": {"order": []}, "data": data})).unwrap_err();
        assert!(error.contains("its lookups look at more than 268435456 bytes together"), "{error}");
    }

    #[test]
    fn first_takes_the_first_override_that_is_there_key_by_key() {
        let order = json!(["host:none", "role:{{ lookup('facts.role') }}", "env:{{ lookup('facts.env') }}"]);
        let expected = json!({"level": "info", "packages": ["nginx"], "web": {"tls": true}});
        for merge in [json!("first"), json!(""), json!(null)] {
            assert_eq!(resolved(&document(&merge, &order)).unwrap(), expected);
        }
    }

    #[test]
    fn deep_merges_all_of_them_in_order() {
        let order =
            json!(["env:{{ lookup('env') }}", "role:{{lookup('facts.role')}}", "host:{{ lookup('net.fqdn') }}"]);
        let expected = json!({"level": "trace", "packages": ["ca", "prod", "nginx"], "web": {"port": 80, "tls": true}});
        assert_eq!(resolved(&document(&json!("deep"), &order)).unwrap(), expected);
    }

    #[test]
    fn values_are_looked_up_with_their_types() {
        let data = json!({
            "port": "{{ lookup('facts.port') }}", "url": "http://{{ lookup('net.fqdn') }}:{{ lookup('port') + 1 }}/",
            "tags": "{{ lookup('tags') }}", "no": "{{ lookup('nope', 5) }}", "gone": "x{{ lookup('nope') }}",
            "upper": ["{{ upper(lookup('role')) }}"], "open": "{{ not closed", "me": "{{ identity }}",
        });
        let resolved = resolved(&json!({"hierarchy": {"order": []}, "data": data})).unwrap();
        let expected = json!({
            "port": 8080, "url": "http://web1:8081/", "tags": ["a"], "no": 5, "gone": "x", "upper": ["WEB"],
            "open": "{{ not closed", "me": "web1.example.net",
        });
        assert_eq!(resolved, expected);
    }

    #[test]
    fn what_is_no_hierarchy_is_refused_with_the_reason() {
        let cases = [
            (json!({"data": {}}), "it is not a hierarchy: \"hierarchy\" is missing"),
            (json!([]), "it is not a hierarchy: \"hierarchy\" is missing"),
            (json!({"hierarchy": {"order": 1}, "data": {}}), "it is not a hierarchy: hierarchy.order is not a list"),
            (json!({"hierarchy": {"order": []}}), "it is not a hierarchy: \"data\" is not an object"),
            (
                json!({"hierarchy": {"order": [], "merge": "hash"}, "data": {}}),
                "unknown merge \"\\\"hash\\\"\" in its hierarchy; known are first, deep",
            ),
            (
                json!({"hierarchy": {"order": ["{{ fact('x') }}"]}, "data": {}}),
                "\"fact('x')\" in it can't be evaluated: at column 1: unknown function \"fact\"; known are lookup, \
                 len, lower, upper, trim, hasPrefix, hasSuffix",
            ),
        ];
        for (document, message) in cases {
            assert_eq!(resolved(&document).unwrap_err(), message);
        }
        let many = vec!["{{ lookup('role') }}"; MAXIMUM_ACTIONS + 1];
        let error = resolved(&json!({"hierarchy": {"order": []}, "data": {"many": many}})).unwrap_err();
        assert!(error.contains("number of actions"), "{error}");
    }
}
