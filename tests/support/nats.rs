//! A real nats-server with JetStream: its own port and directory, killed when dropped, stopped and started on the same
//! port at will.

#![allow(dead_code, reason = "shared by programs of which each uses a part")]

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tokio::net::TcpSocket;

/// Certificates of a server, in files.
pub struct Certificates {
    /// The authority that signed the server's certificate.
    pub ca: PathBuf,
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// Makes an authority and a certificate for `localhost` and `127.0.0.1` signed by it.
pub fn certificates(directory: &Path) -> Certificates {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
    fs::create_dir_all(directory).unwrap();
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let name = directory.display().to_string();
    authority.distinguished_name.push(rcgen::DnType::CommonName, name);
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let parameters = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let certificate = parameters.signed_by(&key, &issuer).unwrap();
    let write = |name: &str, content: String| {
        let path = directory.join(name);
        fs::write(&path, content).unwrap();
        path
    };
    Certificates {
        ca: write("ca.pem", authority_certificate.pem()),
        certificate: write("cert.pem", certificate.pem()),
        key: write("key.pem", key.serialize_pem()),
    }
}

/// A running, or stopped, server.
pub struct NatsServer {
    directory: tempfile::TempDir,
    /// Lines of the configuration file.
    configuration: String,
    port: Port,
    child: Option<Child>,
}

/// A port of our own, also while the server that listens on it is stopped: it stays bound, so that the system gives it
/// to nobody else who asks for any port, and both sides allow its reuse, so that the server may listen on it.
struct Port {
    number: u16,
    _bound: TcpSocket,
}

impl Port {
    fn reserve() -> Self {
        let bound = TcpSocket::new_v4().unwrap();
        bound.set_reuseaddr(true).unwrap();
        bound.bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
        Self { number: bound.local_addr().unwrap().port(), _bound: bound }
    }
}

impl NatsServer {
    /// An open server.
    pub fn start() -> Self {
        Self::with_configuration("")
    }

    /// A server with these further lines in its configuration (`authorization { token: t }`).
    pub fn with_configuration(configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut server =
            Self { directory, configuration: configuration.to_owned(), port: Port::reserve(), child: None };
        server.start_again();
        server
    }

    /// A server that speaks TLS only.
    pub fn with_tls(certificates: &Certificates) -> Self {
        let (certificate, key) = (certificates.certificate.display(), certificates.key.display());
        Self::with_configuration(&format!("tls {{ cert_file: {certificate:?}, key_file: {key:?} }}\n"))
    }

    /// A server's place that is not running yet; its port is known.
    pub fn stopped() -> Self {
        let (directory, port) = (tempfile::tempdir().unwrap(), Port::reserve());
        Self { directory, configuration: String::new(), port, child: None }
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port.number)
    }

    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Kills it, as a power cut would.
    pub fn stop(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it on its old port.
    pub fn start_again(&mut self) {
        assert!(self.child.is_none(), "the server runs already");
        let root = self.directory.path();
        let ports = root.join("ports");
        let _ = fs::remove_dir_all(&ports);
        fs::create_dir_all(&ports).unwrap();
        let configuration = root.join("server.conf");
        fs::write(&configuration, &self.configuration).unwrap();
        let log = fs::File::options().create(true).append(true).open(root.join("log")).unwrap();
        let port = self.port.number.to_string();
        let child = Command::new(binary())
            .args(["--addr", "127.0.0.1", "--port", &port, "--jetstream", "--store_dir"])
            .arg(root.join("data"))
            .arg("--ports_file_dir")
            .arg(&ports)
            .arg("--config")
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
        self.wait_for_port(&ports);
    }

    pub fn restart(&mut self) {
        self.stop();
        self.start_again();
    }

    /// Forgets all streams, as a server on a new disk would. Only while stopped.
    pub fn lose_data(&mut self) {
        assert!(self.child.is_none(), "stop the server first");
        fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }

    /// The server writes the file when it listens.
    fn wait_for_port(&mut self, ports: &Path) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let listens = fs::read_dir(ports).unwrap().filter_map(Result::ok).any(|file| {
                let content = fs::read_to_string(file.path()).unwrap_or_default();
                let ports = serde_json::from_str::<serde_json::Value>(&content).unwrap_or_default();
                ports["nats"][0].as_str().is_some_and(|url| url.ends_with(&format!(":{}", self.port.number)))
            });
            if listens {
                return;
            }
            let child = self.child.as_mut().unwrap();
            let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            if let Some(status) = child.try_wait().unwrap() {
                panic!("nats-server ended with {status}:\n{}", log());
            }
            assert!(Instant::now() < deadline, "nats-server does not listen:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn binary() -> PathBuf {
    if let Some(path) = std::env::var_os("NATS_SERVER_BIN") {
        return path.into();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |path| root.join(path));
    let ours = target.join("tools/nats-server");
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let installed = std::env::split_paths(&paths).map(|directory| directory.join("nats-server"));
    let found = std::iter::once(ours.clone()).chain(installed).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("{} is missing; run `make tools`", ours.display()))
}
