//! The command line of `mms governor`.

use std::ffi::OsString;
use std::time::Duration;

use clap::Subcommand;
use machines::kv::{DEFAULT_COLLECTIVE, MAXIMUM_CAPACITY, MAXIMUM_EXPIRE, MINIMUM_EXPIRE};
use machines::names::GovernorName;

use crate::shared::Format;

#[derive(Debug, Subcommand)]
pub enum GovernorCommand {
    /// Make a governor, or change one that is there; its holders keep their slots.
    #[command(after_help = "Example: mms governor add UPDATES 3 10m\n\n\
                            At most 3 hold a slot of UPDATES at once; one that crashes loses it after 10 minutes.")]
    Add {
        /// The governor: letters, digits, _ and -.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
        /// How many may hold a slot at once.
        #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAXIMUM_CAPACITY)))]
        capacity: u32,
        /// A slot is free again after this time, such as 10m; longer than anything takes under it.
        #[arg(value_parser = expire)]
        expire: Duration,
        /// Servers that keep a copy [default: 1, or what it has]
        #[arg(value_parser = clap::value_parser!(u8).range(1..=5))]
        replicas: Option<u8>,
        #[arg(long, value_name = "WORD", help = collective_help())]
        collective: Option<String>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Run a command while holding a slot; ends with the command's exit code.
    #[command(after_help = "Example: mms governor run UPDATES --max-wait 10m -- apt-get -y upgrade")]
    Run {
        /// The governor.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
        /// How long to wait for a slot; then nothing is run, and the exit code is 1.
        #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = machines::duration::parse)]
        max_wait: Duration,
        /// The command and its arguments.
        #[arg(value_name = "CMD", required = true, last = true)]
        command: Vec<OsString>,
    },
    /// Show a governor and who holds its slots.
    #[command(after_help = "Example: mms governor view UPDATES")]
    View {
        /// The governor.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// List the governors.
    #[command(visible_alias = "ls", after_help = "Example: mms governor list --format json")]
    List {
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Free the slot of one holder, who is not stopped by that.
    #[command(after_help = "Example: mms governor evict UPDATES 42")]
    Evict {
        /// The governor.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
        /// The slot: the number that governor view shows.
        #[arg(value_name = "SLOT")]
        sequence: u64,
    },
    /// Free all slots of a governor; no holder is stopped by that.
    #[command(after_help = "Example: mms governor reset UPDATES")]
    Reset {
        /// The governor.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
    },
    /// Delete a governor; what asks for a slot of it fails from then on.
    #[command(after_help = "Example: mms governor delete UPDATES")]
    Delete {
        /// The governor.
        #[arg(value_parser = GovernorName::new)]
        name: GovernorName,
    },
}

fn collective_help() -> String {
    format!("First word of the subject on NATS [default: {DEFAULT_COLLECTIVE}, or what it has]")
}

fn expire(text: &str) -> Result<Duration, String> {
    let expire = machines::duration::parse(text).map_err(|error| error.to_string())?;
    if !(MINIMUM_EXPIRE..=MAXIMUM_EXPIRE).contains(&expire) {
        return Err("slots must expire after 1s to 365d".to_owned());
    }
    Ok(expire)
}
