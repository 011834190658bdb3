//! What `mms` does for an operator who slips: private keys that others may read or see, passwords in clear text, and
//! secrets and left-overs in what every node gets.

#![cfg(test)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use machines::spec::SecretKey;

/// What it prints to standard error, and whether it succeeded.
fn mms(directory: &Path, words: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mms"));
    let output = command.env_clear().current_dir(directory).args(words).output().unwrap();
    (output.status.success(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_private_key_that_others_may_get_at_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    let secret = SecretKey::generate().unwrap();
    let key = directory.path().join("ops.key");
    fs::write(&key, secret.to_hex().as_str()).unwrap();
    fs::write(directory.path().join("machines.json"), "[]").unwrap();
    let pack = |words: &[&str]| mms(directory.path(), &[&["pack", "machines.json"], words].concat());
    let mode = |mode| fs::set_permissions(&key, fs::Permissions::from_mode(mode)).unwrap();
    for (bits, shown) in [(0o644, "0644"), (0o620, "0620"), (0o601, "0601")] {
        mode(bits);
        let (_, err) = pack(&["--key-file", "ops.key"]);
        let expected =
            format!("warning: others may read key file ops.key (mode {shown}), and sign what they like: chmod 600");
        assert!(err.contains(&expected), "{err}");
    }
    mode(0o600);
    let (ok, err) = pack(&["--key-file", "ops.key"]);
    assert!(ok && !err.contains("key file"), "{err}");
    std::os::unix::fs::chown(&key, Some(65_534), None).unwrap();
    let (_, err) = pack(&["--key-file", "ops.key"]);
    assert!(err.contains("key file ops.key belongs to another user"), "{err}");
    let (_, err) = pack(&[secret.to_hex().as_str()]);
    assert!(
        err.contains("every user of this host can see a key on the command line; give --key-file instead"),
        "{err}"
    );
    assert!(!err.contains(secret.to_hex().as_str()));
}

#[test]
fn secrets_and_left_overs_are_packed_only_when_they_are_included() {
    let directory = tempfile::tempdir().unwrap();
    let machine = directory.path().join("hello");
    fs::create_dir_all(machine.join("conf")).unwrap();
    let definition = "name: hello\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {name: t, from: [A], destination: A, \
                      description: x}\nwatchers:\n  - {name: w, type: exec, state_match: [A], interval: 10s, properties: \
                      {command: ./run.sh}}\n";
    fs::write(machine.join("machine.yaml"), definition).unwrap();
    fs::write(machine.join("run.sh"), "#!/bin/sh\n").unwrap();
    fs::write(machine.join(".env"), "DB=1\n").unwrap();
    fs::write(machine.join("run.sh~"), "#!/bin/sh\n").unwrap();
    fs::write(machine.join("conf/server.pem"), "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----\n")
        .unwrap();
    let build = |words: &[&str]| mms(directory.path(), &[&["archive", "build", "hello"], words].concat());
    let (ok, err) = build(&[]);
    assert!(!ok && !directory.path().join("hello-1.0.0.tgz").exists());
    for expected in [
        "\".env\", which holds passwords, by its name",
        "\"run.sh~\", which is a left-over of an editor",
        "\"conf/server.pem\", which holds a private key in PEM",
        "move them away, or give --include for what belongs: --include .env --include conf/server.pem --include 'run.sh~'",
    ] {
        assert!(err.contains(expected), "{expected}: {err}");
    }
    let (ok, err) = build(&["--include", ".env", "--include", "conf/*.pem"]);
    assert!(!ok && err.contains("run.sh~") && !err.contains(".env"), "{err}");
    let (ok, err) = build(&["--include", ".env", "--include", "conf/*.pem", "--include", "*~", "--include", "cnf"]);
    assert!(ok && err.starts_with("warning: --include \"cnf\" names nothing in hello\nwrote "), "{err}");
}

#[test]
fn a_password_that_travels_in_clear_text_is_warned_of() {
    let directory = tempfile::tempdir().unwrap();
    // No server is there; what counts is said before.
    let (_, err) = mms(directory.path(), &["kv", "ls", "--kv", "nats://ann:hunter2@127.0.0.2:1,nats://b.invalid:1"]);
    assert!(
        err.contains("warning: the password or token for nats://b.invalid:1 may travel in clear text: write tls://"),
        "{err}"
    );
    assert!(!err.contains("hunter2"), "{err}");
    let (_, err) = mms(directory.path(), &["kv", "ls", "--kv", "nats://ann:hunter2@127.0.0.1:1"]);
    assert!(!err.contains("clear text"), "{err}");
}
