//! A machine: its definition (raw → validated), its states, its data, and the task that runs its watchers. The watcher
//! trait is here; `watchers` implements it and `host` hands the list of kinds in.

mod brake;
pub mod data;
pub mod definition;
pub mod document;
pub mod fsm;
pub mod graph;
pub mod hierarchy;
mod keeper;
mod keys;
pub mod lint;
pub mod neighbours;
pub mod panel;
pub mod problem;
pub mod property;
mod reader;
pub mod rule;
pub mod runner;
pub mod schema;
mod slot;
pub mod status;
mod task;
pub mod template;
pub mod watcher;
