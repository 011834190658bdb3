//! What `packager/` promises: the list of what is compiled in becomes code or a clear refusal, the unit runs under systemd
//! and lets agents manage the host, and the packages find their files. In: the files of `packager/`, good and bad lists.
//!
//! The generator is the same source that `build.rs` runs, so no list here needs a build of the project.

#![cfg(test)]

#[path = "../packager/generator.rs"]
mod generator;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use generator::{Generated, generate, refusal};

const KEY: &str = "1e85719c6959eb0f2c8f2166e30ae952ccaef2c286f31868ea1d311d3738a339";

#[test]
fn the_projects_own_list_names_its_kinds_and_its_manager() {
    let list = fs::read_to_string(root().join(generator::LIST)).unwrap();
    let kinds: Vec<&str> = machines::watchers::KINDS.iter().map(|kind| kind.name).collect();
    let project = project_with(&kinds);
    let definition = fs::read_to_string(root().join("machines/manager/machine.yaml")).unwrap();
    add(project.path(), "machines/manager/machine.yaml", &definition);
    let generated = generate(&list, project.path(), None).unwrap();
    assert!(kinds.contains(&"kv") && kinds.contains(&"machines"), "{kinds:?}");
    for kind in kinds {
        assert!(generated.kinds.contains(&format!("    {kind}::KIND,\n")), "{}", generated.kinds);
    }
    assert!(generated.builtin.contains("name: \"manager\""), "{}", generated.builtin);
    assert!(generated.builtin.contains("COMPILED_PUBLIC_KEY: Option<&str> = None;"), "{}", generated.builtin);
}

#[test]
fn a_good_list_becomes_code_that_compiles_and_has_what_the_list_says() {
    let project = project_with(&["kv", "timer"]);
    add(project.path(), "src/watchers/exec/mod.rs", "");
    add(project.path(), "machines/manager/machine.yaml", "name: manager\nversion: 1.0.0\n");
    let list = "watchers: [kv, exec, timer]\nmachines: {manager: machines/manager}\n";
    let generated = generate(list, project.path(), Some(&KEY.to_uppercase())).unwrap();
    let checks = format!(
        "#![deny(warnings)]\n#![allow(dead_code)]\n\
         pub struct Kind {{ pub name: &'static str }}\n\
         pub mod kv {{ pub const KIND: super::Kind = super::Kind {{ name: \"kv\" }}; }}\n\
         pub mod exec {{ pub const KIND: super::Kind = super::Kind {{ name: \"exec\" }}; }}\n\
         pub mod timer {{ pub const KIND: super::Kind = super::Kind {{ name: \"timer\" }}; }}\n\
         include!(\"kinds.rs\");\ninclude!(\"builtin.rs\");\n\
         fn main() {{\n\
             let kinds: Vec<_> = KINDS.iter().map(|kind| kind.name).collect();\n\
             assert_eq!(kinds, [\"kv\", \"exec\", \"timer\"]);\n\
             let manager = BuiltinMachine {{ name: \"manager\", definition: \"name: manager\\nversion: 1.0.0\\n\" }};\n\
             assert_eq!(BUILTIN_MACHINES, [manager]);\n\
             assert_eq!(COMPILED_PUBLIC_KEY, Some({KEY:?}));\n\
         }}\n"
    );
    let output = compile(project.path(), &generated, &checks);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let ran = Command::new(project.path().join("checks")).output().unwrap();
    assert!(ran.status.success(), "{}", text(&ran.stderr));
}

#[test]
fn an_empty_list_is_a_list() {
    let project = project_with(&[]);
    let generated = generate("watchers: []\nmachines: {}\n", project.path(), None).unwrap();
    let checks = "pub struct Kind;\ninclude!(\"kinds.rs\");\ninclude!(\"builtin.rs\");\n\
                  fn main() { assert!(KINDS.is_empty() && BUILTIN_MACHINES.is_empty()) }\n";
    let output = compile(project.path(), &generated, checks);
    assert!(output.status.success(), "{}", text(&output.stderr));
}

