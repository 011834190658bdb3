//! `mms events`: what the nodes publish, as it comes.

use std::time::Duration;

use futures_util::StreamExt;
use machines::kv::CreateDatabase;

use crate::shared::events::Wanted;
use crate::shared::{Failure, note};
use crate::store;

/// A server that has not answered by then is not there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Who reads the list must know that it has a hole: NATS keeps no events for those who are away.
const INTERRUPTED: &str = "The connection is lost and tried again; what is published meanwhile is missing here.";
const LOOK: Duration = Duration::from_millis(50);

pub async fn follow(url: Option<&str>, wanted: &Wanted) -> Result<(), Failure> {
    let store = store::open(url, CreateDatabase::No).await?;
    let Some(client) = store.nats() else {
        let message = "events are published to NATS only; give its address with --kv, or ask the node itself: \
                       machinesd events --follow";
        return Err(Failure::Usage(message.into()));
    };
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !store.connection().connected {
        if tokio::time::Instant::now() >= deadline {
            let connection = store.connection();
            return Err(format!("{} did not answer: {}", connection.url, connection.detail).into());
        }
        tokio::time::sleep(LOOK).await;
    }
    let kind = wanted.kind.as_deref().filter(|kind| kind.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let states = client.subscribe(format!("choria.machine.watcher.{}.state", kind.unwrap_or("*"))).await?;
    let transitions = client.subscribe("choria.machine.transition").await?;
    client.flush().await?;
    note("Following; Ctrl-C ends it.");
    let mut events = futures_util::stream::select(states, transitions);
    let mut connected = true;
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            message = events.next() => match message {
                Some(message) => wanted.print(&message.payload),
                None => return Ok(()),
            },
            _ = look.tick() => {
                let connection = store.connection();
                if connection.connected != connected {
                    connected = connection.connected;
                    note(if connected { "Connected again." } else { INTERRUPTED });
                }
            }
        }
    }
}
