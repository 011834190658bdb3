//! Servers on loopback that mean ill. Each ends with its test, or after so many bytes.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How fast an artefact server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    AtOnce,
    /// 1.2 KiB each second: just above what the settings call too slow.
    Drip,
}

/// The address of a server that lets each connection have its own thread.
fn serve(answer: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let answer = Arc::clone(&answer);
            // A client that goes away is its own matter.
            std::thread::spawn(move || _ = answer(stream));
        }
    });
    address
}

/// Serves the files of a directory; the URL below which they are.
pub fn artefacts(directory: &Path, pace: Pace) -> String {
    let directory = directory.to_owned();
    let address = serve(move |mut stream| {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut request = String::new();
        reader.read_line(&mut request)?;
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let name = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').to_owned();
        let content = fs::read(directory.join(name))?;
        write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", content.len())?;
        match pace {
            Pace::AtOnce => stream.write_all(&content),
            Pace::Drip => content.chunks(123).try_for_each(|bytes| {
                std::thread::sleep(Duration::from_millis(100));
                stream.write_all(bytes)
            }),
        }
    });
    format!("http://{address}")
}

/// A server whose first words are these, once the client has said nothing or its own, and which then never ends.
pub fn endless_nats(greeting: &'static [u8], after_the_client: &'static [u8]) -> String {
    let address = serve(move |mut stream| {
        stream.write_all(greeting)?;
        if !after_the_client.is_empty() {
            stream.read_exact(&mut [0; 16])?;
            stream.write_all(after_the_client)?;
        }
        let noise = vec![b'x'; 256 * 1024];
        // A gibibyte on each connection.
        (0..4_096).try_for_each(|_| stream.write_all(&noise))
    });
    format!("nats://{address}")
}

/// A server whose first connections get these words, and that then is a relay to the real one on `port`.
pub fn hostile_at_first(port: u16, count: usize, greeting: &'static [u8], after_the_client: &'static [u8]) -> String {
    let served = AtomicUsize::new(0);
    let address = serve(move |mut stream| {
        if served.fetch_add(1, Ordering::Relaxed) < count {
            stream.write_all(greeting)?;
            stream.read_exact(&mut [0; 16])?;
            stream.write_all(after_the_client)?;
            std::thread::sleep(Duration::from_secs(1));
            return Ok(());
        }
        let mut server = TcpStream::connect(("127.0.0.1", port))?;
        let (mut from, mut to) = (stream.try_clone()?, server.try_clone()?);
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
        std::io::copy(&mut server, &mut stream).map(drop)
    });
    format!("nats://{address}")
}
