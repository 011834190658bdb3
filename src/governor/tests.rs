//! What happens when the store's answer is lost, on a store that loses them as the test says.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::*;
use crate::kv::{Claim, GovernorSettings, GovernorStatus, HeldSlot, Owner, Slots, Taken};

/// A store with one governor; of the first answers to `take`, some are lost.
#[derive(Default)]
struct Lossy {
    taken: Mutex<Vec<(u64, String)>>,
    asked: Mutex<usize>,
    lost: usize,
    /// Whether what was asked with a lost answer took a slot.
    arrives: bool,
}

fn lost() -> KvError {
    KvError::Timeout { operation: "take".to_owned(), url: "nats://a".to_owned(), limit: Duration::from_secs(5) }
}

#[async_trait]
impl Slots for Lossy {
    async fn take(&self, _: &GovernorName, claim: &Claim) -> Result<Taken, KvError> {
        let mut asked = self.asked.lock().unwrap();
        *asked += 1;
        let is_lost = *asked <= self.lost;
        if is_lost && !self.arrives {
            return Ok(Taken::Unclear(lost()));
        }
        let sequence = *asked as u64;
        self.taken.lock().unwrap().push((sequence, claim.id().to_owned()));
        Ok(if is_lost { Taken::Unclear(lost()) } else { Taken::Slot(sequence) })
    }

    async fn find(&self, _: &GovernorName, claim: &str) -> Result<Vec<u64>, KvError> {
        let taken = self.taken.lock().unwrap();
        Ok(taken.iter().filter(|(_, own)| own == claim).map(|(sequence, _)| *sequence).collect())
    }

    async fn free(&self, _: &GovernorName, sequence: u64, owner: Owner<'_>) -> Result<bool, KvError> {
        let Owner::Claim(claim) = owner else { panic!("freed without its claim") };
        let mut taken = self.taken.lock().unwrap();
        let before = taken.len();
        taken.retain(|(own, of)| (*own, of.as_str()) != (sequence, claim));
        Ok(taken.len() < before)
    }

    async fn add(&self, _: &GovernorSettings) -> Result<(), KvError> {
        panic!("not asked for")
    }
    async fn governor(&self, _: &GovernorName) -> Result<GovernorStatus, KvError> {
        panic!("not asked for")
    }
    async fn governors(&self) -> Result<Vec<GovernorStatus>, KvError> {
        panic!("not asked for")
    }
    async fn held(&self, _: &GovernorName) -> Result<Vec<HeldSlot>, KvError> {
        panic!("not asked for")
    }
    async fn reset(&self, _: &GovernorName) -> Result<(), KvError> {
        panic!("not asked for")
    }
    async fn delete(&self, _: &GovernorName) -> Result<(), KvError> {
        panic!("not asked for")
    }
}

const MINUTE: Duration = Duration::from_secs(60);

fn world(store: Lossy) -> (Arc<Lossy>, StoreGovernors, GovernorName) {
    let store = Arc::new(store);
    let slots: Arc<dyn Slots> = Arc::clone(&store) as _;
    (store, StoreGovernors::of(Some(slots)), GovernorName::new("UPDATES").unwrap())
}

#[tokio::test(start_paused = true)]
async fn a_slot_whose_answer_was_lost_is_found_instead_of_asked_for_again() {
    let (store, governors, name) = world(Lossy { lost: 1, arrives: true, ..Lossy::default() });
    let slot = governors.enter(&name, "test", MINUTE).await.unwrap();
    assert_eq!((*store.asked.lock().unwrap(), store.taken.lock().unwrap().len()), (1, 1));
    assert_eq!(slot.leave().await, Left::Held);
    assert!(store.taken.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_was_lost_on_the_way_there_is_asked_for_again() {
    let (store, governors, name) = world(Lossy { lost: 2, arrives: false, ..Lossy::default() });
    let slot = governors.enter(&name, "test", MINUTE).await.unwrap();
    assert_eq!((*store.asked.lock().unwrap(), store.taken.lock().unwrap().len()), (3, 1));
    // What was lost arrives after all: it goes with the slot.
    let claim = store.taken.lock().unwrap()[0].1.clone();
    store.taken.lock().unwrap().push((9, claim));
    slot.leave().await;
    governors.settle(MINUTE).await;
    assert!(store.taken.lock().unwrap().is_empty());
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_in_doubt_leaves_nothing_that_arrives_late() {
    let (store, governors, name) = world(Lossy { lost: usize::MAX, arrives: false, ..Lossy::default() });
    let error = governors.enter(&name, "test", MINUTE).await.unwrap_err();
    let message = crate::errors::chain(&error);
    assert_eq!(
        message,
        "could not get a slot of governor \"UPDATES\": could not take: nats://a did not answer within 5s"
    );
    // Nobody else's is touched.
    store.taken.lock().unwrap().push((7, "another".to_owned()));
    governors.settle(MINUTE).await;
    assert_eq!(*store.taken.lock().unwrap(), [(7, "another".to_owned())]);

    let (store, governors, name) = world(Lossy { lost: 1, arrives: true, ..Lossy::default() });
    // Cut off right after the loss, while it waits to look.
    assert!(tokio::time::timeout(Duration::from_millis(1), governors.enter(&name, "test", MINUTE)).await.is_err());
    governors.settle(MINUTE).await;
    assert!(store.taken.lock().unwrap().is_empty());
}
