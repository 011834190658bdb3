//! Commands that ask the daemon of this node to do something.

use std::path::Path;

use machines::control::client::Client;
use machines::control::{Span, SyncAnswer, SyncRequest, TransitionAnswer, TransitionRequest};

use crate::shared::events::Wanted;
use crate::shared::{Failure, Format, converged_unless, json, line};

/// Runs an exchange with the daemon on a small runtime.
pub fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

pub fn transition(socket: &Path, machine: &str, event: &str, format: Format) -> Result<(), Failure> {
    let client = Client::new(socket);
    block_on(async {
        let request = TransitionRequest { machine: machine.to_owned(), event: event.to_owned() };
        let answer = client.post("/v1/transition", &request).await?;
        let answer: TransitionAnswer = serde_json::from_value(answer)?;
        match format {
            Format::Json => json(&answer),
            Format::Text => {
                line(format!("{machine} is in state {}", answer.state));
                Ok(())
            }
        }
    })
}

pub fn events(socket: &Path, span: Span, wanted: &Wanted) -> Result<(), Failure> {
    let client = Client::new(socket);
    block_on(async {
        client
            .events(span, |event| {
                wanted.print(event.as_bytes());
                true
            })
            .await?;
        Ok(())
    })
}

pub fn sync(socket: &Path, request: &SyncRequest, format: Format) -> Result<(), Failure> {
    let client = Client::new(socket);
    block_on(async {
        let answer: SyncAnswer = serde_json::from_value(client.post("/v1/sync", request).await?)?;
        match format {
            Format::Text => converged_unless(&answer.complaints),
            Format::Json => {
                json(&answer)?;
                if answer.converged { Ok(()) } else { Err(Failure::Negative) }
            }
        }
    })
}
