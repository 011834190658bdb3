//! The operator's side of `machinesd dev`: what `mms keys`, `mms archive build`, `mms pack` and `mms kv put` do, with the
//! example agent, each time something changes in the directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use machines::archive::{self, Limits};
use machines::kv::{BucketSettings, KvError, Store};
use machines::machine::definition::Definition;
use machines::spec::{SecretKey, pack};
use serde_json::json;

use crate::shared::{Failure, line, lines};

const BUCKET: &str = "MACHINES";
const KEY: &str = "machines";
/// The example is in the binary, so that `dev` works without the sources.
const HELLO: [(&str, &str, u32); 2] = [
    ("machine.yaml", include_str!("../../../machines/examples/hello/machine.yaml"), 0o644),
    ("hello.sh", include_str!("../../../machines/examples/hello/hello.sh"), 0o755),
];
const MAXIMUM_SPECIFICATION_BYTES: u64 = 1024 * 1024;
const MAXIMUM_KEY_BYTES: u64 = 4096;

/// When each file was last changed.
type Times = BTreeMap<PathBuf, SystemTime>;

/// The directory in which an operator would work.
pub struct Workshop {
    directory: PathBuf,
    key: SecretKey,
    agent: Times,
    specification: Option<SystemTime>,
}

impl Workshop {
    /// Makes keys and lays out the example agent, unless they are there.
    pub fn make(directory: &Path) -> Result<Self, Failure> {
        let (key, what) = key(&directory.join("key"))?;
        machines::fs::create_directory(&directory.join("archives"), 0o755)?;
        machines::fs::create_directory(&directory.join("machines.d"), 0o755)?;
        let hello = directory.join("hello");
        // An agent that is there is somebody's work, whatever files it has.
        if machines::fs::list(&hello)?.is_empty() {
            machines::fs::create_directory(&hello, 0o755)?;
            for (name, content, mode) in HELLO {
                machines::fs::write_new(&hello.join(name), content.as_bytes(), mode)?;
            }
        } else {
            line("agent      kept as it is");
        }
        line(format!("keys       {what}; the node trusts {}", key.public_key().to_hex()));
        Ok(Self { directory: directory.to_owned(), key, agent: Times::new(), specification: None })
    }

    pub fn public_key(&self) -> String {
        self.key.public_key().to_hex()
    }

    /// Builds the archive, signs the specification and puts it into the store.
    pub async fn publish(&mut self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        let hello = self.directory.join("hello");
        self.agent = times(&hello)?;
        let definition = Definition::load(&hello)?;
        let archives = self.directory.join("archives");
        let built = archive::build(&hello, &definition.name, &definition.version, &archives, &Limits::default())?;
        let shown = built.path.file_name().unwrap_or_default().to_string_lossy();
        line(format!("archive    {shown} built, {} files, sha256 {}…", built.files.len(), built.checksum.short()));
        let machines = json!([{
            "name": definition.name,
            "source": format!("file://{}", built.path.display()),
            "verify": "SHA256SUMS",
            "verify_checksum": built.verify_checksum,
            "checksum": built.checksum,
            "match": "has_command('uname')",
        }]);
        let payload = serde_json::to_string_pretty(&machines)?;
        machines::fs::write(&self.directory.join("machines.json"), payload.as_bytes(), 0o644)?;
        let packed = pack(payload.as_bytes(), Some(&self.key))?;
        line("pack       machines.json signed");
        machines::fs::write(&self.specification_path(), format!("{}\n", packed.envelope).as_bytes(), 0o644)?;
        self.put(store).await
    }

    /// Publishes again what has changed: the agent from its sources, or the specification as somebody left it.
    pub async fn follow(&mut self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        if times(&self.directory.join("hello"))? != self.agent {
            lines("\nYou changed the agent:");
            return self.publish(store).await;
        }
        if changed(&self.specification_path()) != self.specification {
            lines("\nYou changed spec.json:");
            return self.put(store).await;
        }
        Ok(())
    }

    async fn put(&mut self, store: &Arc<dyn Store>) -> Result<(), Failure> {
        self.specification = changed(&self.specification_path());
        let envelope = machines::fs::read(&self.specification_path(), MAXIMUM_SPECIFICATION_BYTES)?;
        let settings = BucketSettings {
            name: BUCKET.to_owned(),
            history: 5,
            ttl: None,
            replicas: 1,
            maximum_value_bytes: Some(1024 * 1024),
        };
        let bucket = match store.create_bucket(&settings).await {
            Err(KvError::BucketExists { .. }) => store.bucket(BUCKET)?,
            result => result?,
        };
        let revision = bucket.put(KEY, Bytes::from(envelope.trim_ascii_end().to_vec())).await?;
        line(format!("kv put     {BUCKET} {KEY}: revision {revision}"));
        line("");
        Ok(())
    }

    fn specification_path(&self) -> PathBuf {
        self.directory.join("spec.json")
    }
}

/// The key that is there, or a new one; and which.
fn key(path: &Path) -> Result<(SecretKey, &'static str), Failure> {
    match machines::fs::read_text(path, MAXIMUM_KEY_BYTES) {
        Ok(text) => match SecretKey::from_hex(text.trim()) {
            Ok(key) => Ok((key, "kept")),
            Err(error) => Err(format!(
                "{} is there, and is no private key: {}; move it away, and a new one is made",
                path.display(),
                machines::errors::chain(&error)
            )
            .into()),
        },
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => {
            let key = SecretKey::generate()?;
            machines::fs::write_new(path, key.to_hex().as_bytes(), 0o600)?;
            Ok((key, "made"))
        }
        Err(error) => Err(error.into()),
    }
}

fn changed(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

fn times(directory: &Path) -> Result<Times, Failure> {
    let entries = machines::fs::list(directory)?;
    // Editors leave their own files for a moment.
    let paths = entries.iter().map(std::fs::DirEntry::path).filter(|path| !is_editors(path));
    Ok(paths.filter_map(|path| changed(&path).map(|time| (path, time))).collect())
}

fn is_editors(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with('.') || name.starts_with("sed") || name.ends_with('~') || name.ends_with(".swp")
}
