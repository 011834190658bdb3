//! Fetching from servers that fail, lie, dawdle or send us elsewhere: each ends with a message that a person can act on,
//! and without a file.

#![cfg(test)]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use machines::archive::{FetchError, FetchSettings, Fetched, Fetcher};
use machines::digest::Sha256Digest;
use machines::kv::{Bucket, BucketSettings, Connection, KvError, ObjectReader, Store};
use machines::secret::{Secret, SecretUrl};
use machines::spec::{Credentials, Source};
use url::Url;

mod http;
use http::{Answer, Server};

const BODY: &[u8] = b"the archive";

/// Limits of time that no machine is too slow for, and a small one of size.
fn settings() -> FetchSettings {
    FetchSettings {
        connect_timeout: Duration::from_secs(20),
        deadline: Duration::from_secs(60),
        minimum_rate_bytes_per_second: 1024,
        minimum_rate_window: Duration::from_secs(20),
        maximum_bytes: 1024 * 1024,
        ..FetchSettings::default()
    }
}

struct Case {
    directory: tempfile::TempDir,
    settings: FetchSettings,
    objects: Option<Arc<dyn Store>>,
}

impl Case {
    fn new() -> Self {
        Self { directory: tempfile::tempdir().unwrap(), settings: settings(), objects: None }
    }
    fn target(&self) -> PathBuf {
        self.directory.path().join("fetched")
    }
    /// For servers that are too slow whatever the machine: their tests end soon.
    fn impatient() -> Self {
        let settings = FetchSettings { minimum_rate_window: Duration::from_millis(300), ..settings() };
        Self { settings, ..Self::new() }
    }
    async fn fetch(&self, source: &Source, credentials: Option<&Credentials>) -> Result<Fetched, FetchError> {
        let fetcher = Fetcher::new(self.settings.clone(), self.objects.clone())?;
        fetcher.fetch(source, credentials, &self.target()).await
    }
    async fn accepts(&self, source: &Source) {
        let fetched = self.fetch(source, None).await.unwrap();
        assert_eq!(fetched, Fetched { digest: Sha256Digest::of(BODY), bytes: BODY.len() as u64 });
        assert_eq!(std::fs::read(self.target()).unwrap(), BODY);
        std::fs::remove_file(self.target()).unwrap();
    }
    async fn refuses(&self, source: &Source, message: &str) {
        let error = printed(&self.fetch(source, None).await.unwrap_err());
        assert!(error.contains(message), "expected {message:?}, got: {error}");
        assert!(!self.target().exists(), "no file is left");
    }
}

/// The error as `main` prints it: with its causes.
fn printed(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn url(scheme: &str, port: u16, path: &str) -> Source {
    Source::Http(SecretUrl::new(Url::parse(&format!("{scheme}://127.0.0.1:{port}{path}")).unwrap()))
}

async fn server(path: &str, answer: Answer) -> (Server, Source) {
    let server = Server::start().await;
    server.answer(path, answer);
    let source = url("http", server.port, path);
    (server, source)
}

#[tokio::test]
async fn fetches_and_hashes_into_a_file_that_only_we_can_read() {
    let (_server, source) = server("/a.tgz", Answer::ok(BODY)).await;
    let case = Case::new();
    let fetched = case.fetch(&source, None).await.unwrap();
    assert_eq!(fetched.digest, Sha256Digest::of(BODY));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(case.target()).unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_fetcher_serves_several_tasks_at_once() {
    let (_server, source) = server("/a.tgz", Answer::ok(BODY)).await;
    let case = Case::new();
    let fetcher = Arc::new(Fetcher::new(case.settings.clone(), None).unwrap());
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..8 {
        let (fetcher, source) = (Arc::clone(&fetcher), source.clone());
        let target = case.directory.path().join(index.to_string());
        tasks.spawn(async move { fetcher.fetch(&source, None, &target).await.unwrap().digest });
    }
    assert_eq!(tasks.join_all().await, [Sha256Digest::of(BODY); 8]);
}

#[tokio::test]
async fn does_not_overwrite_a_file() {
    let (_server, source) = server("/a.tgz", Answer::ok(BODY)).await;
    let case = Case::new();
    std::fs::write(case.target(), b"mine").unwrap();
    let error = printed(&case.fetch(&source, None).await.unwrap_err());
    assert!(error.contains("could not create") && error.contains("File exists"), "{error}");
    assert_eq!(std::fs::read(case.target()).unwrap(), b"mine");
}

#[tokio::test]
async fn any_status_but_200_is_refused() {
    for status in ["404 Not Found", "500 Internal Server Error", "206 Partial Content", "304 Not Modified"] {
        let (_server, source) = server("/a.tgz", Answer::status(status)).await;
        Case::new().refuses(&source, &format!("/a.tgz answered {status} instead of 200")).await;
    }
    let (_server, source) = server("/a.tgz", Answer::Bytes(b"SSH-2.0-OpenSSH\r\n".to_vec())).await;
    Case::new().refuses(&source, "could not request http://127.0.0.1:").await;
}

#[tokio::test]
async fn a_truncated_body_is_an_error() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Bytes(answer)).await;
    Case::new().refuses(&source, "/a.tgz broke off after 5 bytes").await;
    let answer = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nshort\r\n".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Bytes(answer)).await;
    Case::new().refuses(&source, "/a.tgz broke off after 5 bytes").await;
}

