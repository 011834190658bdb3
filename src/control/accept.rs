//! Takes connections, also when the process has no file descriptor left: some are kept in reserve and given up for a
//! connection each, so that an operator still learns how the node stands. What goes wrong is said once when it begins
//! and once when it has ended. In: a listener. Out: connections, with who is at their other side.

use std::fs::File;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use rustix::io::Errno;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::time::Instant;

/// Before a failed accept is tried again, for example when there are no file descriptors left.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Failures that are nearer to each other are one trouble.
const QUIET: Duration = Duration::from_secs(5);

/// Who is at the other side of a connection, as far as the kernel says.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Peer {
    /// On TCP.
    pub address: Option<IpAddr>,
    /// On a Unix socket.
    pub user: Option<u32>,
}

/// Something that hands out connections.
pub(super) trait Accept {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    fn next(&self) -> impl Future<Output = std::io::Result<(Self::Stream, Peer)>> + Send;
}

impl Accept for UnixListener {
    type Stream = tokio::net::UnixStream;

    async fn next(&self) -> std::io::Result<(Self::Stream, Peer)> {
        let stream = self.accept().await?.0;
        let user = stream.peer_cred().ok().map(|credentials| credentials.uid());
        Ok((stream, Peer { user, ..Peer::default() }))
    }
}

impl Accept for TcpListener {
    type Stream = tokio::net::TcpStream;

    async fn next(&self) -> std::io::Result<(Self::Stream, Peer)> {
        let (stream, address) = self.accept().await?;
        Ok((stream, Peer { address: Some(address.ip()), ..Peer::default() }))
    }
}

/// A connection that was taken.
pub(super) struct Taken<S> {
    pub stream: S,
    pub peer: Peer,
    /// To be dropped after the stream.
    pub lent: Option<Lent>,
}

/// File descriptors that do nothing but be there. More than one where it matters: what is freed for a moment, another part
/// of the process may take.
#[derive(Clone)]
struct Reserve(Arc<Mutex<Held>>);

struct Held {
    files: Vec<File>,
    lent: usize,
    wanted: usize,
}

impl Reserve {
    fn new(wanted: usize) -> Self {
        Self(Arc::new(Mutex::new(Held { files: Vec::new(), lent: 0, wanted })))
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fill(&self) {
        let mut held = self.lock();
        while held.files.len() + held.lent < held.wanted {
            let Ok(file) = crate::fs::open(Path::new("/dev/null")) else { return };
            held.files.push(file);
        }
    }

    /// Gives a descriptor up; `None` when there is none left.
    fn lend(&self) -> Option<Lent> {
        let mut held = self.lock();
        held.files.pop()?;
        held.lent += 1;
        Some(Lent(self.clone()))
    }
}

/// A part of the reserve that is with a connection; it comes back when this is dropped.
pub(super) struct Lent(Reserve);

impl Drop for Lent {
    fn drop(&mut self) {
        {
            let mut held = self.0.lock();
            held.lent = held.lent.saturating_sub(1);
        }
        self.0.fill();
    }
}

struct Trouble {
    since: Instant,
    last: Instant,
    failures: u64,
}

/// Takes the connections of one listener.
pub(super) struct Acceptor<'a, A> {
    accept: &'a A,
    /// For the log.
    name: &'static str,
    reserve: Reserve,
    trouble: Option<Trouble>,
}

impl<'a, A: Accept> Acceptor<'a, A> {
    pub fn new(accept: &'a A, name: &'static str, reserve: usize) -> Self {
        Self { accept, name, reserve: Reserve::new(reserve), trouble: None }
    }

    /// The next connection, however long that takes.
    pub async fn next(&mut self) -> Taken<A::Stream> {
        let mut pause = FIRST_PAUSE;
        loop {
            self.reserve.fill();
            let error = match self.accept.next().await {
                Ok((stream, peer)) => {
                    self.is_well();
                    return Taken { stream, peer, lent: None };
                }
                Err(error) => error,
            };
            if is_exhausted(&error)
                && let Some(lent) = self.reserve.lend()
            {
                // Without a descriptor the kernel fails before it looks whether anybody waits.
                match self.accept.next().now_or_never() {
                    Some(Ok((stream, peer))) => {
                        self.failed(&error);
                        return Taken { stream, peer, lent: Some(lent) };
                    }
                    None => continue,
                    Some(Err(_)) => {}
                }
            }
            self.failed(&error);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    fn failed(&mut self, error: &std::io::Error) {
        let now = Instant::now();
        let trouble = self.trouble.get_or_insert_with(|| {
            tracing::warn!(
                "{}: a connection could not be taken: {error}; tried again until it can, and said once",
                self.name
            );
            Trouble { since: now, last: now, failures: 0 }
        });
        (trouble.last, trouble.failures) = (now, trouble.failures.saturating_add(1));
    }

    fn is_well(&mut self) {
        if let Some(trouble) = self.trouble.take_if(|trouble| trouble.last.elapsed() >= QUIET) {
            let lasted = crate::duration::format(Duration::from_secs((trouble.last - trouble.since).as_secs()));
            tracing::info!(
                "{}: connections are taken again; {} could not be at first, within {lasted}",
                self.name,
                trouble.failures
            );
        }
    }
}

fn is_exhausted(error: &std::io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE))
}