#[test]
fn a_bad_list_is_refused_with_the_place_and_the_reason() {
    let outside = tempfile::tempdir().unwrap();
    add(outside.path(), "machine.yaml", "name: linked\n");
    let project = project_with(&["kv"]);
    add(project.path(), "machines/good/machine.yaml", "name: good\n");
    add(project.path(), "machines/other/machine.yaml", "name: another\n");
    add(project.path(), "machines/broken/machine.yaml", "name: [\n");
    add(project.path(), "machines/files/machine.yaml", "name: files\n");
    add(project.path(), "machines/files/run.sh", "");
    add(project.path(), "machines/empty/readme", "");
    std::os::unix::fs::symlink(outside.path(), project.path().join("machines/linked")).unwrap();
    let watchers = |kinds: &str| format!("watchers: {kinds}\nmachines: {{}}\n");
    let machines = |machines: &str| format!("watchers: []\nmachines: {machines}\n");
    let path_rule = "must be a plain relative path inside the project, without . and ..";
    let cases = [
        (watchers("[kv, gossip]"), "watcher \"gossip\" is unknown: there is neither src/watchers/gossip.rs nor".into()),
        (watchers("[kv, kv]"), "watcher \"kv\" is listed twice: remove one of the two".into()),
        (watchers("[mod]"), "watcher \"mod\" can't be the name of a watcher kind".into()),
        (watchers("[\"\"]"), "watcher \"\" can't be the name of a watcher kind".into()),
        (watchers("[../../etc/passwd]"), "watcher \"../../etc/passwd\" can't be the name".into()),
        (watchers("[\"kv::KIND, evil\"]"), "watcher \"kv::KIND, evil\" can't be the name".into()),
        (watchers("kv"), format!("{}:", generator::LIST)),
        (machines("{good: ../good}"), format!("machine \"good\": \"../good\" {path_rule}")),
        (machines("{good: machines/../machines/good}"), path_rule.into()),
        (machines("{good: ./machines/good}"), path_rule.into()),
        (machines("{good: /machines/good}"), path_rule.into()),
        (machines("{good: \"\"}"), path_rule.into()),
        (machines("{gone: machines/gone}"), "machine \"gone\": could not find the directory machines/gone:".into()),
        (machines("{empty: machines/empty}"), "could not read machines/empty/machine.yaml: No such file".into()),
        (machines("{broken: machines/broken}"), "machine \"broken\": machines/broken/machine.yaml:".into()),
        (machines("{other: machines/other}"), "has the name \"another\": use one name for both".into()),
        (machines("{files: machines/files}"), "has \"run.sh\" beside machine.yaml".into()),
        (machines("{linked: machines/linked}"), "machines/linked leads out of the project through a symbolic".into()),
        (machines("{good: machines/good, GOOD: machines/good}"), "is listed twice, but for upper and lower".into()),
        (machines("{good: machines/good, good: machines/good}"), "duplicate".into()),
        (machines("{\"a/b\": machines/good}"), "machine \"a/b\" can't be the name of a machine".into()),
        (machines("[good]"), format!("{}:", generator::LIST)),
        ("watchers: []\n".into(), "machines".into()),
        ("watchers: []\nmachines: {}\nplugins: []\n".into(), "plugins".into()),
        (String::new(), format!("{}:", generator::LIST)),
        ("watchers: [\n".into(), format!("{}:", generator::LIST)),
    ];
    for (list, expected) in cases {
        let faults = generate(&list, project.path(), None).expect_err(&list).join("\n");
        assert!(faults.contains(&expected), "{list}\nexpected: {expected}\ngot: {faults}");
        assert!(faults.starts_with(generator::LIST), "{faults}");
    }
}

#[test]
fn every_fault_of_a_list_is_told_at_once() {
    let project = project_with(&[]);
    let list = "watchers: [kv, exec]\nmachines: {a: .., b: machines/b}\n";
    assert_eq!(generate(list, project.path(), Some("")).unwrap_err().len(), 5);
}

#[test]
fn a_public_key_that_could_not_protect_a_node_is_refused() {
    let project = project_with(&[]);
    let refused =
        |key: &str| generate("watchers: []\nmachines: {}\n", project.path(), Some(key)).unwrap_err().join("\n");
    let not_digits = "MACHINES_PUBLIC_KEY must be 64 hex digits, and is ";
    for key in ["", "64", &KEY[1..], &format!("{KEY}00"), &KEY.replace('1', "g"), &format!("{} ", &KEY[1..])] {
        let fault = refused(key);
        assert!(fault.starts_with(not_digits), "{key:?}: {fault}");
        assert!(fault.ends_with("give the public key that `mms keys` printed, or unset it"), "{fault}");
        assert!(key.len() < 60 || !fault.contains(key), "a value that may be a private key is not repeated: {fault}");
    }
    let fault = refused(&machines::spec::EXAMPLE_PUBLIC_KEY.to_uppercase());
    assert!(fault.contains("is the documentation's example key, whose private half everyone has"), "{fault}");
}

#[test]
fn a_refused_list_stops_the_build_with_the_compilers_own_error() {
    let project = project_with(&[]);
    let faults = generate("watchers: [gossip]\nmachines: {}\n", project.path(), None).unwrap_err();
    let checks = "pub struct Kind;\ninclude!(\"kinds.rs\");\nfn main() { _ = KINDS; }\n";
    let output = compile(project.path(), &refusal(&faults), checks);
    let message = text(&output.stderr);
    assert!(!output.status.success());
    assert!(message.contains("aborting due to 1 previous error"), "one fault, one error: {message}");
    assert!(message.contains("error: packager/plugins.yaml: watcher \"gossip\" is unknown"), "{message}");
    let output = compile(project.path(), &refusal(&faults), "include!(\"builtin.rs\");\nfn main() {}\n");
    assert!(!output.status.success(), "both files refuse");
}

