//! Every secret that settings, a specification or a machine may hold, and every place where people, monitors or other users
//! look: it is in none of them. `-- --nocapture` prints the table.

#![cfg(test)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use machines::kv::{self, BucketSettings, ConnectionSettings, Target};
use machines::spec::SecretKey;
use support::daemon::{Daemon, Printed, text};
use support::nats::NatsServer;

/// Where a secret was put, and the secret.
type Secrets = Vec<(&'static str, String)>;

fn secret(name: &str) -> String {
    format!("hunter2{}", name.replace(|character: char| !character.is_ascii_alphanumeric(), ""))
}

/// What was found where: for each secret the places that were looked at.
#[derive(Default)]
struct Findings {
    places: BTreeMap<&'static str, Vec<String>>,
    leaks: Vec<String>,
}

impl Findings {
    fn look(&mut self, secrets: &Secrets, place: &str, content: &str) {
        for (name, secret) in secrets {
            let places = self.places.entry(name).or_default();
            if !places.iter().any(|known| known == place) {
                places.push(place.to_owned());
            }
            if content.contains(secret.as_str()) {
                let lines = content.lines().filter(|line| line.contains(secret.as_str())).take(2);
                self.leaks.push(format!("{name} is in {place}: {:?}", lines.collect::<Vec<_>>()));
            }
        }
    }

    fn end(self) {
        for (name, places) in &self.places {
            println!("| {name} | {} |", places.join(", "));
        }
        assert!(self.leaks.is_empty(), "\n{}\n", self.leaks.join("\n"));
    }
}

/// A server that sends everybody on, to an address with a secret in it.
fn redirecting(location: String) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut request = [0; 4096];
            _ = stream.read(&mut request);
            let answer = format!("HTTP/1.1 302 Found\r\nlocation: {location}\r\ncontent-length: 0\r\n\r\n");
            _ = stream.write_all(answer.as_bytes());
        }
    });
    port
}

/// A machine with an archive that can't be fetched and a command that runs for long, both with secrets.
fn write_machine(directory: &Path, port: u16) {
    let machine = format!(
        "name: own\nversion: 1.0.0\ninitial_state: A\ntransitions:\n  - {{name: t, from: [A], destination: A, description: x}}\n\
         watchers:\n\
         - name: fetch\n  type: archive\n  interval: 10s\n  properties:\n    \
           source: http://127.0.0.1:{port}/b.tgz?key={}#{}\n    username: me\n    password: {}\n    creates: tool\n    \
           target: {}\n    checksum: {digest}\n    verify_checksum: {digest}\n\
         - name: run\n  type: exec\n  interval: 10s\n  properties:\n    command: sh -c 'sleep 60; true'\n    timeout: 70s\n    \
           environment:\n      - DB_PASSWORD={}\n",
        secret("archive query"),
        secret("archive fragment"),
        secret("archive password"),
        directory.ancestors().nth(2).unwrap().join("target").display(),
        secret("environment"),
        digest = "ab".repeat(32),
    );
    fs::create_dir_all(directory).unwrap();
    fs::write(directory.join("machine.yaml"), machine).unwrap();
}

/// The arguments of every process of this host, as any user sees them.
fn processes() -> String {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let words = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    words.map(|words| String::from_utf8_lossy(&words).replace('\0', " ") + "\n").collect()
}

