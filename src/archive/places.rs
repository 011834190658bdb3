//! Places for downloads. A server that stalls must not take those that others need, and an install must not take those
//! of repairs: what is broken comes before what is new.
//!
//! In: a source and what the download is for. Out: a place, held for as long as the download takes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::spec::Source;

/// What is downloaded for, which decides what it waits behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Something new.
    Install,
    /// In the place of what is broken; waits behind other repairs only.
    Repair,
}

/// How many downloads go on at one time.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    in_all: usize,
    from_one_origin: usize,
}

// Together half as many as the daemon has blocking threads. Each holds one of the threads from its first byte to its last,
// and reading a file needs another one now and then: if downloads could take them all, they would wait for each other.
const INSTALLS: Bounds = Bounds { in_all: 5, from_one_origin: 2 };
const REPAIRS: Bounds = Bounds { in_all: 3, from_one_origin: 1 };

/// Where downloads come from, as far as one can stall without the other.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Origin {
    /// Scheme, host and port.
    Server(url::Origin),
    /// The directory of a file: a mount that hangs is not known by its name.
    Directory(PathBuf),
    /// All buckets are on the one server.
    ObjectStore,
}

impl Origin {
    fn of(source: &Source) -> Self {
        match source {
            Source::Http(url) => Self::Server(url.expose().origin()),
            Source::File(path) => Self::Directory(path.parent().map(PathBuf::from).unwrap_or_default()),
            Source::Object { .. } => Self::ObjectStore,
        }
    }
}

/// All places of a node.
#[derive(Debug)]
pub(super) struct Places {
    installs: Pool,
    repairs: Pool,
}

#[derive(Debug)]
struct Pool {
    all: Arc<Semaphore>,
    from_one_origin: usize,
    /// Of the origins that somebody waits for or downloads from.
    origins: Mutex<HashMap<Origin, Weak<Semaphore>>>,
}

/// One place; free again when dropped.
#[derive(Debug)]
pub struct Place {
    _origin: Option<OwnedSemaphorePermit>,
    _all: Option<OwnedSemaphorePermit>,
    /// The origin's places are known for as long as one of them is held.
    _places: Arc<Semaphore>,
}

impl Default for Places {
    fn default() -> Self {
        Self { installs: Pool::new(INSTALLS), repairs: Pool::new(REPAIRS) }
    }
}

impl Places {
    /// Waits for a place. First for one of the origin: who waits for a server that stalls holds up nobody else.
    pub async fn take(&self, source: &Source, purpose: Purpose) -> Place {
        let pool = match purpose {
            Purpose::Install => &self.installs,
            Purpose::Repair => &self.repairs,
        };
        let places = pool.of(Origin::of(source));
        // Neither is ever closed.
        let origin = Arc::clone(&places).acquire_owned().await.ok();
        let all = Arc::clone(&pool.all).acquire_owned().await.ok();
        Place { _origin: origin, _all: all, _places: places }
    }
}

impl Pool {
    fn new(bounds: Bounds) -> Self {
        let all = Arc::new(Semaphore::new(bounds.in_all));
        Self { all, from_one_origin: bounds.from_one_origin, origins: Mutex::default() }
    }

    fn of(&self, origin: Origin) -> Arc<Semaphore> {
        let mut origins = self.origins.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(places) = origins.get(&origin).and_then(Weak::upgrade) {
            return places;
        }
        // Also what nobody needs any more goes, so that it stays as small as what is under way.
        origins.retain(|_, places| places.strong_count() > 0);
        let places = Arc::new(Semaphore::new(self.from_one_origin));
        origins.insert(origin, Arc::downgrade(&places));
        places
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn source(text: &str) -> Source {
        Source::parse(text).unwrap()
    }

    fn now(places: &Places, from: &str, purpose: Purpose) -> Option<Place> {
        places.take(&source(from), purpose).now_or_never()
    }

    #[test]
    fn one_origin_never_takes_the_places_of_another_and_an_install_none_of_a_repair() {
        let places = Places::default();
        let (slow, other) = ("https://slow.example.net/a.tgz", "https://other.example.net/a.tgz");
        let held: Vec<_> =
            (0..INSTALLS.from_one_origin).map(|_| now(&places, slow, Purpose::Install).unwrap()).collect();
        assert!(now(&places, slow, Purpose::Install).is_none(), "its places are taken");
        for elsewhere in [other, "http://slow.example.net/a.tgz", "https://slow.example.net:8443/a.tgz"] {
            assert!(now(&places, elsewhere, Purpose::Install).is_some(), "{elsewhere} is another origin");
        }
        assert!(now(&places, slow, Purpose::Repair).is_some(), "a repair waits behind no install");
        drop(held);
        assert!(now(&places, slow, Purpose::Install).is_some());
    }

    #[test]
    fn who_waits_for_a_stalled_origin_holds_up_nobody() {
        let places = Places::default();
        let held: Vec<_> = (0..2).map(|_| now(&places, "file:///slow/a.tgz", Purpose::Install).unwrap()).collect();
        let from = source("file:///slow/b.tgz");
        let mut waiting: Vec<_> = (0..20).map(|_| Box::pin(places.take(&from, Purpose::Install))).collect();
        assert!(waiting.iter_mut().all(|place| place.now_or_never().is_none()));
        assert!(now(&places, "file:///quick/a.tgz", Purpose::Install).is_some());
        drop(held);
    }

    #[test]
    fn all_together_are_bounded_and_what_is_over_is_forgotten() {
        let places = Places::default();
        let from = |index: usize| format!("https://host{index}.example.net/a.tgz");
        let held: Vec<_> =
            (0..INSTALLS.in_all).map(|index| now(&places, &from(index), Purpose::Install).unwrap()).collect();
        assert!(now(&places, &from(99), Purpose::Install).is_none());
        assert!(now(&places, &from(99), Purpose::Repair).is_some());
        drop(held);
        for index in 0..1_000 {
            assert!(now(&places, &from(index), Purpose::Install).is_some());
        }
        assert!(places.installs.origins.lock().unwrap().len() <= 1, "what nobody needs is kept");
    }
}
