//! The `plugins` watcher and its envelope: the newer form is carried out as `machines` is, and neither form is ever taken
//! for the other, whoever asks for it.

#![cfg(test)]

mod engine;
mod support;
mod sync_world;

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use engine::{Lab, Probe, Step, watcher};
use machines::machine::data::{Change, Item};
use machines::machine::runner::Handle;
use machines::machine::watcher::{Report, Services, Watcher};
use machines::spec::{Form, Limits, SecretKey, SpecificationError, Trust, pack_form, verify_form};
use machines::sync::{Purge, Reconciler, Removals};
use serde_json::json;
use support::eventually;
use sync_world::{World, with_match};

fn envelope(form: Form, list: &[serde_json::Value], key: Option<&SecretKey>) -> String {
    pack_form(form, &serde_json::to_vec(list).unwrap(), key).unwrap().envelope
}

fn judge(form: Form, envelope: &str, key: &SecretKey) -> Result<usize, SpecificationError> {
    let trust = Trust::Keys(vec![key.public_key()]);
    verify_form(form, envelope.as_bytes(), &trust, &Limits::default()).map(|list| list.machines().len())
}

/// A machine whose watcher of a kind manages the node from what stands in its data.
fn manage(lab: &Lab, kind: &str, envelope: &str) -> Handle {
    let text = format!(
        "name: keeper\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: updated, from: [A, B], destination: A}}\n  \
         - {{name: failed, from: [A], destination: B}}\nwatchers:\n  - name: it\n    type: {kind}\n    success_transition: \
         updated\n    fail_transition: failed\n    properties: {{data_item: spec, purge_unknown: true, \
         machine_manage_interval: 1h}}\n  - {{name: writer, type: expression, properties: {{fail_when: 'false'}}}}\n"
    );
    let item = Item::from_bytes(envelope.to_owned().into()).unwrap();
    let writer = Probe::new(move |_| {
        let changes = vec![Change::Set("spec".to_owned(), item.clone())];
        Step::Report(Report { changes, ..Report::new("good") })
    });
    let mut watchers = engine::build(&text).unwrap();
    watchers[1] = (engine::PROBE, writer as Arc<dyn Watcher>);
    lab.spawn_with(&text, watchers)
}

async fn lab(world: &World, node: &Arc<Reconciler>) -> Lab {
    let mut lab = Lab::new().await;
    let (sync, trust) = (Some(Arc::clone(node)), machines::spec::TrustInForce::new(world.trust()));
    lab.services = Arc::new(Services { sync, trust, ..Services::clone(&lab.services) });
    lab
}

#[tokio::test]
async fn carries_out_its_own_form_and_refuses_the_other_one() {
    let world = World::new();
    let node = Arc::new(world.open());
    let lab = lab(&world, &node).await;
    let list = [world.publish("one", "1.0.0"), with_match(world.publish("two", "1.0.0"), "get_fact('role') == 'db'")];
    let mut events = lab.events();
    let handle = manage(&lab, "plugins", &envelope(Form::Plugins, &list, Some(&world.key)));
    eventually("the installation", || async { world.machine("one").exists() }).await;
    let mut told = Vec::new();
    eventually("the event", || {
        told.extend(events.drain());
        let found = told
            .iter()
            .any(|event| event["data"]["plugins"].as_array().is_some_and(|names| names.contains(&json!("one"))));
        async move { found }
    })
    .await;
    assert!(!world.machine("two").exists(), "its match says no");
    handle.stop().await;
    // A machines watcher takes neither this envelope nor what was accepted from it.
    for (kind, form, reason) in [
        ("machines", Form::Plugins, "this is an envelope of the \"plugins\" form"),
        ("plugins", Form::Machines, "this is an envelope of the \"machines\" form"),
    ] {
        // Or the watcher would begin with what the one before was given.
        std::fs::remove_dir_all(lab.path("data")).unwrap();
        let only = [world.publish(&format!("by-{kind}"), "1.0.0")];
        let handle = manage(&lab, kind, &envelope(form, &only, Some(&world.key)));
        eventually("the refusal", || async {
            let status = watcher(&handle.remote.status(), "it");
            status.outcome == "error" && status.last_error.unwrap_or_default().contains(reason)
        })
        .await;
        assert!(!world.machine(&format!("by-{kind}")).exists());
        assert!(world.machine("one").exists(), "a refused envelope removes nothing");
        handle.stop().await;
    }
}

