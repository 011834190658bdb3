//! The agents: two machines in three versions each, of which every file says its version, so that a mixture shows.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use machines::archive::{self, Built};
use machines::names::{MachineName, Version};

pub const NAMES: [&str; 2] = ["agent", "other"];
pub const VERSIONS: usize = 3;

/// Beside `machine.yaml`.
const FILES: usize = 30;
const FILE_BYTES: usize = 48 * 1024;

/// One version of one machine.
pub struct Agent {
    pub version: String,
    pub built: Built,
    /// What must be in its directory, by path.
    pub files: BTreeMap<String, Vec<u8>>,
}

/// All versions, by name and version.
pub struct Agents(pub [[Agent; VERSIONS]; NAMES.len()]);

impl Agents {
    pub fn build(directory: &Path) -> Self {
        let output = directory.join("archives");
        std::fs::create_dir(&output).unwrap();
        Self(NAMES.map(|name| std::array::from_fn(|version| Agent::build(directory, &output, name, version))))
    }
}

impl Agent {
    fn build(directory: &Path, output: &Path, name: &str, number: usize) -> Self {
        let version = format!("{}.0.0", number + 1);
        let source: PathBuf = directory.join(format!("source-{name}-{version}"));
        let mut files = BTreeMap::new();
        files.insert("machine.yaml".to_owned(), definition(name, &version).into_bytes());
        for file in 0..FILES {
            let path = format!("{}/{file:02}.data", ["library", "share/deep", "tools"][file % 3]);
            files.insert(path, content(name, &version, file));
        }
        for (path, content) in &files {
            let path = source.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        let machine = MachineName::new(name).unwrap();
        let limits = archive::Limits::default();
        let built = archive::build(&source, &machine, &Version::new(&version).unwrap(), output, &limits).unwrap();
        let mut list = String::new();
        for file in &built.files {
            if file.path != "SHA256SUMS" {
                list.push_str(&format!("{}  {}\n", file.digest, file.path));
            }
        }
        files.insert("SHA256SUMS".to_owned(), list.into_bytes());
        Self { version, built, files }
    }

    /// The entry of the specification.
    pub fn entry(&self) -> serde_json::Value {
        serde_json::json!({
            "name": self.built.name.as_str(),
            "source": format!("file://{}", self.built.path.display()),
            "verify": "SHA256SUMS",
            "verify_checksum": self.built.verify_checksum.to_string(),
            "checksum": self.built.checksum.to_string(),
            "match": "identity('^crash')",
        })
    }
}

fn definition(name: &str, version: &str) -> String {
    format!(
        "name: {name}\nversion: {version}\ninitial_state: RUN\ntransitions:\n  - name: rest\n    from: [RUN]\n    \
         destination: REST\nwatchers:\n  - name: tick\n    type: exec\n    state_match: [RUN]\n    interval: 5s\n    \
         properties:\n      command: cat tools/02.data\n"
    )
}

/// Lines that all name the version, different in each file, and not easily compressed away.
fn content(name: &str, version: &str, file: usize) -> Vec<u8> {
    let mut content = String::with_capacity(FILE_BYTES + 100);
    let mut line = 0;
    while content.len() < FILE_BYTES {
        let text = format!("{name} {version} {file} {line}");
        content.push_str(&format!("{text} {}\n", machines::digest::Sha256Digest::of(text.as_bytes())));
        line += 1;
    }
    content.into_bytes()
}
