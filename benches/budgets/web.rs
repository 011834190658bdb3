//! A plain web server for archives on loopback: the same one for us and for the peer.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The URL below which the files of `directory` are served, for as long as the process lives.
pub fn serve(directory: &Path) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let directory: Arc<Path> = directory.into();
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let directory = Arc::clone(&directory);
            // A client that goes away is its own matter.
            std::thread::spawn(move || _ = answer(&stream, &directory));
        }
    });
    url
}

fn answer(stream: &TcpStream, directory: &Path) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request)? == 0 {
            return Ok(());
        }
        let mut line = String::new();
        while reader.read_line(&mut line)? > 2 {
            line.clear();
        }
        let path: PathBuf = request.split(' ').nth(1).unwrap_or_default().trim_start_matches('/').into();
        let mut file = File::open(directory.join(path))?;
        let mut writer = stream;
        write!(writer, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", file.metadata()?.len())?;
        std::io::copy(&mut file, &mut writer)?;
    }
}
