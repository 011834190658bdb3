//! The operator's side of a test: a store of either kind, keys, archives and specifications.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use machines::archive::{self, Built, Limits};
use machines::kv::{self, Bucket, BucketSettings, ConnectionSettings, CreateDatabase, Store, Target};
use machines::names::{MachineName, Version};
use machines::spec::{self, SecretKey};
use serde_json::{Value, json};

use super::daemon::{Daemon, Printed};
use super::nats::NatsServer;
use super::{eventually, within};

/// Which store the fleet uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backend {
    Nats,
    Embedded,
}

/// The node that tests have, unless they make more.
pub const NODE: &str = "web1";

/// Everything an operator has. Declare it before its daemons, so that they end first.
pub struct Fleet {
    pub nats: Option<NatsServer>,
    pub store: Arc<dyn Store>,
    pub key: SecretKey,
    root: tempfile::TempDir,
}

impl Fleet {
    /// A fleet with the bucket `MACHINES`.
    pub async fn start(backend: Backend) -> Self {
        match backend {
            Backend::Nats => Self::on_nats(NatsServer::start()).await,
            Backend::Embedded => {
                let root = tempfile::tempdir().unwrap();
                let database = root.path().join(NODE).join("state/kv.db");
                fs::create_dir_all(database.parent().unwrap()).unwrap();
                Self::open(root, None, &ConnectionSettings::local(database, CreateDatabase::Yes)).await
            }
        }
    }

    /// A fleet on a server that the operator may use without credentials.
    pub async fn on_nats(server: NatsServer) -> Self {
        let settings = ConnectionSettings::new(Target::parse(&server.url()).unwrap());
        Self::open(tempfile::tempdir().unwrap(), Some(server), &settings).await
    }

    async fn open(root: tempfile::TempDir, nats: Option<NatsServer>, settings: &ConnectionSettings) -> Self {
        kv::install_tls_provider();
        let store = kv::open(settings).await.unwrap();
        let fleet = Self { nats, store, key: SecretKey::generate().unwrap(), root };
        let store = &fleet.store;
        eventually("a connection to the store", || async { store.connection().connected }).await;
        fleet.make_bucket().await;
        fleet
    }

    pub async fn make_bucket(&self) {
        let settings = BucketSettings {
            name: "MACHINES".to_owned(),
            history: 1,
            ttl: None,
            replicas: 1,
            maximum_value_bytes: None,
        };
        within("the bucket", self.store.create_bucket(&settings)).await.unwrap();
    }

    pub fn root(&self) -> &Path {
        self.root.path()
    }

    /// The node `web1`, which trusts the fleet's key; not started yet.
    pub fn daemon(&self) -> Daemon {
        let url = self.nats.as_ref().map_or("local".to_owned(), NatsServer::url);
        let mut daemon = Daemon::new(&self.root().join(NODE), NODE, &url);
        daemon.trust(&[self.key.public_key().to_hex()]);
        daemon
    }

    /// Runs the operator's tool on the fleet's store, in the directory `ops`, and gives what it printed.
    pub fn mms(&self, words: &[&str], input: &str) -> Printed {
        let directory = self.root().join("ops");
        fs::create_dir_all(&directory).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_mms"))
            .args(words)
            .current_dir(directory)
            .env_clear()
            .env("MACHINES_KV", self.store.connection().url)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap().into()
    }

    pub fn bucket(&self) -> Arc<dyn Bucket> {
        self.store.bucket("MACHINES").unwrap()
    }

    /// Builds an archive into a directory of its own.
    pub fn build(&self, agent: &Agent) -> Release {
        let place = self.root().join("archives").join(uuid::Uuid::new_v4().to_string());
        let (name, version) = (MachineName::new(&agent.name).unwrap(), Version::new(&agent.version).unwrap());
        let source = agent.write(&place.join("source"));
        let built = archive::build(&source, &name, &version, &place, &Limits::default()).unwrap();
        let source = format!("file://{}", built.path.display());
        Release { built, source, expression: None }
    }

    /// Signs and publishes a list.
    pub async fn publish(&self, releases: &[&Release]) {
        self.put(self.pack(releases)).await;
    }

    /// A signed list.
    pub fn pack(&self, releases: &[&Release]) -> String {
        pack_with(Some(&self.key), releases)
    }

    /// Puts any value.
    pub async fn put(&self, value: impl Into<Bytes>) {
        within("a put", self.bucket().put("machines", value.into())).await.unwrap();
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // What is installed is read-only, which the temporary directory's own removal does not expect.
        let _ = machines::fs::remove_tree(self.root.path());
    }
}

/// A list, signed with this key or not at all.
pub fn pack_with(key: Option<&SecretKey>, releases: &[&Release]) -> String {
    spec::pack(list(releases).as_bytes(), key).unwrap().envelope
}

/// The list of machines as an operator writes it.
pub fn list(releases: &[&Release]) -> String {
    Value::Array(releases.iter().map(|release| release.entry()).collect()).to_string()
}

/// A machine whose script notes each run, with its version, in the file `runs` of its data directory.
#[derive(Clone)]
pub struct Agent {
    pub name: String,
    pub version: String,
    pub script: String,
    /// Between runs of the script.
    pub interval: &'static str,
    /// More files.
    pub files: Vec<(&'static str, Vec<u8>)>,
}

impl Agent {
    pub fn new(name: &str, version: &str) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            script: format!("#!/bin/sh\necho {version} >> \"$MACHINE_DATA_DIR/runs\"\n"),
            interval: "500ms",
            files: vec![("notes.txt", b"as it was published\n".to_vec())],
        }
    }

    pub fn definition(&self) -> String {
        format!(
            "name: {}\nversion: {}\ninitial_state: RUN\ntransitions:\n  - {{name: again, from: [RUN], destination: RUN}}\nwatchers:\n  - name: work\n    type: exec\n    \
             interval: {}\n    properties:\n      command: ./work.sh\n      timeout: 1h\n",
            self.name, self.version, self.interval
        )
    }

    /// Writes its directory.
    pub fn write(&self, parent: &Path) -> PathBuf {
        let directory = parent.join(&self.name);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("machine.yaml"), self.definition()).unwrap();
        let script = directory.join("work.sh");
        fs::write(&script, &self.script).unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        for (name, content) in &self.files {
            fs::write(directory.join(name), content).unwrap();
        }
        directory
    }
}

/// An archive and what the specification says of it.
#[derive(Clone)]
pub struct Release {
    pub built: Built,
    pub source: String,
    pub expression: Option<String>,
}

impl Release {
    /// The same archive from another place.
    pub fn from(&self, source: &str) -> Self {
        Self { source: source.to_owned(), ..self.clone() }
    }

    /// For nodes that match.
    pub fn matching(&self, expression: &str) -> Self {
        Self { expression: Some(expression.to_owned()), ..self.clone() }
    }

    pub fn bytes(&self) -> Vec<u8> {
        fs::read(&self.built.path).unwrap()
    }

    fn entry(&self) -> Value {
        let mut entry = json!({
            "name": self.built.name.as_str(),
            "source": self.source,
            "verify": "SHA256SUMS",
            "verify_checksum": self.built.verify_checksum.to_string(),
            "checksum": self.built.checksum.to_string(),
        });
        if let Some(expression) = &self.expression {
            entry["match"] = json!(expression);
        }
        entry
    }
}