fn metrics(port: u16, token: &str) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nauthorization: Bearer {token}\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("machinesd_build_info"), "{answer}");
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_daemon_shows_no_secret_anywhere() {
    let secrets: Secrets = [
        "kv url",
        "http token",
        "source query",
        "source fragment",
        "entry password",
        "location",
        "archive query",
        "archive fragment",
        "archive password",
        "environment",
    ]
    .map(|name| (name, secret(name)))
    .into();
    let server =
        NatsServer::with_configuration(&format!("authorization {{ user: ann, password: {} }}\n", secret("kv url")));
    let url = format!("nats://ann:{}@127.0.0.1:{}", secret("kv url"), server.port());
    let root = tempfile::tempdir().unwrap();
    let port = redirecting(format!("https://a:{0}@127.0.0.1:1/?token={0}", secret("location")));
    let key = SecretKey::generate().unwrap();
    let digest = "ab".repeat(32);
    let list = serde_json::json!([{"name": "far", "checksum": digest, "verify_checksum": digest,
        "source": format!("http://127.0.0.1:{port}/a.tgz?token={}#{}", secret("source query"), secret("source fragment")),
        "username": "me", "password": secret("entry password")}]);
    let packed = machines::spec::pack(list.to_string().as_bytes(), Some(&key)).unwrap();
    kv::install_tls_provider();
    let store = kv::open(&ConnectionSettings::new(Target::parse(&url).unwrap())).await.unwrap();
    let bucket =
        BucketSettings { name: "MACHINES".to_owned(), history: 1, ttl: None, replicas: 1, maximum_value_bytes: None };
    let bucket = store.create_bucket(&bucket).await.unwrap();
    bucket.put("machines", packed.envelope.into()).await.unwrap();

    let mut daemon = Daemon::new(root.path(), "web1", &url);
    daemon.trust(&[key.public_key().to_hex()]);
    daemon.set("log", "level", "trace");
    let token = format!("{}{}", secret("http token"), "x".repeat(32));
    fs::write(root.path().join("token"), &token).unwrap();
    machines::fs::set_mode(&root.path().join("token"), 0o600).unwrap();
    let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    daemon.set("http", "listen", &format!("127.0.0.1:{http}"));
    daemon.set("http", "token_file", root.path().join("token").to_str().unwrap());
    write_machine(&root.path().join("local/own"), port);
    daemon.start().await;
    let status = daemon
        .until("all has failed that can", |status| {
            let own = status["machines"].as_array().unwrap().iter().find(|each| each["machine"]["name"] == "own");
            let watchers = own.map(|own| own["machine"]["watchers"].to_string()).unwrap_or_default();
            status["sync"]["machines"]["far"]["state"] == "failed" && watchers.contains("redirects to")
        })
        .await;
    assert!(text(&status, "/sync/machines/far/last_error").contains("/a.tgz?…"), "{status:#}");

    let mut findings = Findings::default();
    for words in [
        &["status"][..],
        &["status", "--format", "json"],
        &["status", "--check"],
        &["why", "far"],
        &["why", "far", "--format", "json"],
        &["why", "own"],
        &["why", "own", "--format", "json"],
        &["events"],
        &["events", "--format", "json"],
        &["sync"],
        &["sync", "--format", "json"],
    ] {
        let Printed { out, err, .. } = daemon.run(words);
        findings.look(&secrets, &format!("`{}`", words.join(" ")), &format!("{out}{err}"));
    }
    let argv = processes();
    assert!(argv.contains("sleep 60"), "the command runs: {argv}");
    findings.look(&secrets, "arguments of processes", &argv);
    findings.look(&secrets, "/metrics", &metrics(http, &token));
    let log = fs::read_to_string(root.path().join("log")).unwrap();
    assert!(log.contains("redirects to"), "{log}");
    findings.look(&secrets, "the log at trace", &log);
    findings.end();
}

/// Runs a program with settings that are at fault, and gives what it says.
fn complaint(root: &Path, settings: &str, environment: &[(&str, &str)]) -> String {
    fs::write(root.join("settings.toml"), settings).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
    command.args(["run", "--once", "--config"]).arg(root.join("settings.toml"));
    let output = command.env_clear().envs(environment.iter().copied()).output().unwrap();
    assert!(!output.status.success(), "{settings}");
    let printed = Printed::from(output);
    assert!(!printed.err.is_empty());
    format!("{}{}", printed.out, printed.err)
}

#[test]
fn settings_that_are_at_fault_are_told_of_without_their_secrets() {
    let root = tempfile::tempdir().unwrap();
    let mut findings = Findings::default();
    let state = format!("state_dir = \"{}\"\n", root.path().join("state").display());
    let private = SecretKey::generate().unwrap().to_hex().to_string();
    let seed = private[..64].to_owned();
    let nkey = "SUAMK2FG4MI6UE3ACF3FK3OIQBCEIEZV7NSWFFEW63UXMRLFM2XLAXK4GY".to_owned();
    for (name, section, key, value, secret) in [
        ("[kv] password", "kv", "password", secret("password"), secret("password")),
        ("[kv] token", "kv", "token", secret("token"), secret("token")),
        ("[kv] nkey", "kv", "nkey", nkey.clone(), nkey.clone()),
        ("[kv] url", "kv", "url", format!("nats://ann:{}@a:4222", secret("url")), secret("url")),
        ("[kv] url without a scheme", "kv", "url", format!("ann:{}@a:x", secret("url2")), secret("url2")),
        ("[kv] url without a host", "kv", "url", format!("nats://ann:{}", secret("url3")), secret("url3")),
        ("[fetch] proxy", "fetch", "proxy", format!("http://me:{}@a:b", secret("proxy")), secret("proxy")),
        ("[fetch] proxy without a scheme", "fetch", "proxy", format!("me:{}@a:1", secret("proxy2")), secret("proxy2")),
        ("a private key in public_keys", "trust", "public_keys", private.clone(), private),
        ("the seed of one in public_keys", "trust", "public_keys", seed.clone(), seed),
        ("an nkey seed in public_keys", "trust", "public_keys", nkey.clone(), nkey),
    ] {
        let secrets = vec![(name, secret)];
        for (place, line) in [
            ("a syntax error on its line", format!("{key} = \"{value}\" x\n")),
            ("a list", format!("{key} = [\"{value}\", 5]\n")),
            ("a table", format!("{key} = {{ a = \"{value}\" }}\n")),
            ("an unknown key", format!("{key}x = \"{value}\"\n")),
            ("a text that is not closed", format!("{key} = \"{value}\n")),
            ("its own value", format!("{key} = \"{value}\"\nurl = \"local\"\n")),
            ("another fault of its section", format!("{key} = \"{value}\"\nnonsense = 1\n")),
            ("a list of it", format!("{key} = [\"{value}\"]\n")),
        ] {
            let said = complaint(root.path(), &format!("{state}[{section}]\n{line}"), &[]);
            findings.look(&secrets, place, &said);
        }
        let variable = format!("MACHINESD_{section}_{key}").to_uppercase();
        let trust = format!("{state}[sync]\ninterval = \"0s\"\n");
        findings.look(&secrets, "its variable", &complaint(root.path(), &trust, &[(&variable, &value)]));
        let misspelt = format!("{variable}X");
        findings.look(&secrets, "a misspelt variable", &complaint(root.path(), &trust, &[(&misspelt, &value)]));
    }
    findings.end();
}

