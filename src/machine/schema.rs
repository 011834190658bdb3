//! The JSON Schema (draft 2020-12) of machine.yaml, for editors. In: the table of keys and the kinds of watchers, each
//! with the schema that is derived from its properties' type. Out: one document that stands alone.

use serde_json::{Map, Value, json};

use crate::names::{LABEL_MAXIMUM_BYTES, MACHINE_NAME_MAXIMUM_BYTES};

use super::keys::{FOREIGN_STATE, Key, MACHINE, SUBSCRIPTION, TRANSITION, WATCHER};
use super::watcher::Kind;

/// The schema of a definition with watchers of these kinds.
pub fn of(kinds: &[Kind]) -> Value {
    let mut definitions = Map::from_iter([
        (
            "machine_name".to_owned(),
            json!({
                "type": "string",
                "pattern": format!("^[a-zA-Z][a-zA-Z0-9_-]{{0,{}}}$", MACHINE_NAME_MAXIMUM_BYTES - 1),
                "not": {"pattern": "^[tT][mM][pP]$|-[tT][eE][mM][pP]$"},
            }),
        ),
        ("version".to_owned(), json!({"type": "string", "pattern": "^[0-9]{1,10}\\.[0-9]{1,10}\\.[0-9]{1,10}$"})),
        (
            "label".to_owned(),
            json!({"type": "string", "pattern": "^[^\\s\\u0000-\\u001f]+$", "maxLength": LABEL_MAXIMUM_BYTES}),
        ),
        ("duration".to_owned(), crate::duration::schema(&mut schemars::SchemaGenerator::default()).to_value()),
        ("transition".to_owned(), object(TRANSITION)),
        ("subscription".to_owned(), object(SUBSCRIPTION)),
        ("foreign_state".to_owned(), object(FOREIGN_STATE)),
        ("watcher".to_owned(), watcher(kinds)),
    ]);
    for kind in kinds {
        definitions.insert(definition_of(kind), properties_of(kind));
    }
    let mut document = object(MACHINE);
    if let Some(document) = document.as_object_mut() {
        document.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
        document.insert("title".to_owned(), json!("machine.yaml"));
        document.insert("description".to_owned(), json!("A machine: a finite state machine and its watchers."));
        document.insert("$defs".to_owned(), Value::Object(definitions));
    }
    document
}

/// An object with the keys of a table and no others.
fn object(keys: &[Key]) -> Value {
    let property = |key: &Key| {
        let mut schema = (key.schema)();
        if let Some(schema) = schema.as_object_mut() {
            schema.insert("description".to_owned(), json!(key.meaning));
        }
        (key.name.to_owned(), schema)
    };
    let required: Vec<&str> = keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({
        "type": "object",
        "properties": keys.iter().map(property).collect::<Map<_, _>>(),
        "required": required,
        "additionalProperties": false,
    })
}

/// The watcher, whose `type` decides what its `properties` are.
fn watcher(kinds: &[Kind]) -> Value {
    let mut schema = object(WATCHER);
    let types: Vec<Value> = kinds.iter().map(|kind| json!({"const": kind.name, "description": kind.summary})).collect();
    let cases: Vec<Value> = kinds
        .iter()
        .map(|kind| {
            let mut then = json!({"properties": {"properties": {"$ref": format!("#/$defs/{}", definition_of(kind))}}});
            let needs = (kind.schema)().to_value();
            let needs = needs.get("required").and_then(Value::as_array).is_some_and(|keys| !keys.is_empty());
            if let (true, Some(then)) = (needs, then.as_object_mut()) {
                then.insert("required".to_owned(), json!(["properties"]));
            }
            json!({"if": {"properties": {"type": {"const": kind.name}}, "required": ["type"]}, "then": then})
        })
        .collect();
    if let Some(kind) = schema.pointer_mut("/properties/type").and_then(Value::as_object_mut) {
        kind.remove("type");
        kind.insert("oneOf".to_owned(), json!(types));
    }
    if let Some(schema) = schema.as_object_mut() {
        schema.insert("allOf".to_owned(), json!(cases));
    }
    schema
}

fn definition_of(kind: &Kind) -> String {
    format!("{}_properties", kind.name)
}

/// The schema of a kind's properties, made to stand inside the whole: its references lead into itself.
fn properties_of(kind: &Kind) -> Value {
    let mut schema = (kind.schema)().to_value();
    if let Some(schema) = schema.as_object_mut() {
        schema.remove("$schema");
        schema.insert("title".to_owned(), json!(format!("Properties of {} watchers", kind.name)));
        // Properties that are all optional may also be left empty.
        if !schema.contains_key("required") && schema.get("type") == Some(&json!("object")) {
            schema.insert("type".to_owned(), json!(["object", "null"]));
        }
    }
    lead_into(&mut schema, &format!("#/$defs/{}", definition_of(kind)));
    schema
}

/// The depth is that of a type's own nesting.
fn lead_into(schema: &mut Value, root: &str) {
    match schema {
        Value::Object(entries) => {
            for (key, value) in entries {
                match value {
                    Value::String(reference) if key == "$ref" => {
                        if let Some(rest) = reference.strip_prefix('#') {
                            *reference = format!("{root}{rest}");
                        }
                    }
                    other => lead_into(other, root),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(|item| lead_into(item, root)),
        _ => {}
    }
}