#[tokio::test]
async fn an_endless_body_ends_at_the_size_cap() {
    let (_server, source) = server("/a.tgz", Answer::Endless(b"HTTP/1.1 200 OK\r\n\r\n".to_vec())).await;
    Case::new().refuses(&source, "/a.tgz is larger than the limit of 1048576 bytes").await;
}

#[tokio::test]
async fn a_length_over_the_cap_is_refused_before_the_body() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1048577\r\n\r\n".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Stall(answer)).await;
    Case::new().refuses(&source, "/a.tgz is larger than the limit of 1048576 bytes").await;
}

#[tokio::test]
async fn a_drip_of_single_bytes_is_too_slow() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Drip(answer, Duration::from_millis(20))).await;
    let case = Case::impatient();
    case.refuses(&source, "/a.tgz is too slow: ").await;
    case.refuses(&source, "bytes in 300ms, less than 1024 bytes per second").await;
}

#[tokio::test]
async fn a_stalled_body_is_too_slow_and_a_silent_server_gives_no_answer() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nabc".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Stall(answer)).await;
    let mut case = Case::impatient();
    case.refuses(&source, "/a.tgz is too slow: 3 bytes in 300ms").await;
    let (_server, source) = server("/a.tgz", Answer::Stall(Vec::new())).await;
    case.settings.connect_timeout = Duration::from_secs(2);
    case.refuses(&source, "/a.tgz did not begin to answer within 2s").await;
}

#[tokio::test]
async fn a_fetch_ends_at_its_deadline() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    let (_server, source) = server("/a.tgz", Answer::Drip(answer, Duration::from_millis(5))).await;
    let mut case = Case::new();
    case.settings.minimum_rate_bytes_per_second = 1;
    case.settings.deadline = Duration::from_millis(700);
    case.refuses(&source, "/a.tgz was not done within 700ms").await;
}

#[tokio::test]
async fn a_cancelled_fetch_leaves_no_file() {
    let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n".to_vec();
    let (server, source) = server("/a.tgz", Answer::Stall(answer)).await;
    let case = Case::new();
    let mut fetch = Box::pin(case.fetch(&source, None));
    let requested = async {
        while server.requests().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        _ = &mut fetch => panic!("the server never answers in full"),
        () = requested => assert!(case.target().exists()),
    }
    drop(fetch);
    assert!(!case.target().exists());
}

#[tokio::test]
async fn follows_five_redirects_and_not_six() {
    let server = Server::start().await;
    for hop in 0..6 {
        server.answer(&format!("/{hop}"), Answer::redirect(&format!("/{}", hop + 1)));
    }
    server.answer("/6", Answer::ok(BODY));
    let case = Case::new();
    case.accepts(&url("http", server.port, "/1")).await;
    case.refuses(&url("http", server.port, "/0"), "/0 redirects more than 5 times").await;
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let (server, source) = server("/a", Answer::redirect("/a")).await;
    Case::new().refuses(&source, "/a redirects more than 5 times").await;
    assert_eq!(server.requests().len(), 6);
}

#[tokio::test]
async fn a_redirect_to_another_scheme_is_refused() {
    for (to, shown) in
        [("file:///etc/passwd", "file:///etc/passwd"), ("https://127.0.0.1:1/x", "https://127.0.0.1:1/x")]
    {
        let (_server, source) = server("/a", Answer::redirect(to)).await;
        Case::new().refuses(&source, &format!("redirects to {shown}; redirects to another scheme")).await;
    }
    let (_server, source) = server("/a", Answer::redirect("http://[bad")).await;
    Case::new().refuses(&source, "redirects to no valid location").await;
    let (_server, source) = server("/a", Answer::status("302 Found")).await;
    Case::new().refuses(&source, "redirects to no valid location").await;
}

