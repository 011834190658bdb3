//! The command line of `machinesd`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use machines::config::File;
use machines::duration;
use machines::names::MachineName;

use crate::shared::Format;
use crate::shared::events::Wanted;

/// Keeps the machines of this node as a signed specification wants them, and runs them.
#[derive(Debug, Parser)]
#[command(name = "machinesd", version, max_term_width = 100, disable_help_subcommand = true)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground.
    #[command(after_help = "Example: machinesd run --config /etc/machines/machinesd.toml")]
    Run {
        #[command(flatten)]
        config: ConfigFile,
        /// Make one sync pass and exit: 0 when the node has converged, 1 when not, with the reasons. Runs no machine.
        #[arg(long)]
        once: bool,
        /// Make the pass also while the node is in maintenance.
        #[arg(long, requires = "once")]
        in_maintenance: bool,
    },
    /// Show everything on this machine alone: keys, archive, signature, store, daemon, agent.
    #[command(after_help = "Example: machinesd dev\nIt works in a temporary directory and leaves nothing behind.")]
    Dev {
        /// Work in this directory and keep it.
        #[arg(long, value_name = "DIR")]
        directory: Option<PathBuf>,
    },
    /// Run machines by hand, in the foreground, apart from any daemon.
    #[command(after_help = "Example: machinesd run-machine machines/examples/hello\n\n\
                            Their data and store are new, in a temporary directory, and gone at the end (Ctrl-C).")]
    RunMachine {
        /// Directories with a machine.yaml.
        #[arg(required = true, value_name = "DIR")]
        directories: Vec<PathBuf>,
        /// JSON file with the facts, in the place of those of this node.
        #[arg(long, value_name = "FILE")]
        facts: Option<PathBuf>,
        /// JSON file with the data that each machine begins with.
        #[arg(long, value_name = "FILE")]
        data: Option<PathBuf>,
        /// Use buckets of this NATS server, and publish the events to it [default: an empty store of their own]
        #[arg(long, value_name = "URL")]
        nats: Option<String>,
    },
    /// Check the machines in these directories, every fault with its line.
    ///
    /// Errors are what a node refuses, and what can never work; warnings are what is probably not meant. Machines that
    /// are checked together are judged as those of one node: what they require of each other must exist and be able to
    /// happen. Exit code 1 when there are errors.
    #[command(after_help = "Example: machinesd validate --deny warnings machines/examples/*")]
    Validate {
        /// Directories with a machine.yaml.
        #[arg(required = true, value_name = "DIR")]
        directories: Vec<PathBuf>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = ReportFormat::Text)]
        format: ReportFormat,
        /// Exit code 1 for these too.
        #[arg(long, value_enum, value_name = "WHAT")]
        deny: Option<Deny>,
    },
    /// Print the JSON Schema of machine.yaml, for editors.
    #[command(after_help = "Example: machinesd schema > machine.schema.json\n\
                      In the first line of a machine.yaml: # yaml-language-server: $schema=../machine.schema.json")]
    Schema,
    /// Draw a machine: its states, transitions, and what works where.
    #[command(after_help = "Example: machinesd graph machines/examples/hello --format svg > hello.svg")]
    Graph {
        /// A directory with a machine.yaml.
        #[arg(value_name = "DIR")]
        directory: PathBuf,
        /// The language of the drawing.
        #[arg(long, value_enum, default_value_t = DrawingFormat::Dot)]
        format: DrawingFormat,
    },
    /// Play the scenarios in machine.test.yaml of these machines, on a clock on which days pass in milliseconds.
    #[command(after_help = "Example: machinesd test machines/examples/facts")]
    Test {
        /// Directories with a machine.yaml and a machine.test.yaml.
        #[arg(required = true, value_name = "DIR")]
        directories: Vec<PathBuf>,
        /// Only scenarios with this in their name.
        #[arg(long, value_name = "TEXT")]
        filter: Option<String>,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show how this node stands: store, specification, machines and what is wrong with them.
    #[command(after_help = "Example: machinesd status --format json | jq .sync.refused\n\n\
                            For monitors: machinesd status --check")]
    Status {
        /// Only say whether all is well: exit code 0, or 1 with each reason on a line. What is unknown is not well.
        #[arg(long)]
        check: bool,
        #[command(flatten)]
        socket: Socket,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show everything that is known of one machine: why it is, or is not, here and running.
    #[command(after_help = "Example: machinesd why facts")]
    Why {
        /// The machine's name.
        #[arg(value_parser = MachineName::new)]
        name: MachineName,
        #[command(flatten)]
        socket: Socket,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Make a transition of a machine by hand.
    #[command(after_help = "Example: machinesd transition manager enter_maintenance")]
    Transition {
        /// Name, version, path or instance id.
        machine: String,
        /// The transition.
        event: String,
        #[command(flatten)]
        socket: Socket,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Show what happened last on this node: transitions, and states of watchers.
    #[command(after_help = "Example: machinesd events --follow --machine facts")]
    Events {
        /// Go on with what happens, until interrupted.
        #[arg(long, short)]
        follow: bool,
        #[command(flatten)]
        wanted: Wanted,
        #[command(flatten)]
        socket: Socket,
    },
    /// Make a sync pass now, and say whether the node has converged.
    #[command(after_help = "Example: machinesd sync --allow-removals")]
    Sync {
        /// Make the removals that are held because they are many.
        #[arg(long)]
        allow_removals: bool,
        /// Make the pass also while the node is in maintenance.
        #[arg(long)]
        in_maintenance: bool,
        #[command(flatten)]
        socket: Socket,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
    /// Leave this node as it is: nothing is installed, upgraded, repaired or removed until it ends.
    ///
    /// Agents run on, and do what they do. It survives restarts, reloads and upgrades. Without a word it shows how it is.
    #[command(after_help = "Example: machinesd maintenance on --for 2h --because 'disks are exchanged'")]
    Maintenance {
        #[command(subcommand)]
        change: Option<Maintenance>,
        #[command(flatten)]
        socket: Socket,
        /// How the result is printed.
        #[arg(long, value_enum, default_value_t = Format::Text, global = true)]
        format: Format,
    },
    /// Show the version.
    #[command(after_help = "Example: machinesd version --verbose")]
    Version {
        /// Also what is compiled in: watcher kinds, machines, the public key.
        #[arg(long)]
        verbose: bool,
        /// How the result is printed; json has everything.
        #[arg(long, value_enum, default_value_t = Format::Text)]
        format: Format,
    },
}

/// What becomes of maintenance.
#[derive(Debug, Subcommand)]
pub enum Maintenance {
    /// Begin it, or change its end and its reason.
    On {
        /// It ends by itself after this time, by the clock on the wall, also over restarts.
        #[arg(long = "for", value_name = "TIME", value_parser = duration::parse)]
        time: Option<Duration>,
        /// Why, for those who look at the node.
        #[arg(long, value_name = "TEXT")]
        because: Option<String>,
    },
    /// End it. What was published meanwhile is read before anything is changed.
    Off,
    /// Show whether the node is in maintenance.
    Status,
}

/// How problems are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ReportFormat {
    Text,
    Json,
    /// SARIF 2.1.0, for code hosts.
    Sarif,
}

/// What `validate` refuses besides errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Deny {
    Warnings,
}

/// The language of a drawing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DrawingFormat {
    /// For Graphviz.
    Dot,
    /// A state diagram, for Markdown.
    Mermaid,
    /// A picture, laid out here.
    Svg,
}

#[derive(Debug, Args)]
pub struct ConfigFile {
    /// The settings; they must then exist.
    #[arg(long, value_name = "FILE", help = "Settings file [default: /etc/machines/machinesd.toml, if it exists]")]
    pub config: Option<PathBuf>,
}

impl ConfigFile {
    pub fn file(&self) -> File {
        self.config.clone().map_or(File::Default, File::Required)
    }
}

#[derive(Debug, Args)]
pub struct Socket {
    /// The daemon's control socket.
    #[arg(
        long,
        global = true,
        value_name = "FILE",
        env = "MACHINESD_CONTROL_SOCKET",
        hide_env_values = true,
        default_value = "/run/machines/machinesd.sock"
    )]
    pub socket: PathBuf,
}