#[tokio::test]
async fn a_match_that_asks_for_facts_that_can_not_be_used_holds_its_machine() {
    let world = World::new();
    let (node, plugins) = world.open_with_node();
    let plugins = plugins.of_form(Form::Plugins);
    let list = [
        with_match(world.publish("one", "1.0.0"), "get_fact('role') == 'web'"),
        with_match(world.publish("two", "1.0.0"), "get_fact('role') != 'web'"),
    ];
    let list = envelope(Form::Plugins, &list, Some(&world.key));
    let trust = world.trust();
    let pass = || plugins.reconcile(list.as_bytes(), &trust, Purge::Unknown, Removals::Allowed);
    node.set_facts(json!({"role": "web"}));
    assert_eq!(pass().await.complaints(), Vec::<String>::new());
    assert!(world.machine("one").exists() && !world.machine("two").exists());
    node.set_facts_unusable("facts file /etc/facts.json was there and is gone".to_owned());
    let complaints = pass().await.complaints().join("; ");
    assert!(
        complaints.contains("the facts can't be used: facts file /etc/facts.json was there and is gone"),
        "{complaints}"
    );
    assert!(world.machine("one").exists(), "doubt is not no");
    assert!(!world.machine("two").exists(), "nor is it yes");
    node.set_facts(json!({"role": "db"}));
    assert_eq!(pass().await.complaints(), Vec::<String>::new());
    assert!(!world.machine("one").exists() && world.machine("two").exists());
}

#[tokio::test]
async fn what_was_accepted_in_one_form_is_not_followed_in_the_other() {
    let world = World::new();
    let node = world.open();
    let list = [world.publish("one", "1.0.0")];
    let plugins = envelope(Form::Plugins, &list, Some(&world.key));
    let trust = world.trust();
    let pass =
        node.of_form(Form::Plugins).reconcile(plugins.as_bytes(), &trust, Purge::Unknown, Removals::Guarded).await;
    assert_eq!(pass.complaints(), Vec::<String>::new());
    let pass = node.resume(&trust, Purge::Unknown).await.unwrap();
    let complaints = pass.complaints().join("; ");
    assert!(complaints.contains("this is an envelope of the \"plugins\" form"), "{complaints}");
    assert!(world.machine("one").exists());
    let pass = node.of_form(Form::Plugins).resume(&trust, Purge::Unknown).await.unwrap();
    assert_eq!(pass.complaints(), Vec::<String>::new());
}

#[test]
fn the_signature_covers_the_text_and_holds_for_nothing_else() {
    let key = SecretKey::generate().unwrap();
    let other = SecretKey::generate().unwrap();
    let payload = b"[]";
    let text = STANDARD.encode(payload);
    let sign = |key: &SecretKey, bytes: &[u8]| hex::encode(key.sign(bytes));
    let plugins = |signature: &str| format!("{{\"plugins\":\"{text}\",\"signature\":\"{signature}\"}}");
    let machines = |signature: &str| format!("{{\"machines\":\"{text}\",\"signature\":\"{signature}\"}}");
    let (over_text, over_bytes) = (sign(&key, text.as_bytes()), sign(&key, payload));
    assert_eq!(judge(Form::Plugins, &plugins(&over_text), &key), Ok(0));
    assert_eq!(judge(Form::Machines, &machines(&over_bytes), &key), Ok(0));
    assert_eq!(judge(Form::Plugins, &plugins(&over_bytes), &key), Err(SpecificationError::SignatureCoversBytes));
    assert_eq!(judge(Form::Machines, &machines(&over_text), &key), Err(SpecificationError::SignatureCoversText));
    assert_eq!(judge(Form::Plugins, &machines(&over_text), &key), Err(SpecificationError::MachinesForm));
    assert_eq!(judge(Form::Machines, &plugins(&over_bytes), &key), Err(SpecificationError::PluginsForm));
    let by_another = sign(&other, text.as_bytes());
    assert!(matches!(
        judge(Form::Plugins, &plugins(&by_another), &key),
        Err(SpecificationError::SignatureInvalid { .. })
    ));
    let unsigned = format!("{{\"plugins\":\"{text}\"}}");
    assert_eq!(judge(Form::Plugins, &unsigned, &key), Err(SpecificationError::Unsigned));
    assert_eq!(judge(Form::Plugins, "{}", &key), Err(SpecificationError::NoPlugins));
}

