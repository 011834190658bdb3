//! A control group of version 2 for a test, as a service manager delegates one. Ended and removed when dropped.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub struct Cgroup {
    pub path: PathBuf,
}

impl Cgroup {
    pub fn new() -> Self {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mount = mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            after.starts_with("cgroup2 ").then(|| PathBuf::from(before.split(' ').nth(4).unwrap()))
        });
        let mount = mount.expect("this test needs cgroup version 2: mount -t cgroup2 none /sys/fs/cgroup/unified");
        let path = mount.join(format!("machines-test-{}", uuid::Uuid::new_v4().simple()));
        fs::create_dir(&path).unwrap_or_else(|error| panic!("this test needs root and {}: {error}", mount.display()));
        Self { path }
    }

    /// The leaves of commands.
    pub fn leaves(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.path).unwrap().map(|entry| entry.unwrap());
        entries.filter(|entry| entry.file_type().unwrap().is_dir()).map(|entry| entry.path()).collect()
    }

    /// What runs in a leaf.
    pub fn members(leaf: &Path) -> Vec<String> {
        let members = fs::read_to_string(leaf.join("cgroup.procs")).unwrap_or_default();
        members.lines().map(str::to_owned).collect()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        _ = fs::write(self.path.join("cgroup.kill"), "1");
        let deadline = Instant::now() + Duration::from_secs(5);
        while self.path.exists() && Instant::now() < deadline {
            for leaf in self.leaves() {
                _ = fs::remove_dir(leaf);
            }
            _ = fs::remove_dir(&self.path);
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
