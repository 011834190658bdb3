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
    assert_eq!(*node.search_path, SEARCH_PATH.map(PathBuf::from), "whatever PATH says");
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
    let os = built_in::os("ID=debian\nVERSION_ID=\"13\"\nPRETTY_NAME='Debian GNU/Linux 13'\nX=1\nNAME=\"open\n");
    assert_eq!(os["id"], "debian");
    assert_eq!(os["version"], "13");
    assert_eq!(os["description"], "Debian GNU/Linux 13");
    assert_eq!(os["name"], "\"open");
    assert_eq!(built_in::memory_bytes("MemTotal:       16 kB\n"), Some(16384));
    assert_eq!(built_in::memory_bytes("MemTotal: many kB"), None);
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
async fn facts_follow_their_files_and_can_not_be_used_while_a_file_is_broken_or_gone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("facts.json");
    let files = Arc::new(FactsFiles::listed(std::slice::from_ref(&path), directory.path()));
    let node = Arc::new(Node::observe(Some(Identity::new("n1").unwrap()), &files).unwrap());
    // It never was there.
    assert_eq!(node.facts().query("role"), Ok(None));
    assert_eq!(node.facts().query("identity"), Ok(Some("n1".into())));
    let mut changes = node.follow_facts();
    let following = tokio::spawn(follow(Arc::clone(&node), files));
    let mut until = async |change: &dyn Fn(), expected: Result<&str, &str>| {
        let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
        loop {
            let found = changes.borrow_and_update().query("role");
            match (&found, expected) {
                (Ok(Some(role)), Ok(expected)) if role == expected => return,
                (Err(error), Err(expected)) if error.to_string().ends_with(expected) => return,
                _ => assert!(tokio::time::Instant::now() < deadline, "{expected:?}: {found:?}"),
            }
            // Again and again: the task may not have begun to look yet.
            change();
            _ = tokio::time::timeout(std::time::Duration::from_secs(1), changes.changed()).await;
        }
    };
    let write = |content: &'static [u8]| {
        let path = path.clone();
        move || crate::fs::write(&path, content, 0o644).unwrap()
    };
    until(&write(b"{\"role\": \"web\"}"), Ok("web")).await;
    until(&write(b"{\"role\": \"db\"}"), Ok("db")).await;
    until(&write(b"{broken"), Err("facts.json at line 1, column 2: key must be a string")).await;
    assert_eq!(node.facts().value()["role"], "db", "commands are shown what was known last");
    let since = node.facts().unusable().unwrap().since;
    let remove = || _ = std::fs::remove_file(&path);
    until(&remove, Err("was there and is gone; put it back, or take it out of `facts` in the settings")).await;
    assert_eq!(node.facts().unusable().unwrap().since, since, "they have been unusable since then");
    until(&write(b"{\"role\": \"mended\"}"), Ok("mended")).await;
    assert_eq!(node.facts().unusable(), None);
    following.abort();
}

#[test]
fn a_facts_file_that_was_there_before_a_restart_and_is_gone_is_not_an_empty_one() {
    let (etc, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (etc.path().join("one.json"), etc.path().join("two.json"));
    let observe = |listed: &[&PathBuf]| {
        let listed: Vec<PathBuf> = listed.iter().copied().cloned().collect();
        Node::observe(Some(Identity::new("n1").unwrap()), &FactsFiles::listed(&listed, state.path())).unwrap().facts()
    };
    assert_eq!(observe(&[&one, &two]).query("role"), Ok(None), "neither ever was");
    file(etc.path(), "one.json", br#"{"role": "web"}"#);
    assert_eq!(observe(&[&one, &two]).query("role"), Ok(Some("web".into())), "the other still never was");
    std::fs::remove_file(&one).unwrap();
    let facts = observe(&[&one, &two]);
    let message = facts.query("identity").unwrap_err().to_string();
    let gone = "was there and is gone; put it back, or take it out of `facts` in the settings";
    assert!(message.starts_with("the facts can't be used: facts file ") && message.ends_with(gone), "{message}");
    assert_eq!(facts.text(), "", "no answer for commands either");
    // Who takes it out of the settings and lists it again later starts anew.
    assert_eq!(observe(&[&two]).query("role"), Ok(None));
    assert_eq!(observe(&[&one, &two]).query("role"), Ok(None));
}

#[test]
fn a_record_of_facts_files_that_can_not_be_read_is_no_proof_that_they_never_were() {
    let (etc, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let path = etc.path().join("one.json");
    let record = file(state.path(), RECORD_NAME, b"[");
    let observe = || {
        let files = FactsFiles::listed(std::slice::from_ref(&path), state.path());
        Node::observe(Some(Identity::new("n1").unwrap()), &files).unwrap().facts()
    };
    let message = observe().query("role").unwrap_err().to_string();
    assert!(message.contains("tells whether it ever was, can't be read: EOF while parsing"), "{message}");
    assert!(message.ends_with("put the file there, or remove the record if it never was"), "{message}");
    file(etc.path(), "one.json", b"{}");
    assert_eq!(observe().query("role"), Ok(None));
    assert_eq!(std::fs::read_to_string(record).unwrap(), format!("[{path:?}]"));
}

#[test]
fn one_facts_file_that_can_not_be_used_makes_all_facts_unusable() {
    let directory = tempfile::tempdir().unwrap();
    let good = file(directory.path(), "good.json", br#"{"role": "web"}"#);
    for (content, reason) in [
        (&b"{\"a\": 1"[..], "bad.json at line 1, column 7: EOF while parsing an object"),
        (b"[]", "bad.json holds an array; it must hold one JSON object, such as {\"role\": \"web\"}"),
        (&[b' '; 4 * 1024 * 1024 + 1], "it is larger than the limit of 4194304 bytes"),
    ] {
        let bad = file(directory.path(), "bad.json", content);
        let files = FactsFiles::listed(&[good.clone(), bad], directory.path());
        let facts = Node::observe(Some(Identity::new("n1").unwrap()), &files).unwrap().facts();
        let message = facts.query("role").unwrap_err().to_string();
        assert!(message.ends_with(reason), "{message}");
    }
}

#[test]
fn a_facts_file_that_others_may_write_can_not_be_used_and_the_mending_command_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = file(directory.path(), "facts.json", br#"{"role": "web"}"#);
    let observe = || {
        let files = FactsFiles::listed(std::slice::from_ref(&path), directory.path());
        Node::observe(Some(Identity::new("n1").unwrap()), &files).unwrap().facts().query("role")
    };
    assert_eq!(observe(), Ok(Some("web".into())));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    let message = observe().unwrap_err().to_string();
    assert!(
        message.contains("could not read a facts file: ") && message.contains("everyone may write to"),
        "{message}"
    );
    assert!(message.ends_with(&format!("`chmod o-w {}`", path.display())), "{message}");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
    std::os::unix::fs::chown(&path, Some(65_534), Some(65_534)).unwrap();
    let message = observe().unwrap_err().to_string();
    assert!(message.contains("belongs to user 65534") && message.contains("`chown -h root "), "{message}");
}
