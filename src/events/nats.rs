//! Carries the bus's events to NATS, in order. While the server is away the client library buffers; what does not fit
//! is dropped oldest first, with a warning that says how many.

use tokio::sync::broadcast::error::RecvError;

use super::Bus;

/// Publishes until the bus is gone. Runs as a task of its own, so that a slow server never holds up a machine.
pub async fn publish(bus: Bus, client: async_nats::Client) {
    let mut events = bus.listen();
    drop(bus);
    loop {
        let event = match events.recv().await {
            Ok(event) => event,
            Err(RecvError::Lagged(count)) => {
                tracing::warn!(dropped = count, "events were dropped: NATS takes them too slowly");
                continue;
            }
            Err(RecvError::Closed) => return,
        };
        let payload = event.cloud_event().to_string();
        if let Err(error) = client.publish(event.subject(), payload.into()).await {
            tracing::debug!(%error, "an event was not published");
        }
    }
}
