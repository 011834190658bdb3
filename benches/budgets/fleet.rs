//! Machines to measure with: directories, archives, and specifications that list them.

use std::fs;
use std::path::Path;

use machines::archive::{Built, Limits, build};
use machines::names::{MachineName, Version};
use machines::spec::SecretKey;
use serde_json::{Value, json};

/// Bytes that do not compress, from a fixed seed.
pub struct Noise(u64);

impl Noise {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        // SplitMix64 by Sebastiano Vigna, public domain: <https://prng.di.unimi.it/splitmix64.c>
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count + 8);
        while bytes.len() < count {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(count);
        bytes
    }

    /// Text like that of a log, which compresses.
    pub fn text(&mut self, count: usize) -> Vec<u8> {
        let words = ["started", "machine", "watcher", "changed", "because", "interval", "verified", "archive"];
        let mut text = String::with_capacity(count + 100);
        while text.len() < count {
            let word = words[usize::try_from(self.next() % 8).unwrap()];
            text.push_str(&format!("{:08x} {word} ", self.next() >> 32));
        }
        text.truncate(count);
        text.into_bytes()
    }
}

/// The smallest machine: one command, run when it starts.
pub fn small_definition(name: &str) -> String {
    format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: RUN\n\
         transitions:\n  - {{name: stop, from: [RUN], destination: STOPPED}}\n\
         watchers:\n  - name: first\n    type: exec\n    state_match: [RUN]\n    properties: {{command: \"true\"}}\n"
    )
}

/// A machine with five watchers that look once a minute and find nothing to do.
pub fn idle_definition(name: &str, tool: &Built, target: &Path) -> String {
    let (source, checksum, list) = (tool.path.display(), tool.checksum, tool.verify_checksum);
    format!(
        "name: {name}\nversion: 1.0.0\ninitial_state: RUN\n\
         transitions:\n  - {{name: stop, from: [RUN], destination: STOPPED}}\n\
         watchers:\n\
         \x20 - name: command\n    type: exec\n    interval: 1m\n    properties: {{command: \"true\"}}\n\
         \x20 - name: wanted\n    type: kv\n    interval: 1m\n    properties: {{bucket: MACHINES, key: {name}, mode: poll}}\n\
         \x20 - name: common\n    type: kv\n    interval: 1m\n    properties: {{bucket: MACHINES, key: common, mode: poll}}\n\
         \x20 - name: tool\n    type: archive\n    interval: 1m\n    properties:\n\
         \x20     source: \"file://{source}\"\n      checksum: {checksum}\n      creates: tool\n\
         \x20     target: \"{}\"\n      verify_checksum: {list}\n\
         \x20 - name: patience\n    type: timer\n    fail_transition: stop\n    properties: {{timer: 24h}}\n",
        target.display()
    )
}

/// Writes a directory with these files.
pub fn write_machine(directory: &Path, definition: &str, files: &[(&str, Vec<u8>)]) {
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("machine.yaml"), definition).unwrap();
    for (name, content) in files {
        let path = directory.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }
}

/// Builds the archive of a machine in `output`.
pub fn archive(output: &Path, name: &str, definition: &str, files: &[(&str, Vec<u8>)]) -> Built {
    let sources = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    write_machine(sources.path(), definition, files);
    build_archive(sources.path(), name, output)
}

/// Packs a directory that is there.
pub fn build_archive(directory: &Path, name: &str, output: &Path) -> Built {
    let (name, version) = (MachineName::new(name).unwrap(), Version::new("1.0.0").unwrap());
    build(directory, &name, &version, output, &Limits::default()).unwrap()
}

/// The archive of a small machine with 100 KB that do not compress.
pub fn archive_of_100_kilobytes(output: &Path, name: &str, seed: u64) -> Built {
    archive(output, name, &small_definition(name), &[("payload.bin", Noise::new(seed).bytes(100_000))])
}

/// The entry of an archive in the list of machines.
pub fn entry(built: &Built, source: &str) -> Value {
    json!({
        "name": built.name.as_str(),
        "source": source,
        "checksum": built.checksum.to_string(),
        "verify_checksum": built.verify_checksum.to_string(),
    })
}

/// The source of an archive on this disk.
pub fn file_source(path: &Path) -> String {
    format!("file://{}", path.display())
}

/// A signed specification.
pub fn envelope(key: &SecretKey, entries: &[Value]) -> bytes::Bytes {
    let payload = serde_json::to_vec(entries).unwrap();
    machines::spec::pack(&payload, Some(key)).unwrap().envelope.into()
}

/// The settings that trust this key.
pub fn trust(key: &SecretKey) -> String {
    format!("[trust]\npublic_keys = [\"{}\"]\n", key.public_key().to_hex())
}