fn credentials() -> Credentials {
    Credentials { username: "user".into(), password: Secret::new("secret") }
}

fn has_credentials(request: &str) -> bool {
    // Basic authentication of user:secret.
    request.to_ascii_lowercase().contains("authorization: basic dxnlcjpzzwnyzxq=")
}

#[tokio::test]
async fn credentials_go_to_the_source_and_along_on_the_same_server() {
    let server = Server::start().await;
    server.answer("/a", Answer::redirect("/b"));
    server.answer("/b", Answer::ok(BODY));
    Case::new().fetch(&url("http", server.port, "/a"), Some(&credentials())).await.unwrap();
    let requests = server.requests();
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|request| has_credentials(request)), "{requests:?}");
}

#[tokio::test]
async fn credentials_never_go_to_another_host_or_port_nor_back_again() {
    let (first, second) = (Server::start().await, Server::start().await);
    first.answer("/a", Answer::redirect(&format!("http://user:secret@127.0.0.1:{}/b", second.port)));
    second.answer("/b", Answer::redirect(&format!("http://localhost:{}/c", first.port)));
    first.answer("/c", Answer::ok(BODY));
    Case::new().fetch(&url("http", first.port, "/a"), Some(&credentials())).await.unwrap();
    assert!(has_credentials(&first.requests()[0]));
    assert!(!second.requests()[0].to_ascii_lowercase().contains("authorization"));
    assert!(!first.requests()[1].to_ascii_lowercase().contains("authorization"));
}

#[tokio::test]
async fn messages_hide_secrets_in_urls() {
    let server = Server::start().await;
    let text = format!("http://user:secret@127.0.0.1:{}/a.tgz?token=hidden", server.port);
    let source = Source::Http(SecretUrl::new(Url::parse(&text).unwrap()));
    let error = Case::new().fetch(&source, None).await.unwrap_err().to_string();
    assert!(error.contains(&format!("http://127.0.0.1:{}/a.tgz?… answered 404", server.port)), "{error}");
    assert!(!error.contains("secret") && !error.contains("hidden"), "{error}");
    assert!(has_credentials(&server.requests()[0]), "what the URL says is used");
}