#[test]
fn a_signed_message_of_one_form_can_not_be_dressed_up_as_the_other() {
    let key = SecretKey::generate().unwrap();
    let text = STANDARD.encode(b"[]");
    let over_text = hex::encode(key.sign(text.as_bytes()));
    // Wrapped once more, the signed text is what the decoded bytes are: the signature holds, but it is no list.
    let wrapped = format!("{{\"machines\":\"{}\",\"signature\":\"{over_text}\"}}", STANDARD.encode(&text));
    assert!(matches!(judge(Form::Machines, &wrapped, &key), Err(SpecificationError::Payload { .. })));
    // The other way round the signed list would have to be base64, which has no brackets.
    let over_bytes = hex::encode(key.sign(b"[]"));
    let bare = format!("{{\"plugins\":\"[]\",\"signature\":\"{over_bytes}\"}}");
    let refused = judge(Form::Plugins, &bare, &key).unwrap_err().to_string();
    assert!(refused.starts_with("\"plugins\" is not standard base64"), "{refused}");
    for form in [Form::Machines, Form::Plugins] {
        for signature in [&over_text, &over_bytes] {
            let both = format!("{{\"machines\":\"{text}\",\"plugins\":\"{text}\",\"signature\":\"{signature}\"}}");
            assert_eq!(judge(form, &both, &key), Err(SpecificationError::BothForms));
        }
    }
    let twice = format!("{{\"plugins\":\"{text}\",\"plugins\":\"{text}\",\"signature\":\"{over_text}\"}}");
    assert!(judge(Form::Plugins, &twice, &key).unwrap_err().to_string().contains("appears twice"));
    let misspelt = format!("{{\"Plugins\":\"{text}\",\"signature\":\"{over_text}\"}}");
    assert!(judge(Form::Plugins, &misspelt, &key).unwrap_err().to_string().contains("must be written \"plugins\""));
}

#[test]
fn only_its_matches_can_ask_for_facts() {
    let world = World::new();
    let list = serde_json::to_vec(&[with_match(world.publish("one", "1.0.0"), "get_fact('a.b') == 1")]).unwrap();
    pack_form(Form::Plugins, &list, None).unwrap();
    let refused = pack_form(Form::Machines, &list, None).unwrap_err().to_string();
    assert!(refused.contains("unknown function \"get_fact\""), "{refused}");
}

#[test]
fn takes_the_properties_of_machines_and_the_newer_name_of_the_interval() {
    let text = |properties: &str| {
        format!(
            "name: keeper\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: a, from: [A], destination: A}}\n\
             watchers:\n  - name: it\n    type: plugins\n    properties:\n{properties}"
        )
    };
    engine::build(&text("      data_item: a\n      plugin_manage_interval: 5m\n")).unwrap();
    let cases = [
        ("      purge_unknown: true\n", "missing field `data_item`"),
        ("      data_item: ''\n", "data_item is empty"),
        ("      data_item: a\n      machine_manage_interval: 1ms\n", "machine_manage_interval must be at least 1s"),
        ("      data_item: a\n      public_key: xyz\n", "plugins watcher \"it\": "),
    ];
    for (properties, reason) in cases {
        let message = engine::build(&text(properties)).map(drop).unwrap_err();
        assert!(message.contains(reason), "{message}");
    }
}
