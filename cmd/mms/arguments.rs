//! The command line of `mms`. What comes from it is checked here where one word is enough to judge it (exit 2).

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use machines::digest::Sha256Digest;
use machines::names::{Identity, MachineName};

use crate::governor::arguments::GovernorCommand;
use crate::kv::size;
use crate::shared::Format;
use crate::shared::events::Wanted;

/// Makes keys and archives, signs the list of machines for the nodes and publishes it.
#[derive(Debug, Parser)]
#[command(
    name = "mms",
    version,
    max_term_width = 100,
    disable_help_subcommand = true,
    after_help = "From nothing to a published specification:\n  \
                  mms keys --out ops\n  \
                  mms archive build hello --source https://files.example.net | jq -s . >machines.json\n  \
                  mms kv add MACHINES\n  \
                  mms pack machines.json --key-file ops.key | mms kv put MACHINES machines -\n\n\
                  Without --kv the store is found as other NATS tools find it: from NATS_URL, NATS_CREDS, NATS_USER\n\
                  and the like, or from the selected NATS context, else at nats://127.0.0.1:4222."
)]
pub struct Arguments {
    #[command(flatten)]
    pub store: StoreAddress,
    #[command(subcommand)]
    pub command: Command,
}

/// Where `kv`, `governor` and `archive put` find the store.
#[derive(Debug, Args)]
pub struct StoreAddress {
    // No doc comments where they would be links.
    // An address may hold a password.
    #[arg(long = "kv", value_name = "URL", env = "MACHINES_KV", hide_env_values = true, global = true)]
    #[arg(display_order = 900, help = "The store: nats://HOST:4222 or local:PATH/kv.db")]
    pub url: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make a new pair of keys for signing specifications.
    #[command(after_help = "Example: mms keys --out ops\n\n\
                            The public key goes into [trust] public_keys of every node; the private key stays with you.")]
    Keys {
        /// Write PREFIX.pub and PREFIX.key instead of showing the private key; existing files are kept.
        #[arg(long, value_name = "PREFIX")]
        out: Option<PathBuf>,
    },
    /// Check a list of machines as a node does and sign it; prints the specification on one line.
    #[command(after_help = "Example: mms pack machines.json --key-file ops.key | mms kv put MACHINES machines -\n\n\
                            Every user of this host can see a KEY on the command line in its list of processes;\n\
                            --key-file and the environment variable KEY are not seen there.")]
    Pack {
        /// The list of machines, a JSON file; - reads standard input.
        #[arg(value_name = "MACHINES.json")]
        machines: PathBuf,
        /// The private key, 128 hexadecimal digits [env: KEY]
        key: Option<String>,
        /// File with the private key, as mms keys --out writes it.
        #[arg(long, value_name = "FILE", conflicts_with = "key")]
        key_file: Option<PathBuf>,
        /// Do not warn when there is no key.
        #[arg(long)]
        force: bool,
    },
    /// Check the signature and the content of a specification.
    #[command(after_help = "Example: mms kv get MACHINES machines --raw | mms verify - ops.pub")]
    Verify {
        /// The specification, as mms pack prints it; - reads standard input.
        #[arg(value_name = "SPEC.json")]
        specification: PathBuf,
        /// The public key, 64 hexadecimal digits, or a file with it.
        #[arg(value_name = "KEY|FILE")]
        key: Option<String>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Evaluate a match expression on this machine and show what each function returned.
    #[command(after_help = "Example: mms match \"identity('^web') && has_command('uname')\" --identity web1")]
    Match {
        /// The expression, as in the "match" of a machine.
        #[arg(value_name = "EXPR")]
        expression: String,
        /// Pretend to be the node of this name [default: this host's name]
        #[arg(long, value_parser = Identity::new)]
        identity: Option<Identity>,
        /// JSON file with facts, merged over the built-in ones.
        #[arg(long, value_name = "FILE")]
        facts: Vec<PathBuf>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Follow what happens on all nodes that publish to this NATS server, until interrupted.
    #[command(after_help = "Example: mms events --transitions --machine facts --kv nats://nats.example.net:4222")]
    Events {
        #[command(flatten)]
        wanted: Wanted,
    },
    /// Build, check and store archives of machines.
    #[command(subcommand, after_help = "Example: mms archive build hello")]
    Archive(ArchiveCommand),
    /// Read and write key-value buckets, in NATS or in the embedded store.
    #[command(subcommand, after_help = "Example: mms kv ls --kv local:/var/lib/machines/kv.db")]
    Kv(KvCommand),
    /// Limit how many nodes do something at once.
    #[command(subcommand, after_help = "Example: mms governor add UPDATES 3 10m")]
    Governor(GovernorCommand),
}

#[derive(Debug, Subcommand)]
pub enum ArchiveCommand {
    /// Pack a machine's directory as NAME-VERSION.tgz and print its entry for machines.json.
    #[command(after_help = "Example: mms archive build hello --source https://files.example.net/machines")]
    Build {
        /// Directory with a machine.yaml.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// Where the archive is written.
        #[arg(long, value_name = "DIR", default_value = ".")]
        output: PathBuf,
        /// Where nodes will find it, without the file name [default: the file on this machine]
        #[arg(long, value_name = "URL_PREFIX")]
        source: Option<String>,
        /// Pack this file too, though it looks like a secret or a left-over; a path in DIR, with * and ?.
        #[arg(long, value_name = "PATH")]
        include: Vec<String>,
    },
    /// Judge an archive exactly as a node does.
    #[command(after_help = "Example: mms archive check hello-1.0.0.tgz --name hello")]
    Check {
        /// The archive.
        file: PathBuf,
        /// The machine's name that it must have.
        #[arg(long, value_parser = MachineName::new)]
        name: Option<MachineName>,
        /// The SHA-256 that the archive must have.
        #[arg(long, value_name = "SHA256", value_parser = Sha256Digest::parse)]
        checksum: Option<Sha256Digest>,
        /// The SHA-256 that its SHA256SUMS must have.
        #[arg(long, value_name = "SHA256", value_parser = Sha256Digest::parse)]
        verify_checksum: Option<Sha256Digest>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    #[command(about = "Put an archive into an object store and print its source, obj://BUCKET/NAME")]
    #[command(after_help = "Example: mms archive put hello-1.0.0.tgz ARCHIVES")]
    Put {
        /// The archive.
        file: PathBuf,
        /// The object store's bucket, made when missing, and the object's name [default: the file's name]
        #[arg(value_name = "BUCKET[/NAME]")]
        target: String,
        /// Store it even when nodes would refuse it.
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Make a bucket.
    #[command(after_help = "Example: mms kv add MACHINES --replicas 3")]
    Add {
        /// The bucket.
        bucket: String,
        /// Revisions of each key that are kept, 1 to 64.
        #[arg(long, value_name = "COUNT", default_value_t = 5, value_parser = clap::value_parser!(u8).range(1..=64))]
        history: u8,
        /// Entries vanish after this time, such as 30s or 2d [default: never]
        #[arg(long, value_name = "DURATION", value_parser = machines::duration::parse)]
        ttl: Option<Duration>,
        /// Servers that keep a copy.
        #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=5))]
        replicas: u8,
        /// Largest value, in bytes or such as 512KiB.
        #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size::parse)]
        max_value_size: u32,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Put a value, whatever was there before; prints it.
    #[command(after_help = "Example: mms pack machines.json --key-file ops.key | mms kv put MACHINES machines -")]
    Put {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value; - reads standard input.
        #[arg(value_name = "VALUE|-", allow_hyphen_values = true)]
        value: String,
    },
    /// Show the newest value of a key.
    #[command(after_help = "Example: mms kv get MACHINES machines --raw >spec.json")]
    Get {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value alone, byte for byte.
        #[arg(long, conflicts_with = "format")]
        raw: bool,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Put a value only when the key has none; prints it.
    #[command(after_help = "Example: mms kv create SETTINGS region north")]
    Create {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value; - reads standard input.
        #[arg(value_name = "VALUE|-", allow_hyphen_values = true)]
        value: String,
    },
    /// Put a value only when nobody has changed the key since REVISION; prints it.
    #[command(after_help = "Example: mms kv update SETTINGS region south 7")]
    Update {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// The value; - reads standard input.
        #[arg(value_name = "VALUE|-", allow_hyphen_values = true)]
        value: String,
        /// The newest revision of the key, as kv get shows it; 0 when it has none.
        revision: u64,
    },
    /// Delete a key and keep its history, or delete a whole bucket.
    #[command(after_help = "Example: mms kv del SETTINGS region\n         mms kv del SETTINGS --force")]
    Del {
        /// The bucket.
        bucket: String,
        /// The key; without it the bucket goes, with all that is in it.
        key: Option<String>,
        /// Needed to delete a bucket.
        #[arg(long, short)]
        force: bool,
    },
    /// Delete a key and its history.
    #[command(after_help = "Example: mms kv purge SETTINGS region")]
    Purge {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
    },
    /// List the keys of a bucket, or the buckets.
    #[command(visible_alias = "keys", after_help = "Example: mms kv ls MACHINES")]
    Ls {
        /// The bucket; without it the buckets are listed.
        bucket: Option<String>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show the revisions of a key, oldest first.
    #[command(after_help = "Example: mms kv history MACHINES machines")]
    History {
        /// The bucket.
        bucket: String,
        /// The key.
        key: String,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Follow the changes of a bucket until interrupted, current values first.
    #[command(after_help = "Example: mms kv watch MACHINES machines --format json")]
    Watch {
        /// The bucket.
        bucket: String,
        /// The keys: one, or a pattern such as web.* or web.>
        #[arg(value_name = "KEYS", default_value = ">")]
        pattern: String,
        /// How changes are printed; json is one object a line.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show a bucket's settings and size.
    #[command(after_help = "Example: mms kv status MACHINES")]
    Status {
        /// The bucket.
        bucket: String,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}
