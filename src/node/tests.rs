//! Discovery, facts files good and bad, probes of the disk.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::*;

#[test]
fn a_short_host_name_takes_its_domain_from_the_hosts_file() {
    let hosts = "127.0.0.1 localhost\n127.0.1.1 web1.example.net web1 # web1.wrong.net\n";
    assert_eq!(hostname::qualify("web1", hosts), "web1.example.net");
    assert_eq!(hostname::qualify("web1.other.net.", hosts), "web1.other.net");
    assert_eq!(hostname::qualify("web", hosts), "web");
    assert_eq!(hostname::qualify("web1", "127.0.0.1 web1 localhost.localdomain"), "web1");
}

#[test]
fn discovers_this_host() {
    let node = Node::discover(None, &[]).unwrap();
    assert!(!node.identity.as_str().is_empty());
    assert_eq!(node.facts().value()["identity"], node.identity.as_str());
    assert!(node.facts().value()["cpus"].as_u64().unwrap() >= 1);
    assert!(node.facts().value()["memory"]["total_bytes"].as_u64().unwrap() > 1024 * 1024);
    assert!(node.facts().value()["kernel"]["release"].is_string());
    assert!(node.search_path.iter().all(|directory| directory.is_absolute()));
    // Where the kernel answers at all, it knows the loopback interface.
    if let Ok(addresses) = addresses::by_interface() {
        assert!(addresses["lo"].contains(&"127.0.0.1".parse().unwrap()), "{addresses:?}");
    }
}

#[test]
fn facts_files_are_merged_key_by_key_later_over_earlier() {
    let directory = tempfile::tempdir().unwrap();
    let first = file(directory.path(), "1.json", br#"{"os": {"id": "mine"}, "tags": ["a", "b"], "role": "web"}"#);
    let second = file(directory.path(), "2.json", br#"{"tags": ["c"], "role": {"name": "db"}}"#);
    let node = Node::discover(Some(Identity::new("n1").unwrap()), &[first, second]).unwrap();
    assert_eq!(node.facts().value()["os"]["id"], "mine");
    assert_eq!(node.facts().value()["tags"], serde_json::json!(["c"]));
    assert_eq!(node.facts().value()["role"]["name"], "db");
    assert_eq!(node.facts().value()["identity"], "n1");
    assert!(node.facts().value()["arch"].is_string());
}

#[test]
fn a_bad_facts_file_is_refused_with_its_place() {
    let directory = tempfile::tempdir().unwrap();
    let refuse = |name: &str, content: &[u8]| {
        let path = file(directory.path(), name, content);
        let error = Node::discover(Some(Identity::new("n1").unwrap()), &[path]).unwrap_err();
        error.to_string()
    };
    let message = refuse("a.json", b"{\n  \"role\": web\n}");
    assert!(message.ends_with("a.json at line 2, column 11: expected value"), "{message}");
    let message = refuse("b.json", b"[1]");
    assert!(message.ends_with("b.json holds an array; it must hold one JSON object, such as {\"role\": \"web\"}"));
    assert!(refuse("c.json", b"").contains("at line 1, column 0: EOF while parsing a value"));
    assert!(refuse("d.json", b"{\"a\": 1} {}").contains("trailing characters"));
    assert!(refuse("e.json", &[b'['].repeat(100_000)).contains("recursion limit exceeded"));
    let missing = directory.path().join("missing.json");
    let error = Node::discover(None, &[missing]).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.starts_with("could not open ") && source.ends_with("missing.json"), "{source}");
}

#[test]
fn probes_follow_links_and_tell_files_from_directories() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "plain", b"");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    let dangling = directory.path().join("dangling");
    std::os::unix::fs::symlink("/nope/nope", &dangling).unwrap();
    let node = node(vec![]);
    assert!(node.has_file(&path).unwrap() && node.has_file(&link).unwrap());
    assert!(!node.has_file(&dangling).unwrap() && !node.has_file(directory.path()).unwrap());
    assert!(!node.has_file(&path.join("below")).unwrap());
    assert!(node.has_directory(directory.path()).unwrap() && !node.has_directory(&path).unwrap());
}

#[test]
fn what_can_not_be_looked_at_is_an_error_and_not_a_no() {
    let directory = tempfile::tempdir().unwrap();
    let circle = directory.path().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    assert!(node(vec![]).has_file(&circle).is_err());
    assert!(node(vec![directory.path().to_owned()]).has_command("circle").is_err());
}

#[test]
fn a_command_is_an_executable_file_in_the_search_path() {
    let directory = tempfile::tempdir().unwrap();
    let tool = file(directory.path(), "tool", b"");
    std::fs::create_dir(directory.path().join("folder")).unwrap();
    let node = node(vec!["/nope".into(), directory.path().to_owned()]);
    assert!(!node.has_command("tool").unwrap(), "not executable yet");
    std::fs::set_permissions(&tool, std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(node.has_command("tool").unwrap());
    assert!(node.has_command(tool.to_str().unwrap()).unwrap());
    for absent in ["folder", "nope", "", "./tool", "../tool"] {
        assert!(!node.has_command(absent).unwrap(), "{absent}");
    }
}

#[test]
fn reads_os_release_and_meminfo_and_survives_what_is_not_there() {
    let os = facts::os("ID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME='Debian GNU/Linux 13'\nX=1\nNAME=\"open\n");
    assert_eq!(os["id"], "debian");
    assert_eq!(os["version"], "13");
    assert_eq!(os["description"], "Debian GNU/Linux 13");
    assert_eq!(os["name"], "\"open");
    assert_eq!(facts::memory_bytes("MemTotal:       16 kB\n"), Some(16384));
    assert_eq!(facts::memory_bytes("MemTotal: many kB"), None);
}

#[test]
fn a_broken_netlink_reply_is_skipped() {
    for length in 0..200usize {
        for byte in [0u8, 1, 4, 16, 255] {
            addresses::parse(&vec![byte; length]);
        }
    }
    assert!(addresses::parse(&[]).last);
}

fn file(directory: &Path, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.join(name);
    crate::fs::write(&path, content, 0o644).unwrap();
    path
}

fn node(search_path: Vec<PathBuf>) -> Node {
    Node::new(Identity::new("web1.example.net").unwrap(), serde_json::json!({}), search_path.into())
}

#[tokio::test]
async fn facts_follow_their_files_and_stay_while_a_file_is_broken() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("facts.json");
    let node = Arc::new(Node::discover(Some(Identity::new("n1").unwrap()), &[]).unwrap());
    let mut changes = node.follow_facts();
    let following = tokio::spawn(follow(Arc::clone(&node), vec![path.clone()]));
    let mut write = async |content: &str, role: Option<&str>| {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        while changes.borrow().value()["role"].as_str() != role {
            assert!(tokio::time::Instant::now() < deadline, "{content}");
            // Written again and again: the task may not have begun to look yet.
            crate::fs::write(&path, content.as_bytes(), 0o644).unwrap();
            _ = tokio::time::timeout(std::time::Duration::from_secs(1), changes.changed()).await;
        }
    };
    write("{\"role\": \"web\"}", Some("web")).await;
    write("{\"role\": \"db\"}", Some("db")).await;
    crate::fs::write(&path, b"{broken", 0o644).unwrap();
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    assert_eq!(node.facts().value()["role"], "db");
    assert_eq!(node.facts().value()["identity"], "n1");
    write("{\"role\": \"mended\"}", Some("mended")).await;
    following.abort();
}
