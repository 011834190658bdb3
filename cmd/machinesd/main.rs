//! `machinesd`: the daemon on each node, and the commands that speak with it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::string_slice))]

mod arguments;
mod ask;
mod daemon;
mod dev;
mod graph;
mod logging;
mod maintenance;
mod narrator;
mod once;
mod ownership;
mod reload;
mod run;
mod run_machine;
mod sarif;
mod schema;
#[path = "../shared/mod.rs"]
mod shared;
mod status;
mod test;
mod validate;
mod version;
mod why;

use std::process::ExitCode;

use arguments::{Arguments, Command, Maintenance};
use machines::control::{MaintenanceConsent, RemovalConsent, Span, SyncRequest};
use machines::process::helper;
use shared::{Failure, Format, finish};

fn main() -> ExitCode {
    // Each command that a watcher runs starts here, so nothing is read or made before it.
    let mut words = std::env::args_os().skip(1);
    if words.next().is_some_and(|word| word == helper::COMMAND) {
        return match helper::run(words) {
            Ok(code) => code,
            Err(misuse) => finish(Err(Failure::Usage(misuse.into()))),
        };
    }
    let arguments: Arguments = match shared::arguments() {
        Ok(arguments) => arguments,
        Err(code) => return code,
    };
    finish(dispatch(arguments.command))
}

fn dispatch(command: Command) -> Result<(), Failure> {
    match command {
        Command::Run { config, once: false, .. } => run::run(&config.file()),
        Command::Run { config, once: true, in_maintenance } => once::once(&config.file(), consent(in_maintenance)),
        Command::Dev { directory } => dev::dev(directory.as_deref()),
        Command::RunMachine { directories, facts, data, nats } => {
            run_machine::run(&directories, facts.as_deref(), data.as_deref(), nats.as_deref())
        }
        Command::Test { directories, filter, format } => test::test(&directories, filter.as_deref(), format),
        Command::Validate { directories, format, deny } => validate::validate(&directories, format, deny),
        Command::Schema => schema::schema(),
        Command::Graph { directory, format } => graph::graph(&directory, format),
        Command::Status { check: false, socket, format } => status::status(&socket.socket, format),
        Command::Status { check: true, socket, format } => status::check(&socket.socket, format),
        Command::Why { name, socket, format } => why::why(&socket.socket, &name, format),
        Command::Transition { machine, event, socket, format } => {
            ask::transition(&socket.socket, &machine, &event, format)
        }
        Command::Events { follow, wanted, socket } => {
            ask::events(&socket.socket, if follow { Span::Follow } else { Span::Recent }, &wanted)
        }
        Command::Sync { allow_removals, in_maintenance, socket, format } => {
            let removals = if allow_removals { RemovalConsent::Allowed } else { RemovalConsent::Guarded };
            ask::sync(&socket.socket, &SyncRequest { removals, maintenance: consent(in_maintenance) }, format)
        }
        Command::Maintenance { change, socket, format } => {
            maintenance::maintenance(&socket.socket, change.unwrap_or(Maintenance::Status), format)
        }
        Command::Version { format: Format::Json, .. } => version::document(),
        Command::Version { verbose, format: Format::Text } => {
            version::version(verbose);
            Ok(())
        }
    }
}

fn consent(in_maintenance: bool) -> MaintenanceConsent {
    if in_maintenance { MaintenanceConsent::Overridden } else { MaintenanceConsent::Respected }
}