#[test]
fn faults_of_machines_and_lists_are_told_without_their_secrets() {
    let root = tempfile::tempdir().unwrap();
    let mut findings = Findings::default();
    let secrets: Secrets =
        ["source user", "source query", "password", "misspelt"].map(|name| (name, secret(name))).into();
    let source = format!("https://me:{}@a/b?token={}", secret("source user"), secret("source query"));
    let machine = format!(
        "name: m\nversion: 1.0.0\ninitial_state: A\nwatchers:\n  - {{name: w, type: archive, properties: {{source: \
         \"{source}\", password: \"{0}\", passwrd: \"{1}\", checksum: 5}}}}\n  - name: v\n    type: archive\n    \
         properties:\n      password: {0}\n      passwrd: {1}\n      source: {source}\n",
        secret("password"),
        secret("misspelt"),
    );
    fs::write(root.path().join("machine.yaml"), machine).unwrap();
    for format in ["text", "json", "sarif"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_machinesd"));
        let printed: Printed = command.args(["validate", "--format", format]).arg(root.path()).output().unwrap().into();
        assert_eq!(printed.code, Some(1));
        findings.look(&secrets, &format!("`validate --format {format}`"), &format!("{}{}", printed.out, printed.err));
    }
    let list = format!(
        "[{{\"name\": \"m\", \"source\": \"{source}\", \"password\": \"{}\", \"passwrd\": \"{}\", \"checksum\": \"x\"}}]",
        secret("password"),
        secret("misspelt"),
    );
    fs::write(root.path().join("machines.json"), list).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_mms"));
    let printed: Printed = command.arg("pack").arg(root.path().join("machines.json")).output().unwrap().into();
    assert_eq!(printed.code, Some(1));
    findings.look(&secrets, "`mms pack`", &format!("{}{}", printed.out, printed.err));
    findings.end();
}

#[test]
fn mms_tells_of_a_store_without_its_secrets() {
    let mut findings = Findings::default();
    let secrets: Secrets = ["url", "password", "token"].map(|name| (name, secret(name))).into();
    let url = format!("nats://ann:{}@127.0.0.1:1", secret("url"));
    let bad = format!("nats://ann:{}", secret("url"));
    let runs = [
        (url.as_str(), vec![]),
        (bad.as_str(), vec![]),
        ("nats://127.0.0.1:1", vec![("NATS_USER", "ann".to_owned()), ("NATS_PASSWORD", secret("password"))]),
        ("nats://127.0.0.1:1", vec![("NATS_PASSWORD", secret("password"))]),
        ("nats://127.0.0.1:1", vec![("NATS_TOKEN", secret("token"))]),
    ];
    // All at once, since each waits for a connection.
    let started = runs.map(|(url, environment)| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_mms"));
        command.env_clear().envs(environment).env("MACHINES_KV", url).args(["kv", "ls"]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped()).spawn().unwrap()
    });
    for child in started {
        let printed = Printed::from(child.wait_with_output().unwrap());
        assert_ne!(printed.code, Some(0));
        findings.look(&secrets, "`mms kv ls`", &format!("{}{}", printed.out, printed.err));
    }
    findings.end();
}
