//! A node with its own state directory, keys and archives, for the tests of sync.

#![allow(dead_code, reason = "shared by test programs of which each uses a part")]

use machines::archive::{self, FetchSettings, Fetcher};
use machines::fs;
use machines::journal::Journal;
use machines::names::{Identity, MachineName, Version};
use machines::node::Node;
use machines::spec::{SecretKey, Trust, pack};
use machines::sync::{Pass, Purge, Reconciler, Removals, Settings};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;

/// A publisher with a key and a node on one disk.
pub struct World {
    directory: TempDir,
    pub key: SecretKey,
}

impl World {
    pub fn new() -> Self {
        let world = Self { directory: tempfile::tempdir().unwrap(), key: SecretKey::generate().unwrap() };
        fs::create_directory(&world.path("out"), 0o755).unwrap();
        world
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    pub fn trust(&self) -> Trust {
        Trust::Keys(vec![self.key.public_key()])
    }

    pub fn settings(&self) -> Settings {
        // A wait that a test could meet would make it depend on time; those that need it call `retry_now`.
        let wait = Duration::from_hours(1);
        Settings { retry_first: wait, retry_longest: wait, ..Settings::new(self.path("state")) }
    }

    pub fn open_with(&self, settings: Settings) -> Reconciler {
        self.open_on(&node(), settings)
    }

    /// A reconciler, and its node, whose facts a test changes.
    pub fn open_with_node(&self) -> (Arc<Node>, Reconciler) {
        let node = node();
        let reconciler = self.open_on(&node, self.settings());
        (node, reconciler)
    }

    fn open_on(&self, node: &Arc<Node>, settings: Settings) -> Reconciler {
        fs::create_directory(&self.path("state"), 0o755).unwrap();
        let journal = Journal::open(&self.path("state/state.db")).unwrap();
        let fetcher = Fetcher::new(FetchSettings::default(), None).unwrap();
        Reconciler::open(settings, Arc::clone(node), Arc::new(fetcher), journal).unwrap()
    }

    pub fn open(&self) -> Reconciler {
        self.open_with(self.settings())
    }

    /// Builds an archive and returns its entry for the specification.
    pub fn publish(&self, name: &str, version: &str) -> Value {
        self.publish_definition(name, version, &format!("name: {name}\nversion: {version}\ninitial_state: A\n"))
    }

    /// The same, with a definition of the test's own.
    pub fn publish_definition(&self, name: &str, version: &str, definition: &str) -> Value {
        let source = self.path(&format!("source-{name}-{version}"));
        fs::create_directory(&source, 0o755).unwrap();
        fs::write(&source.join("machine.yaml"), definition.as_bytes(), 0o644).unwrap();
        fs::write(&source.join("run.sh"), format!("echo {version}\n").as_bytes(), 0o755).unwrap();
        fs::write(&source.join("read.me"), b"text\n", 0o644).unwrap();
        let (machine, version) = (MachineName::new(name).unwrap(), Version::new(version).unwrap());
        let built =
            archive::build(&source, &machine, &version, &self.path("out"), &archive::Limits::default()).unwrap();
        json!({
            "name": name,
            "source": format!("file://{}", built.path.display()),
            "verify": "SHA256SUMS",
            "verify_checksum": built.verify_checksum,
            "checksum": built.checksum,
        })
    }

    pub fn envelope(&self, entries: &[Value]) -> Vec<u8> {
        let payload = serde_json::to_vec(entries).unwrap();
        pack(&payload, Some(&self.key)).unwrap().envelope.into_bytes()
    }

    pub async fn reconcile(&self, node: &Reconciler, entries: &[Value]) -> Pass {
        node.reconcile(&self.envelope(entries), &self.trust(), Purge::Unknown, Removals::Guarded).await
    }

    pub fn machine(&self, name: &str) -> PathBuf {
        self.path("state/machines").join(name)
    }

    pub fn text(&self, path: &str) -> String {
        fs::read_text(&self.path("state/machines").join(path), 1_000).unwrap()
    }

    pub fn store(&self) -> Vec<String> {
        names(&self.path("state/store"))
    }
}

pub fn names(path: &Path) -> Vec<String> {
    fs::list(path).unwrap().iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

pub fn with_match(mut entry: Value, expression: &str) -> Value {
    entry["match"] = json!(expression);
    entry
}

pub fn actions(pass: &Pass) -> Vec<String> {
    pass.machines.iter().map(|machine| format!("{} {}", machine.action.word(), machine.name)).collect()
}

/// Writes into an installed machine, which is read-only, as somebody on the node would.
pub fn tamper(path: &Path, change: impl FnOnce(&Path)) {
    let directory = path.parent().unwrap().canonicalize().unwrap();
    fs::set_mode(&directory, 0o755).unwrap();
    change(&directory.join(path.file_name().unwrap()));
}

fn node() -> Arc<Node> {
    let search_path = Arc::from([PathBuf::from("/usr/bin"), PathBuf::from("/bin")]);
    Arc::new(Node::new(Identity::new("web1").unwrap(), json!({}), search_path))
}