#[test]
fn the_unit_is_a_watched_service_that_stops_in_time_and_comes_back() {
    let unit = unit(&read("packager/systemd/machinesd.service"));
    let expected = [
        ("Type", "notify"),
        ("NotifyAccess", "main"),
        ("ExecStart", "/usr/bin/machinesd run --config /etc/machines/machinesd.toml"),
        ("ExecReload", "/bin/kill -HUP $MAINPID"),
        ("WatchdogSec", "30s"),
        ("Restart", "on-failure"),
        ("KillMode", "mixed"),
        ("Delegate", "yes"),
        ("TimeoutStopSec", "15s"),
        ("StateDirectory", "machines"),
        ("RuntimeDirectory", "machines"),
        // Without a path: a node that has no credentials starts all the same.
        ("LoadCredential", "machinesd-nats.creds"),
    ];
    for (key, value) in expected {
        assert_eq!(unit.get(key).map(String::as_str), Some(value), "{key}");
    }
    assert!(read("packager/systemd/nats-credentials.conf").contains("MACHINESD_KV_CREDS=%d/machinesd-nats.creds\n"));
}

#[test]
fn the_unit_lets_agents_manage_the_host() {
    let unit = unit(&read("packager/systemd/machinesd.service"));
    let mounts = ["ProtectSystem", "ProtectHome", "PrivateTmp", "PrivateDevices", "PrivateMounts", "ProtectKernelLogs"];
    let mounts = mounts.into_iter().chain(["ProtectKernelModules", "ProtectKernelTunables", "ProtectControlGroups"]);
    let others =
        ["NoNewPrivileges", "RestrictSUIDSGID", "MemoryDenyWriteExecute", "RestrictNamespaces", "ProtectClock"];
    for key in mounts.chain(others).chain(["User", "DynamicUser", "ReadOnlyPaths", "DeviceAllow"]) {
        assert_eq!(unit.get(key), None, "{key} would keep agents from managing the host");
    }
}

/// That each key is shown with its default is a test of `src/config`.
#[test]
fn the_settings_file_is_toml_with_every_setting_in_force_and_says_what_each_is_for() {
    let shipped = read("packager/machinesd.toml");
    let is_setting = |line: &str| {
        line.split_once(" = ").is_some_and(|(key, _)| key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'))
    };
    let in_force = |line| str::strip_prefix(line, "# ").filter(|line| is_setting(line)).unwrap_or(line);
    let complete: Vec<&str> = shipped.lines().map(in_force).collect();
    assert_ne!(complete.join("\n"), shipped.trim_end(), "some have no default, and are comments");
    toml::from_str::<toml::Table>(&complete.join("\n")).unwrap();
    for line in shipped.lines().filter(|line| line.contains(" = ")) {
        assert!(line.contains("  # "), "each setting says what it is for: {line}");
    }
}

#[test]
fn the_packages_find_their_files_and_keep_the_operators_settings() {
    let cargo: toml::Table = toml::from_str(&read("Cargo.toml")).unwrap();
    let metadata = cargo["package"]["metadata"].as_table().unwrap();
    for kind in ["deb", "generate-rpm"] {
        let assets = metadata[kind]["assets"].as_array().unwrap();
        for source in assets.iter().map(|asset| asset["source"].as_str().unwrap()) {
            let is_built = source == "target/release/machinesd" || source == "target/release/mms";
            assert!(is_built || root().join(source).is_file(), "{kind}: {source} is not there");
        }
    }
    assert_eq!(metadata["deb"]["conf-files"][0].as_str(), Some("/etc/machines/machinesd.toml"));
    let settings = metadata["generate-rpm"]["assets"].as_array().unwrap();
    let settings = settings.iter().find(|asset| asset["source"].as_str() == Some("packager/machinesd.toml")).unwrap();
    assert_eq!(settings["config"].as_str(), Some("noreplace"));
    assert!(read("packager/deb/postinst").contains("\n#DEBHELPER#\n"), "cargo-deb puts the unit's steps there");
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn add(directory: &Path, path: &str, content: &str) {
    let path = directory.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, content).unwrap();
}

/// A project with nothing but files of these watcher kinds.
fn project_with(kinds: &[&str]) -> tempfile::TempDir {
    let project = tempfile::tempdir().unwrap();
    add(project.path(), "src/watchers/mod.rs", "");
    for kind in kinds {
        add(project.path(), &format!("src/watchers/{kind}.rs"), "");
    }
    project
}

/// Compiles `checks` beside the generated files into the program `checks`.
fn compile(project: &Path, generated: &Generated, checks: &str) -> Output {
    fs::write(project.join("kinds.rs"), &generated.kinds).unwrap();
    fs::write(project.join("builtin.rs"), &generated.builtin).unwrap();
    fs::write(project.join("checks.rs"), checks).unwrap();
    Command::new("rustc")
        .args(["--edition", "2024", "-o", "checks", "checks.rs"])
        .env("CARGO_MANIFEST_DIR", project)
        .current_dir(project)
        .output()
        .unwrap()
}

/// The settings of a unit file by name; a name that comes twice keeps its last value.
fn unit(text: &str) -> BTreeMap<String, String> {
    let is_setting = |line: &&str| !line.is_empty() && !line.starts_with(['#', '[']);
    let settings = text.lines().filter(is_setting).map(|line| line.split_once('=').unwrap());
    settings.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}
