//! `plugins`: the newer form of `machines`. Its envelope has the field `plugins`, the signature covers the base64 text of
//! the list, and a `match` may ask for facts with `get_fact("path")`. The work is the same, and so is the place where the
//! machines go: a node follows one of the two.

use std::time::Duration;

use crate::machine::watcher::{BuildContext, Built, Fires, Kind, schema_of};
use crate::spec::Form;

use super::machines::{Properties, build_form};

/// The row in `KINDS`.
pub const KIND: Kind = Kind {
    name: "plugins",
    summary: "makes the node's machines agree with a signed specification of the newer form",
    minimum_interval: Duration::from_secs(1),
    default_interval: Some(Duration::from_secs(60)),
    outcomes: &["unknown", "skipped", "error", "updated", "unchanged"],
    build,
    example: "data_item: plugins\npurge_unknown: true\nmachine_manage_interval: 5m\n",
    fires: Fires::Both,
    schema: schema_of::<Properties>,
};

fn build(context: &BuildContext<'_>) -> Built {
    build_form(context, Form::Plugins)
}
