//! Governors as a scenario has them: full, or without a limit.

use std::time::Duration;

use async_trait::async_trait;

use crate::governor::{GovernorError, Governors, Slot};
use crate::names::GovernorName;

/// Gives a slot of every governor but these.
pub struct Grants {
    pub full: Vec<String>,
}

#[async_trait]
impl Governors for Grants {
    async fn enter(&self, name: &GovernorName, _: &str, patience: Duration) -> Result<Slot, GovernorError> {
        if self.full.iter().any(|full| full == name.as_str()) {
            tokio::time::sleep(patience).await;
            return Err(GovernorError::Full { name: name.clone(), waited: patience });
        }
        Ok(Slot::unlimited())
    }
}
