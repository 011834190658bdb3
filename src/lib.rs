//! Machines: signed desired state for fleets of Linux nodes, carried out by small autonomous agents.
//!
//! The rooms, top to bottom; each uses only rooms below it, and `tests/layering.rs` keeps it so. ARCHITECTURE.md has
//! the flow and the reasons.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::string_slice))]

pub mod config;
pub mod control;
pub mod host;
pub mod scenario;
pub mod watchers;
pub mod machine;
pub mod process;
pub mod sync;
pub mod archive;
pub mod governor;
pub mod kv;
pub mod events;
pub mod journal;
pub mod spec;
pub mod expr;
pub mod node;
pub mod errors;
pub mod suggest;
pub mod shown;
pub mod secret;
pub mod clock;
pub mod notices;
pub mod fs;
pub mod digest;
pub mod duration;
pub mod names;
