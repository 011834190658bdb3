//! The kinds of watchers, one file each. [`KINDS`] is the only list of them, and the conformance suite runs over it: a
//! new kind is a new file, a `mod` line here and a row in `packager/plugins.yaml`, from which the build makes the list.

mod archive;
mod archive_place;
mod exec;
mod expression;
mod file;
mod gossip;
mod governed;
mod httpswitch;
mod kv;
mod machines;
mod metric;
mod nagios;
mod nagios_plugin;
mod plugins;
mod schedule;
mod timer;

use crate::machine::watcher::Kind;

/// The kinds that run commands.
pub const RUNNING_COMMANDS: [&str; 3] = [exec::KIND.name, metric::KIND.name, nagios::KIND.name];

include!(concat!(env!("OUT_DIR"), "/kinds.rs"));
