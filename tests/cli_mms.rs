//! What the operator's program says: every command's help, its success and its failures, word for word, with exit codes.

#![cfg(test)]

mod support;
mod transcript;

use std::os::unix::fs::PermissionsExt as _;

use transcript::Scene;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/golden");
const HELLO: &str = "\
name: hello
version: 1.2.0
initial_state: GREET
transitions:
  - name: again
    from: [GREET]
    destination: GREET
watchers:
  - name: greet
    type: exec
    interval: 5s
    state_match: [GREET]
    properties:
      command: ./greet
";

/// A machine's directory and the example's keys.
fn scene() -> Scene {
    let scene = Scene::new();
    scene.write("hello/machine.yaml", HELLO);
    scene.write("hello/greet", "#!/bin/sh\necho hello\n");
    std::fs::set_permissions(scene.path("hello/greet"), std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in ["machines.json", "spec.json", "public-test-vector.secret", "public-test-vector.pub"] {
        scene.write(name, std::fs::read(format!("{GOLDEN}/{name}")).unwrap());
    }
    scene
}

#[test]
fn every_command_explains_itself_with_an_example() {
    let commands =
        ["", "keys", "pack", "verify", "match", "events", "archive", "archive build", "archive check", "archive put"];
    let kv = ["add", "put", "get", "create", "update", "del", "purge", "ls", "history", "watch", "status"];
    let kv = kv.iter().map(|command| format!("kv {command}"));
    let governor = ["", " add", " run", " view", " list", " evict", " reset", " delete"];
    let governor = governor.iter().map(|command| format!("governor{command}"));
    let mut scene = Scene::new();
    let commands = commands.iter().map(|command| (*command).to_owned()).chain(["kv".to_owned()]).chain(kv);
    for command in commands.chain(governor) {
        let line = format!("mms {command} --help").replace("  ", " ");
        scene.run(&line);
        let help = scene.prepare(&line);
        assert!(help.contains("Example: mms ") || command.is_empty(), "{help}");
        assert!(help.lines().all(|line| line.chars().count() <= 100), "wider than 100 columns: {help}");
    }
    scene.matches("mms/help");
}

#[test]
fn mistyped_commands_and_options_get_a_suggestion() {
    let mut scene = Scene::new();
    scene.run("mms").run("mms pakc").run("mms pack").run("mms kv pup A b c").run("mms archive biuld hello");
    scene.run("mms keys --uot x").run("mms kv ls --format yaml").run("mms --version");
    scene.matches("mms/usage");
}

#[test]
fn keys_are_printed_as_the_reference_prints_them() {
    let scene = Scene::new();
    let output = scene.prepare("mms keys");
    let pattern = regex::Regex::new("^ Public Key: ([0-9a-f]{64})\nPrivate Key: ([0-9a-f]{64})([0-9a-f]{64})\n$");
    let pattern = pattern.unwrap();
    let found = pattern.captures(&output).unwrap_or_else(|| panic!("{output}"));
    assert_eq!(found.get(1).unwrap().as_str(), found.get(3).unwrap().as_str());
    assert_ne!(output, scene.prepare("mms keys"));
}

#[test]
fn keys_in_files_are_private_and_never_replaced() {
    let mut scene = Scene::new();
    scene.run("mms keys --out ops.2026").run("mms keys --out ops.2026").run("rm ops.2026.key; mms keys --out ops.2026");
    scene.run("ls").run("mms keys --out absent/ops");
    scene.matches("mms/keys");
    scene.prepare("mms keys --out new");
    let mode = |name: &str| scene.path(name).metadata().unwrap().permissions().mode() & 0o777;
    assert_eq!((mode("new.key"), mode("new.pub")), (0o600, 0o644));
    let secret = std::fs::read_to_string(scene.path("new.key")).unwrap();
    let public = std::fs::read_to_string(scene.path("new.pub")).unwrap();
    assert_eq!((secret.len(), public.len()), (129, 65));
    assert!(secret.ends_with(&public));
}

#[test]
fn packing_the_example_gives_its_envelope_byte_for_byte() {
    let scene = scene();
    let expected = std::fs::read(format!("{GOLDEN}/spec.json")).unwrap();
    let expected = [expected.trim_ascii_end(), b"\n"].concat();
    for line in [
        "mms pack machines.json $(cat public-test-vector.secret)",
        "mms pack machines.json --key-file public-test-vector.secret",
        "KEY=$(cat public-test-vector.secret) mms pack machines.json",
        "mms pack - $(cat public-test-vector.secret) <machines.json",
        "KEY=wrong mms pack machines.json --key-file public-test-vector.secret",
    ] {
        let output = scene.output(line);
        assert_eq!(output.stdout, expected, "{line}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(0));
        let warnings = String::from_utf8(output.stderr).unwrap();
        assert!(warnings.contains("warning: the key is that of the example in the documentation"), "{warnings}");
    }
}

#[test]
fn verifying_the_example_names_the_key_that_signed_it() {
    let scene = scene();
    let key = std::fs::read_to_string(format!("{GOLDEN}/public-test-vector.pub")).unwrap();
    let key = key.trim();
    for argument in [key, "public-test-vector.pub"] {
        let answer = scene.prepare(&format!("mms verify spec.json {argument}"));
        assert_eq!(answer, format!("Data file spec.json is signed using {key}\n"));
    }
    let answer = scene.prepare("mms verify spec.json public-test-vector.pub --format json");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["signed_by"], key);
    assert_eq!((&answer["machines"], answer["digest"].as_str().unwrap().len()), (&1.into(), 64));
}

#[test]
fn packing_warns_of_what_is_allowed_but_unwise() {
    let mut scene = scene();
    scene.write("empty.json", "[]\n");
    let digest = "0".repeat(64);
    let entry = |name: &str, more: &str| {
        format!(r#"{{"name": "{name}", "checksum": "{digest}", "verify_checksum": "{digest}", {more}}}"#)
    };
    let plain = entry("plain", r#""source": "http://a/x.tgz""#);
    let password = entry("secret", r#""source": "http://a/x.tgz", "username": "u", "password": "hunter2""#);
    scene.write("unwise.json", format!("[\n  {plain},\n  {password}\n]\n"));
    scene.prepare("mms keys --out ops");
    scene
        .run("mms pack machines.json")
        .run("mms pack machines.json --force")
        .run("mms pack empty.json --key-file ops.key");
    scene
        .run("mms pack unwise.json --key-file ops.key")
        .run("mms pack machines.json --key-file ops.key | mms verify - ops.pub");
    scene.matches("mms/pack_warnings");
}

#[test]
fn packing_shows_every_fault_at_its_place_and_packs_nothing() {
    let mut scene = Scene::new();
    scene.write(
        "faults.json",
        r#"[
  {
    "name": "..",
    "source": "ftp://files.example.net/é.tgz",
    "checksum": "F11EA2005DE97BF309BAFAC46E77C01925307A26675F44F388D4502D2B9D00BF",
    "verify_checksum": 5,
    "match": "identity('^web') && has_comand('facter')"
  },
  {"name": "tmp", "sorce": "https://files.example.net/x.tgz", "match": "identity('(')"},
  null
]
"#,
    );
    scene.write("syntax.json", "[\n  {\"name\": \"é\" \"x\"}\n]\n");
    scene.write("object.json", "{}\n");
    scene.write("many.json", format!("[{}]", vec!["null"; 60].join(",\n")));
    scene.run("mms pack faults.json --force").run("mms pack syntax.json --force").run("mms pack object.json --force");
    scene.write("spec.json", std::fs::read(format!("{GOLDEN}/spec.json")).unwrap());
    scene.run("mms pack spec.json --force");
    scene.run("mms pack many.json --force 2>&1 | tail -1").run("mms pack absent.json").run("printf '' | mms pack -");
    scene.matches("mms/pack_faults");
}

#[test]
fn a_bad_key_is_refused_and_never_repeated() {
    let mut scene = scene();
    scene.run("mms pack machines.json 5ec4e7").run("KEY=5ec4e7 mms pack machines.json");
    scene
        .run("mms pack machines.json --key-file public-test-vector.pub")
        .run("mms pack machines.json --key-file absent");
    scene.run("mms pack machines.json $(tr 0-9 1-90 <public-test-vector.secret) 2>&1");
    scene.run("mms pack machines.json 5ec4e7 --key-file public-test-vector.secret");
    scene
        .run("mms verify spec.json $(cat public-test-vector.secret) 2>&1")
        .run("mms verify spec.json public-test-vector.secret");
    scene.run("mms verify spec.json 5ec4e7").run("mms verify spec.json absent.pub");
    scene.run(&format!("mms verify spec.json {}", "0".repeat(64)));
    scene.matches("mms/bad_keys");
}

#[test]
fn verifying_refuses_and_says_why() {
    let mut scene = scene();
    scene.prepare("mms keys --out ops");
    scene.run("printf '' | mms verify - ops.pub").run(&format!("mms verify spec.json {}g", "0".repeat(127)));
    scene.write("text.json", "{\"machines\": \"bm9=\", \"signature\": \"00\"}");
    scene.run("mms verify spec.json").run("mms verify spec.json ops.pub").run("mms verify absent.json ops.pub");
    scene
        .run("mms pack machines.json --force | mms verify - ops.pub")
        .run("mms pack machines.json --force | mms verify -");
    scene.run("mms verify machines.json ops.pub").run("mms verify text.json ops.pub");
    scene.run("sed 's/Wwogew/Wwogfw/' spec.json >changed.json; mms verify changed.json public-test-vector.pub");
    scene.matches("mms/verify");
}

#[test]
fn a_good_signature_over_a_list_that_nodes_refuse_is_no_good_specification() {
    let mut scene = Scene::new();
    // Signed by another program: `mms pack` would not.
    let secret = machines::spec::SecretKey::generate().unwrap();
    let payload = b"[\n  {\"name\": \"../etc\"}\n]\n";
    let signature: String = secret.sign(payload).iter().map(|byte| format!("{byte:02x}")).collect();
    let encoded = "WwogIHsibmFtZSI6ICIuLi9ldGMifQpdCg==";
    scene.write("spec.json", format!(r#"{{"machines":"{encoded}","signature":"{signature}"}}"#));
    scene.write("ops.pub", secret.public_key().to_hex());
    scene.run("mms verify spec.json ops.pub");
    scene.matches("mms/verify_content");
}

#[test]
fn matching_shows_what_each_function_returned() {
    let mut scene = Scene::new();
    scene.write("facts.json", r#"{"role": "web"}"#);
    scene.write("list.json", "[]");
    scene.run("mms match \"identity('^web') && has_command('uname')\" --identity web1 --facts facts.json");
    scene.run("mms match \"not has_file('/nope') and identity('^db')\" --identity web1");
    scene
        .run("mms match '' --identity web1")
        .run("mms match \"identity('^web') or has_file('/x')\" --identity web1 --format json");
    scene
        .run("mms match \"has_comand('x')\" --identity web1")
        .run("mms match \"identity('(')\" --identity web1 --format json");
    scene.run("mms match \"len('a')\" --identity web1").run("mms match true --identity 'a b'");
    scene.run("mms match true --facts list.json").run("mms match true --facts absent.json");
    scene.matches("mms/match");
}

#[test]
fn an_archive_is_built_checked_and_ready_for_the_list() {
    let mut scene = scene();
    scene.run("mms archive build hello --source https://files.example.net/machines/");
    scene.run("mms archive check hello-1.2.0.tgz --name hello").run("mms archive check hello-1.2.0.tgz --format json");
    scene.run("mms archive build hello --output out 2>&1 >entry.json").run("grep source entry.json");
    scene.run("cmp hello-1.2.0.tgz out/hello-1.2.0.tgz");
    scene.run("(echo [; cat entry.json; echo ]) >list.json; mms pack list.json --force");
    scene.matches("mms/archive");
}

/// An archive of one file, which is as it should be; what is in it may not be.
fn write_archive(scene: &Scene, name: &str, file: &str, content: &str) {
    let sums = format!("{}  {file}\n", machines::digest::Sha256Digest::of(content.as_bytes()));
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut archive = tar::Builder::new(gzip);
    for (file, content) in [("SHA256SUMS", sums.as_str()), (file, content)] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, format!("{name}/{file}"), content.as_bytes()).unwrap();
    }
    scene.write(&format!("{name}.tgz"), archive.into_inner().unwrap().finish().unwrap());
}

#[test]
fn what_is_no_good_archive_is_refused_with_the_reason() {
    let mut scene = scene();
    scene.prepare("mms archive build hello 2>&1");
    let zeros = "0".repeat(64);
    scene.run("mms archive check hello-1.2.0.tgz --name facts");
    scene.run(&format!("mms archive check hello-1.2.0.tgz --checksum {zeros}"));
    scene.run(&format!("mms archive check hello-1.2.0.tgz --verify-checksum {zeros}"));
    scene.run("mms archive check hello-1.2.0.tgz --checksum 12").run("mms archive check hello-1.2.0.tgz --name ..");
    scene.run("mms archive check machines.json --format json").run("mms archive check absent.tgz");
    let whole = std::fs::read(scene.path("hello-1.2.0.tgz")).unwrap();
    scene.write("cut.tgz", whole.get(..100).unwrap());
    scene.run("mms archive check cut.tgz");
    // Whole archives that hold no machine, another one than they say, or one that can't run.
    write_archive(&scene, "none", "file", "x");
    write_archive(&scene, "other", "machine.yaml", &HELLO.replace("name: hello", "name: facts"));
    let broken = HELLO.replace("name: hello", "name: broken").replace("state_match: [GREET]", "state_match: [GRET]");
    write_archive(&scene, "broken", "machine.yaml", &broken);
    scene.write("broken/machine.yaml", &broken);
    for name in ["none", "other", "broken"] {
        scene.run(&format!("mms archive check {name}.tgz"));
    }
    scene
        .run("mms archive build broken")
        .run("mms archive build absent")
        .run("mms archive build hello --output hello/out");
    scene
        .run("mms archive build hello --source ftp://files.example.net")
        .run("mms archive build hello --output machines.json");
    scene.run("ln -s /etc/passwd hello/link; mms archive build hello");
    scene.matches("mms/archive_refused");
}

#[test]
fn archives_are_stored_as_objects() {
    let mut scene = scene();
    scene.prepare("mms archive build hello 2>&1");
    let put = "mms archive put --kv local:kv.db";
    scene
        .run(&format!("{put} hello-1.2.0.tgz ARCHIVES"))
        .run(&format!("{put} hello-1.2.0.tgz ARCHIVES/stable/hello.tgz"));
    scene.run(&format!("{put} hello/greet ARCHIVES")).run(&format!("{put} hello/greet ARCHIVES --force"));
    scene.run(&format!("{put} hello-1.2.0.tgz 'A B'")).run(&format!("{put} absent.tgz ARCHIVES"));
    scene.matches("mms/archive_put");
}

#[test]
fn the_store_is_read_and_written_from_the_command_line() {
    let mut scene = scene();
    scene.prepare("mms keys --out ops");
    scene
        .run("mms --kv local:kv.db kv add MACHINES")
        .run("mms kv add SMALL --history 1 --ttl 2h --max-value-size 1KiB --kv local:kv.db --format json");
    for line in [
        "mms pack machines.json --key-file ops.key | mms kv put MACHINES machines -",
        "mms kv get MACHINES machines --raw | mms verify - ops.pub",
        "mms kv put MACHINES region north",
        "mms kv get MACHINES region",
        "mms kv get MACHINES region --format json",
        "mms kv update MACHINES region -1 2",
        "mms kv create MACHINES zone a",
        "mms kv ls",
        "mms kv ls MACHINES",
        "mms kv keys MACHINES --format json",
        "mms kv del MACHINES region",
        "mms kv create MACHINES region east",
        "mms kv history MACHINES region",
        "mms kv history MACHINES zone --format json",
        "mms kv purge MACHINES region",
        "mms kv history MACHINES region",
        "printf '\\377' | mms kv put SMALL binary - >/dev/null; mms kv get SMALL binary --format json",
        "mms kv status MACHINES",
        "mms kv status SMALL --format json",
        "mms kv del SMALL --force",
        "mms kv ls --format json",
    ] {
        scene.run_with("export MACHINES_KV=local:kv.db", line);
    }
    scene.matches("mms/kv");
}

#[test]
fn a_bucket_is_followed_while_it_changes() {
    let mut scene = Scene::new();
    scene.prepare("mms kv add A --kv local:kv.db");
    scene.prepare("mms kv put A web.one 1 --kv local:kv.db");
    let follower = scene.follow("mms kv watch A 'web.*' --kv local:kv.db");
    scene.next_line(&follower);
    for change in ["put A db 2", "put A web.two 'a\tb'", "del A web.one", "purge A web.two"] {
        scene.prepare(&format!("mms kv {change} --kv local:kv.db"));
        if change.contains("web") {
            scene.next_line(&follower);
        }
    }
    scene.matches("mms/kv_watch");
    let follower = scene.follow("mms kv watch A db --kv local:kv.db --format json");
    let line = scene.next_line(&follower);
    let document: serde_json::Value = serde_json::from_str(&line).unwrap();
    assert_eq!(document["value"], "2");
}

#[test]
fn the_same_commands_work_over_nats() {
    let server = support::nats::NatsServer::with_configuration("authorization { user: ann, password: hunter2 }");
    let mut scene = scene();
    scene.prepare("mms archive build hello 2>&1");
    let url = server.url();
    let address = url.strip_prefix("nats://").unwrap();
    for line in [
        "mms kv ls",
        "mms kv add MACHINES --history 2",
        "mms kv add MACHINES",
        "mms pack machines.json --force | mms kv put MACHINES machines -",
        "mms kv update MACHINES machines new 1",
        "mms kv update MACHINES machines newer 1",
        "mms kv create MACHINES machines other",
        "mms kv get MACHINES machines --raw",
        "mms kv get MACHINES absent",
        "mms kv history MACHINES machines",
        "mms kv ls MACHINES",
        "mms kv status NOPE",
        "mms archive put hello-1.2.0.tgz ARCHIVES",
        "mms kv del MACHINES --force",
        "mms kv ls",
        "NATS_PASSWORD=wrong mms kv ls 2>&1 | sed 's/:[0-9]*:/:PORT:/'",
    ] {
        scene.run_with(&format!("export NATS_URL={url} NATS_USER=ann NATS_PASSWORD=hunter2"), line);
    }
    scene.matches("mms/kv_nats");
    // As a part of the address, too, a password is not repeated.
    let refused = scene.output(&format!("mms kv ls --kv nats://ann:hunter3@{address}"));
    let message = String::from_utf8(refused.stderr).unwrap();
    assert!(message.contains(address) && !message.contains("hunter3"), "{message}");
}

#[test]
fn what_the_store_refuses_is_said_with_a_remedy() {
    let mut scene = Scene::new();
    scene.run("mms kv ls --kv local:kv.db").run("mms kv put A b c --kv local:absent/kv.db");
    scene.prepare("mms kv add SMALL --max-value-size 4 --kv local:kv.db");
    scene.prepare("mms kv put SMALL key one --kv local:kv.db");
    scene.write("damaged.db", "not a database, but long enough to be taken for one, if nobody looks\n".repeat(20));
    for line in [
        "mms kv add SMALL",
        "mms kv add 'A B'",
        "mms kv add B --history 0",
        "mms kv add B --ttl soon",
        "mms kv add B --ttl 1ms",
        "mms kv add B --max-value-size 1XB",
        "mms kv get SMALL nokey",
        "mms kv get SMALL 'a b'",
        "mms kv get NOPE key",
        "mms kv get SMALL key --raw --format json",
        "mms kv put SMALL key 'too long'",
        "printf '' | mms kv put SMALL key -",
        "mms kv create SMALL key two",
        "mms kv update SMALL key two 7",
        "mms kv update SMALL key two seven",
        "mms kv del SMALL",
        "mms kv del SMALL nokey",
        "mms kv del NOPE --force",
        "mms kv purge SMALL nokey",
        "mms kv history SMALL nokey",
        "mms kv watch NOPE",
        "mms kv watch SMALL 'a..b'",
        "mms kv watch SMALL 'a*'",
        "mms kv status NOPE",
        "mms kv ls --kv local:damaged.db",
        "mms kv ls --kv local:",
        "mms kv ls --kv http://me:hunter2@127.0.0.1",
        "NATS_USER=me mms kv ls --kv nats://127.0.0.1:1",
        "NATS_CONTEXT=lab mms kv ls --kv nats://127.0.0.1:1",
        "NATS_CREDS=absent.creds mms kv ls --kv nats://127.0.0.1:1",
        "mms kv ls --kv nats://me:hunter2@127.0.0.1:1",
        "NATS_URL=nats://127.0.0.1:1 MACHINES_KV= mms kv ls",
    ] {
        scene.run_with("export MACHINES_KV=local:kv.db", line);
    }
    scene.matches("mms/kv_refused");
}

#[test]
fn a_reader_that_goes_away_ends_the_program_quietly() {
    let scene = Scene::new();
    scene.prepare("mms kv add A --kv local:kv.db");
    let output = scene.output("for i in $(seq 50); do mms kv status A --kv local:kv.db; done | head -1");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "bucket          A\n");
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}

#[test]
fn governors_are_made_shown_used_and_deleted_in_the_embedded_store() {
    let mut scene = Scene::new();
    scene.replacing(&[(r"\b\d+s {7,8}", "[AGO]  "), (r"@ \S+\b", "@ [HOST]")]);
    scene.prepare("mkdir state");
    let on = "export MACHINES_KV=local:state/kv.db";
    scene.run_with(on, "mms governor list").run_with(on, "mms governor add UPDATES 2 10m");
    scene.run_with(on, "mms governor add UPDATES 3 1h --format json").run_with(on, "mms governor list");
    scene.run_with(on, "mms governor run UPDATES -- sh -c 'mms governor view UPDATES; exit 3'");
    scene.run_with(on, "mms governor run UPDATES -- mms governor reset UPDATES");
    scene.run_with(on, "mms governor view UPDATES --format json").run_with(on, "mms governor evict UPDATES 1");
    scene.run_with(on, "mms governor list --format json").run_with(on, "mms governor delete UPDATES");
    scene.run_with(on, "mms governor view UPDATES").run_with(on, "mms governor run UPDATES -- true");
    scene.run_with(on, "mms governor add UPDATES 0 10m").run_with(on, "mms governor add UPDATES 1 10");
    scene.run_with(on, "mms governor add a.b 1 10m").run_with(on, "mms governor run UPDATES");
    scene.matches("mms/governor");
}
