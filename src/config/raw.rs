//! The shape of `machinesd.toml`, with the defaults. `packager/machinesd.toml` shows every key; a test holds the two
//! together.

use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub identity: Option<String>,
    pub state_dir: PathBuf,
    pub local_dir: PathBuf,
    pub facts: Vec<PathBuf>,
    pub kv: Kv,
    pub sync: Sync,
    pub trust: Trust,
    pub fetch: Fetch,
    pub archive: Archive,
    pub process: Process,
    pub control: Control,
    pub http: Http,
    pub metrics: Metrics,
    pub log: Log,
}

impl Default for File {
    fn default() -> Self {
        Self {
            identity: None,
            state_dir: "/var/lib/machines".into(),
            local_dir: "/etc/machines/machines.d".into(),
            facts: vec!["/etc/machines/facts.json".into()],
            kv: Kv::default(),
            sync: Sync::default(),
            trust: Trust::default(),
            fetch: Fetch::default(),
            archive: Archive::default(),
            process: Process::default(),
            control: Control::default(),
            http: Http::default(),
            metrics: Metrics::default(),
            log: Log::default(),
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kv {
    pub url: String,
    pub creds: Option<PathBuf>,
    pub nkey: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub token: Option<String>,
    pub ca: Option<PathBuf>,
    pub cert: Option<PathBuf>,
    pub key: Option<PathBuf>,
    pub context: Option<String>,
}

impl Default for Kv {
    fn default() -> Self {
        Self {
            url: "local".to_owned(),
            creds: None,
            nkey: None,
            user: None,
            password: None,
            token: None,
            ca: None,
            cert: None,
            key: None,
            context: None,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sync {
    pub enabled: bool,
    pub bucket: String,
    pub key: String,
    #[serde(deserialize_with = "crate::duration::deserialize")]
    pub interval: Duration,
    #[serde(deserialize_with = "crate::duration::deserialize")]
    pub manage_interval: Duration,
    pub purge_unknown: bool,
    pub hold_removals_over: String,
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            enabled: true,
            bucket: "MACHINES".to_owned(),
            key: "machines".to_owned(),
            interval: Duration::from_secs(60),
            manage_interval: Duration::from_secs(300),
            purge_unknown: true,
            hold_removals_over: "50%".to_owned(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    pub public_keys: Vec<String>,
    /// Of the file only, see `environment::FILE_ONLY`.
    pub allow_unsigned: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fetch {
    pub proxy: Option<String>,
    pub ca: Option<PathBuf>,
    #[serde(deserialize_with = "crate::duration::deserialize")]
    pub deadline: Duration,
    pub minimum_rate: u64,
}

impl Default for Fetch {
    fn default() -> Self {
        let settings = crate::archive::FetchSettings::default();
        Self {
            proxy: None,
            ca: None,
            deadline: settings.deadline,
            minimum_rate: settings.minimum_rate_bytes_per_second,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Archive {
    pub archive_bytes: u64,
    pub expanded_bytes: u64,
    pub expansion_ratio: u64,
    pub entries: usize,
    pub depth: usize,
    pub component_bytes: usize,
}

impl Default for Archive {
    fn default() -> Self {
        let limits = crate::archive::Limits::default();
        Self {
            archive_bytes: limits.archive_bytes,
            expanded_bytes: limits.expanded_bytes,
            expansion_ratio: limits.expansion_ratio,
            entries: limits.entries,
            depth: limits.depth,
            component_bytes: limits.component_bytes,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Process {
    /// "auto", "off", or a directory.
    pub cgroup: String,
}

impl Default for Process {
    fn default() -> Self {
        Self { cgroup: "auto".to_owned() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Control {
    pub socket: PathBuf,
}

impl Default for Control {
    fn default() -> Self {
        Self { socket: "/run/machines/machinesd.sock".into() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Http {
    /// Empty: no listener.
    pub listen: String,
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Empty: no files.
    pub textfile_directory: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub format: LogFormat,
    pub level: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Text, level: "info".to_owned() }
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}
