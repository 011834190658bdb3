//! `mms`: the operator's tool. It makes keys and archives, signs specifications and publishes them; a node never needs it.

#![cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::string_slice))]

mod archive;
mod arguments;
mod events;
mod faults;
mod governor;
mod input;
mod keys;
mod kv;
mod matcher;
mod pack;
#[path = "../shared/mod.rs"]
mod shared;
mod store;
mod verify;

use std::process::ExitCode;

use arguments::{ArchiveCommand, Arguments, Command};
use shared::{Failure, finish};

fn main() -> ExitCode {
    match shared::arguments() {
        Ok(arguments) => finish(dispatch(arguments)),
        Err(code) => code,
    }
}

fn dispatch(arguments: Arguments) -> Result<(), Failure> {
    let url = arguments.store.url.as_deref();
    match arguments.command {
        Command::Keys { out } => keys::keys(out.as_deref()),
        Command::Pack { machines, key, key_file, force } => {
            let key = pack::find_key(key, key_file.as_deref())?;
            pack::pack(&machines, key.as_ref(), if force { pack::Unsigned::Meant } else { pack::Unsigned::Warned })
        }
        Command::Verify { specification, key, format } => verify::verify(&specification, key.as_deref(), format),
        Command::Match { expression, identity, facts, format } => {
            matcher::matches(&expression, identity, &facts, format)
        }
        Command::Archive(ArchiveCommand::Build { directory, output, source, include }) => {
            archive::build(&directory, &output, source.as_deref(), &include)
        }
        Command::Archive(ArchiveCommand::Check { file, name, checksum, verify_checksum, format }) => {
            let expectation = machines::archive::Expectation { name, checksum, verify_checksum };
            archive::check(&file, &expectation, format)
        }
        Command::Archive(ArchiveCommand::Put { file, target, force }) => {
            let refused = if force { archive::Refused::StoredAnyway } else { archive::Refused::NotStored };
            store::block_on(url, archive::put(url, &file, &target, refused))
        }
        Command::Governor(command) => store::block_on(url, governor::run(url, command)),
        Command::Events { wanted } => store::block_on(url, events::follow(url, &wanted)),
        Command::Kv(command) => store::block_on(url, kv::run(url, command)),
    }
}