#[tokio::test]
async fn compression_on_the_way_is_not_asked_for_nor_undone() {
    let answer = [b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 11\r\n\r\n", BODY].concat();
    let (server, source) = server("/a.tgz", Answer::Bytes(answer)).await;
    Case::new().accepts(&source).await;
    assert!(server.requests()[0].to_ascii_lowercase().contains("accept-encoding: identity"));
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    // Bound, so that nobody else gets the port, and not listened on.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = socket.local_addr().unwrap().port();
    Case::new().refuses(&url("http", port, "/a"), "could not connect to http://127.0.0.1:").await;
}

/// The same, with something to fetch.
async fn tls_server(names: &[&str]) -> (Server, String) {
    let (server, authority) = http::tls_server(names).await;
    server.answer("/a", Answer::ok(BODY));
    (server, authority)
}

fn with_ca(pem: &str) -> Case {
    let mut case = Case::new();
    let path = case.directory.path().join("ca.pem");
    std::fs::write(&path, pem).unwrap();
    case.settings.ca = Some(path);
    case
}

#[tokio::test]
async fn a_configured_authority_is_trusted() {
    let (server, pem) = tls_server(&["127.0.0.1"]).await;
    with_ca(&pem).accepts(&url("https", server.port, "/a")).await;
}

#[tokio::test]
async fn a_certificate_of_an_unknown_authority_is_refused() {
    let (server, _) = tls_server(&["127.0.0.1"]).await;
    let (_same_name, same_name_pem) = tls_server(&["127.0.0.1"]).await;
    let (_other, other_pem) = tls_server(&["elsewhere.example"]).await;
    let message = "the server's certificate is not trusted: no authority that is trusted here has signed it; \
                   set [fetch] ca";
    with_ca(&other_pem).refuses(&url("https", server.port, "/a"), message).await;
    with_ca(&same_name_pem).refuses(&url("https", server.port, "/a"), message).await;
    assert!(server.requests().is_empty(), "nothing was sent");
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused() {
    let (server, pem) = tls_server(&["elsewhere.example"]).await;
    with_ca(&pem).refuses(&url("https", server.port, "/a"), "it is for another host name").await;
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_refused() {
    let (server, pem) = tls_server(&["127.0.0.1"]).await;
    server.answer("/down", Answer::redirect("http://127.0.0.1:1/x"));
    with_ca(&pem).refuses(&url("https", server.port, "/down"), "redirects to http://127.0.0.1:1/x; redirects to").await;
}

#[tokio::test]
async fn unusable_settings_are_refused_at_start() {
    let mut case = Case::new();
    case.settings.ca = Some("/nonexistent/ca.pem".into());
    case.refuses(&url("http", 1, "/"), "could not read the authorities' certificates of [fetch] ca").await;
    with_ca("no certificate").refuses(&url("http", 1, "/"), "holds no valid PEM certificate").await;
    let block = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    with_ca(block).refuses(&url("http", 1, "/"), "holds no valid PEM certificate").await;
    let mut case = Case::new();
    case.settings.proxy = Some(SecretUrl::new(Url::parse("ftp://proxy.example").unwrap()));
    case.refuses(&url("http", 1, "/"), "[fetch] proxy is not a proxy's URL: the scheme is \"ftp\"").await;
}

#[tokio::test]
async fn the_proxy_of_the_settings_is_used() {
    let proxy = Server::start().await;
    proxy.answer("http://archives.example/a.tgz", Answer::ok(BODY));
    let mut case = Case::new();
    case.settings.proxy =
        Some(SecretUrl::new(Url::parse(&format!("http://me:word@127.0.0.1:{}", proxy.port)).unwrap()));
    case.accepts(&Source::Http(SecretUrl::new(Url::parse("http://archives.example/a.tgz").unwrap()))).await;
    assert!(proxy.requests()[0].to_ascii_lowercase().contains("proxy-authorization: basic "));
    let message = "could not connect to https://archives.example/a.tgz";
    case.refuses(&Source::Http(SecretUrl::new(Url::parse("https://archives.example/a.tgz").unwrap())), message).await;
}

#[tokio::test]
async fn a_file_is_fetched_when_it_is_a_regular_one_within_the_cap() {
    let case = Case::new();
    let path = case.directory.path().join("a.tgz");
    let source = Source::File(path.clone());
    case.refuses(&source, "could not read file:///").await;
    case.refuses(&source, "No such file").await;
    std::fs::write(&path, BODY).unwrap();
    case.accepts(&source).await;
    std::fs::write(&path, vec![0; 1024 * 1024 + 1]).unwrap();
    case.refuses(&source, "is larger than the limit of 1048576 bytes").await;
    case.refuses(&Source::File(case.directory.path().to_owned()), "is not a regular file").await;
    let pipe = case.directory.path().join("pipe");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let started = Instant::now();
    case.refuses(&Source::File(pipe), "is not a regular file").await;
    assert!(started.elapsed() < case.settings.deadline / 2, "a pipe does not block");
}

/// An object store whose only object breaks, never ends or is whole.
enum Objects {
    Whole,
    Endless,
    Silent,
}

#[async_trait::async_trait]
impl Store for Objects {
    fn bucket(&self, name: &str) -> Result<Arc<dyn Bucket>, KvError> {
        Err(KvError::NoBucket { bucket: name.into(), embedded: None })
    }
    async fn create_bucket(&self, settings: &BucketSettings) -> Result<Arc<dyn Bucket>, KvError> {
        self.bucket(&settings.name)
    }
    async fn delete_bucket(&self, _: &str) -> Result<(), KvError> {
        Ok(())
    }
    async fn buckets(&self) -> Result<Vec<String>, KvError> {
        Ok(Vec::new())
    }
    async fn get_object(&self, bucket: &str, _: &str) -> Result<ObjectReader, KvError> {
        match self {
            _ if bucket != "FILES" => Err(KvError::NoBucket { bucket: bucket.into(), embedded: None }),
            Self::Whole => Ok(Box::pin(BODY)),
            Self::Endless => Ok(Box::pin(tokio::io::repeat(0))),
            Self::Silent => Ok(Box::pin(tokio_util::io::StreamReader::new(futures_util::stream::pending::<
                std::io::Result<Bytes>,
            >()))),
        }
    }
    async fn put_object(&self, _: &str, _: &str, _: ObjectReader) -> Result<(), KvError> {
        Ok(())
    }
    fn connection(&self) -> Connection {
        Connection { url: String::new(), connected: true, detail: String::new() }
    }
    fn nats(&self) -> Option<async_nats::Client> {
        None
    }
}

#[tokio::test]
async fn an_object_is_fetched_within_the_same_limits() {
    let object = |bucket: &str| Source::Object { bucket: bucket.into(), name: "a.tgz".into() };
    let mut case = Case::new();
    case.refuses(&object("FILES"), "could not fetch obj://FILES/a.tgz: no object store is configured").await;
    case.objects = Some(Arc::new(Objects::Whole));
    case.accepts(&object("FILES")).await;
    case.refuses(&object("NONE"), "could not fetch obj://NONE/a.tgz: bucket \"NONE\" does not exist").await;
    case.objects = Some(Arc::new(Objects::Endless));
    case.refuses(&object("FILES"), "obj://FILES/a.tgz is larger than the limit").await;
    case.objects = Some(Arc::new(Objects::Silent));
    case.settings.minimum_rate_window = Duration::from_millis(300);
    case.refuses(&object("FILES"), "obj://FILES/a.tgz is too slow: 0 bytes in 300ms").await;
}

/// On a runtime like the daemon's. Each fetch holds one of its threads, and reading a file needs another.
#[test]
fn many_fetches_at_once_leave_threads_to_read_their_files() {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).max_blocking_threads(16).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("archive");
    let content = vec![7; 1024 * 1024];
    std::fs::write(&path, &content).unwrap();
    let fetcher = Fetcher::new(settings(), None).unwrap();
    let source = Source::File(path);
    let fetches = (0..64).map(|index| {
        let target = directory.path().join(index.to_string());
        let (fetcher, source) = (&fetcher, &source);
        async move { fetcher.fetch(source, None, &target).await.unwrap() }
    });
    let fetched = runtime.block_on(futures_util::future::join_all(fetches));
    assert!(fetched.iter().all(|fetched| fetched.digest == Sha256Digest::of(&content)));
}

#[tokio::test]
async fn a_fetcher_without_a_certificate_check_takes_any_server_and_the_usual_one_still_none() {
    let (server, _) = tls_server(&["elsewhere.example"]).await;
    let directory = tempfile::tempdir().unwrap();
    let usual = Fetcher::new(FetchSettings::default(), None).unwrap();
    let source = url("https", server.port, "/a");
    usual.fetch(&source, None, &directory.path().join("a")).await.unwrap_err();
    let fetched = usual.without_certificate_check().fetch(&source, None, &directory.path().join("b")).await.unwrap();
    assert_eq!(fetched.bytes, BODY.len() as u64);
    usual.fetch(&source, None, &directory.path().join("c")).await.unwrap_err();
}

#[tokio::test]
async fn a_redirect_to_a_link_local_address_is_refused_before_anything_is_sent() {
    for target in ["169.254.169.254", "[fe80::1]", "[::ffff:169.254.169.254]"] {
        let (_server, source) = server("/a.tgz", Answer::redirect(&format!("http://{target}/latest"))).await;
        let why = "is a link-local address: a redirect may lead there only from a source that is there itself";
        Case::new().refuses(&source, why).await;
    }
}

/// A proxy that answers for an artefact server elsewhere: that one has no near address, whatever this machine is.
async fn elsewhere(answer: Answer) -> (Server, Case, Source) {
    let proxy = Server::start().await;
    let url = "http://artefacts.example.net/a.tgz";
    proxy.answer(url, answer);
    let mut case = Case::new();
    case.settings.proxy = Some(SecretUrl::new(Url::parse(&format!("http://127.0.0.1:{}", proxy.port)).unwrap()));
    (proxy, case, Source::parse(url).unwrap())
}

#[tokio::test]
async fn a_redirect_from_elsewhere_reaches_nothing_on_this_node() {
    let own = machines::node::own_addresses().unwrap();
    let own = own.iter().filter(|address| address.is_ipv4()).map(ToString::to_string);
    let spellings =
        ["127.0.0.1", "127.1", "2130706433", "[::1]", "0.0.0.0", "[::ffff:127.0.0.1]", "localhost", "a.localhost"];
    for host in spellings.into_iter().map(str::to_owned).chain(own) {
        let target = format!("http://{host}:8222/secret");
        let (proxy, case, source) = elsewhere(Answer::redirect(&target)).await;
        case.refuses(&source, "is an address of this node: a redirect may lead there only from a source that is there")
            .await;
        assert_eq!(proxy.requests().len(), 1, "{host}: the proxy was asked for it");
    }
    let (_proxy, case, source) = elsewhere(Answer::redirect("http://169.254.169.254/latest")).await;
    case.refuses(&source, "169.254.169.254 is a link-local address").await;
}
