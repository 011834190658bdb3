//! The host's fully qualified name. In: the kernel's node name and `/etc/hosts`. Out: the name. The resolver is not
//! asked: an identity must not depend on whether the network is up.

use std::path::Path;

const HOSTS_LIMIT_BYTES: u64 = 1024 * 1024;

pub(super) fn fully_qualified() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts = crate::fs::read_text(Path::new("/etc/hosts"), HOSTS_LIMIT_BYTES).unwrap_or_default();
    qualify(&name, &hosts)
}

/// A name without a dot takes its domain from the line of `/etc/hosts` that lists it (`127.0.1.1 web1.example.net
/// web1`); without such a line it stays as it is.
pub(super) fn qualify(name: &str, hosts: &str) -> String {
    let name = name.trim_end_matches('.');
    if name.contains('.') {
        return name.to_owned();
    }
    let prefix = format!("{name}.");
    for line in hosts.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let names: Vec<&str> = line.split_whitespace().skip(1).collect();
        if !names.contains(&name) {
            continue;
        }
        if let Some(qualified) = names.iter().find(|candidate| candidate.starts_with(&prefix)) {
            return qualified.trim_end_matches('.').to_owned();
        }
    }
    name.to_owned()
}
