//! `machinesd`: the daemon on each node, and the commands that speak with it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::string_slice))]

mod arguments;
mod ask;
mod daemon;
mod dev;
mod graph;
mod logging;
mod once;
mod run;
mod sarif;
mod schema;
#[path = "../shared/mod.rs"]
mod shared;
mod status;
mod validate;
mod version;
mod why;

use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command};
use machines::control::RemovalConsent;
use shared::{Failure, Format, finish};

fn main() -> ExitCode {
    finish(dispatch(Arguments::parse().command))
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, once: false } => run::run(&config.file()),
        Command::Run { config, once: true } => once::once(&config.file()),
        Command::Dev { directory } => dev::dev(directory.as_deref()),
        Command::Validate { directories, format, deny } => validate::validate(&directories, format, deny),
        Command::Schema => schema::schema(),
        Command::Graph { directory, format } => graph::graph(&directory, format),
        Command::Status { socket, format } => status::status(&socket.socket, format),
        Command::Why { name, socket, format } => why::why(&socket.socket, &name, format),
        Command::Transition { machine, event, socket, format } => {
            ask::transition(&socket.socket, &machine, &event, format)
        }
        Command::Events { socket } => ask::events(&socket.socket),
        Command::Sync { allow_removals, socket, format } => {
            let removals = if allow_removals { RemovalConsent::Allowed } else { RemovalConsent::Guarded };
            ask::sync(&socket.socket, removals, format)
        }
        Command::Version { format: Format::Json, .. } => version::document(),
        Command::Version { verbose, format: Format::Text } => {
            version::version(verbose);
            Ok(())
        }
    }
}
