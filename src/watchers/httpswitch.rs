//! `httpswitch`: a switch on the daemon's HTTP listener. Turning it on asks for the success transition, turning it off for
//! the fail transition; whether it is on is told by the state of the machine. The listener turns it; checks only look.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::machine::panel::{Position, Shown, Switch};
use crate::machine::problem::Problem;
use crate::machine::watcher::{
    Background, BuildContext, Built, Cause, Check, Context, Fires, Kind, Report, Seen, Signal, Watcher, schema_of,
};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "httpswitch",
    summary: "is a switch on the HTTP listener, for example for Home Assistant",
    minimum_interval: Duration::from_secs(1),
    default_interval: None,
    outcomes: &["unknown", "off", "on"],
    build,
    example: "on_when: [BUSY]\noff_when: [IDLE]\ndisable_when: []\nannotations:\n  room: kitchen\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Properties {
    /// States in which the switch is off.
    #[serde(default)]
    off_when: Vec<String>,
    /// States in which the switch is on. In a state of neither list it is as it was turned last.
    #[serde(default)]
    on_when: Vec<String>,
    /// States in which nobody may turn it.
    #[serde(default)]
    disable_when: Vec<String>,
    /// Told in events and answers.
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

struct HttpSwitch {
    switch: Arc<Switch>,
}

fn build(context: &BuildContext<'_>) -> Built {
    let properties: Properties = context.properties()?;
    let fsm = context.machine.fsm();
    let known: Vec<&str> = fsm.states().iter().map(crate::names::Label::as_str).collect();
    let mut problems: Vec<Problem> = Vec::new();
    let lists = [
        ("on_when", &properties.on_when),
        ("off_when", &properties.off_when),
        ("disable_when", &properties.disable_when),
    ];
    for (key, states) in lists {
        for (index, state) in states.iter().enumerate().filter(|(_, state)| !known.contains(&state.as_str())) {
            let fault = context.fault(&format!("{key}/{index}"), format!("{key}: state {state:?} is not defined"));
            problems.push(fault.help(crate::suggest::did_you_mean(state, &known)));
        }
    }
    for state in properties.on_when.iter().filter(|state| properties.off_when.contains(state)) {
        problems.push(context.fault("off_when", format!("state {state:?} is in on_when and in off_when")));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let Properties { off_when, on_when, disable_when, annotations } = properties;
    let mut switch = Switch::new(on_when, off_when, disable_when);
    switch.on_event.clone_from(&context.watcher.success_transition);
    switch.off_event.clone_from(&context.watcher.fail_transition);
    switch.annotations = annotations;
    Ok(Arc::new(HttpSwitch { switch: Arc::new(switch) }))
}

#[async_trait]
impl Watcher for HttpSwitch {
    async fn check(&self, check: Check) -> Report {
        let outcome = self.switch.position_in(&check.state).word();
        let report = Report::new(outcome);
        let news = check.cause == Cause::Entered || outcome != check.previous_outcome;
        if news { report.announce() } else { report }
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn observe(&self, context: &Context, _: Signal) -> Option<Background> {
        let shown = Some(Shown::Switch(Arc::clone(&self.switch)));
        let held = context.services.panel.hold(&context.definition.name, &context.watcher, shown);
        Some(Box::pin(async move {
            let _held = held;
            std::future::pending::<()>().await;
        }))
    }

    fn event_fields(&self, _: &Seen) -> Map<String, Value> {
        let position = self.switch.position();
        Map::from_iter([
            ("previous_outcome".to_owned(), json!(position.word())),
            ("is_on".to_owned(), json!(position == Position::On)),
            ("annotations".to_owned(), json!(self.switch.annotations)),
        ])
    }
}
