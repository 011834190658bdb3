//! What integration tests share: real parts, each with its own directory and port, gone when dropped.

#![allow(dead_code, reason = "shared by test programs of which each uses a part")]

pub mod cgroup;
pub mod daemon;
pub mod fleet;
pub mod nats;

use std::time::Duration;

/// Longest wait for something that must happen. Generous: it is reached only by a failing test.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Awaits a future, or fails the test saying what did not happen.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not happen within {PATIENCE:?}"),
    }
}

/// What a program printed, as if its lines had no end: texts are broken where they reach the width.
pub fn unwrapped(printed: &str) -> String {
    printed.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Repeats a question until its answer is yes.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut question: impl FnMut() -> F) {
    within(what, async {
        while !question().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
}
