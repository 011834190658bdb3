//! What a switch tells of itself: its position by the state of its machine, in events and on the panel. That the HTTP
//! listener turns it is in `http_listener`.

#![cfg(test)]

mod engine;

use engine::{Lab, watcher};
use machines::machine::panel::{Position, Shown};
use serde_json::json;

fn text(properties: &str) -> String {
    format!(
        "name: lamp\nversion: 1.0.0\ninitial_state: DARK\ntransitions:\n  - {{name: brighten, from: [DARK], destination: \
         BRIGHT}}\n  - {{name: darken, from: [BRIGHT, DIM], destination: DARK}}\n  - {{name: dim, from: [BRIGHT], \
         destination: DIM}}\nwatchers:\n  - name: switch\n    type: httpswitch\n    success_transition: brighten\n    \
         fail_transition: darken\n    properties:\n{properties}"
    )
}

const GOOD: &str =
    "      on_when: [BRIGHT]\n      off_when: [DARK]\n      disable_when: [DIM]\n      annotations: {room: hall}\n";

#[tokio::test]
async fn its_position_follows_the_state_and_every_change_is_announced() {
    let lab = Lab::new().await;
    let mut events = lab.events();
    let handle = lab.spawn_real(&text(GOOD));
    engine::settle().await;
    let mut told = || {
        let events = events.drain().into_iter().filter(|event| event["data"]["type"] == "httpswitch");
        events
            .map(|event| (event["data"]["is_on"].clone(), event["data"]["previous_outcome"].clone()))
            .collect::<Vec<_>>()
    };
    assert_eq!(told(), [(json!(false), json!("off"))]);
    handle.remote.transition("brighten").await.unwrap();
    engine::settle().await;
    assert_eq!(told(), [(json!(true), json!("on"))]);
    assert_eq!(watcher(&handle.remote.status(), "switch").outcome, "on");
    handle.remote.transition("dim").await.unwrap();
    engine::settle().await;
    assert_eq!(told(), [(json!(true), json!("on"))], "a state of neither list leaves it as it was");
    let shown = lab.services.panel.all();
    let [(_, Shown::Switch(switch))] = shown.as_slice() else { panic!("{shown:?}") };
    assert_eq!(switch.position(), Position::On);
    assert!(switch.is_disabled_in(&handle.remote.status().state));
    assert_eq!(switch.annotations["room"], "hall");
    handle.stop().await;
    assert!(lab.services.panel.all().is_empty());
}

#[test]
fn states_that_do_not_exist_or_contradict_each_other_are_refused() {
    let refusal = |properties: &str| engine::build(&text(properties)).map(drop).unwrap_err();
    let message = refusal("      on_when: [BRIHGT]\n");
    assert_eq!(
        message,
        "machine.yaml:14:17: httpswitch watcher \"switch\": on_when: state \"BRIHGT\" is not defined (did you mean \
         \"BRIGHT\"?)"
    );
    for key in ["off_when", "disable_when"] {
        assert!(refusal(&format!("      {key}: [NOPE]\n")).contains(&format!("{key}: state \"NOPE\" is not defined")));
    }
    let message = refusal("      on_when: [DARK]\n      off_when: [DARK]\n");
    assert!(message.contains("state \"DARK\" is in on_when and in off_when"), "{message}");
}
