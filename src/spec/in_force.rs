//! The trust in force: a reload changes it while machines run, and nothing has to be started again for that. In: the keys
//! of the settings. Out: those of the moment, and news of others.

use tokio::sync::watch;

use super::trust::Trust;

/// Whom the daemon's settings trust at the moment. The clones share it.
#[derive(Debug, Clone)]
pub struct TrustInForce(watch::Sender<Trust>);

impl Default for TrustInForce {
    fn default() -> Self {
        Self::new(Trust::Nobody)
    }
}

impl TrustInForce {
    /// Begins with this.
    pub fn new(trust: Trust) -> Self {
        Self(watch::Sender::new(trust))
    }

    /// As it is now.
    pub fn now(&self) -> Trust {
        self.0.borrow().clone()
    }

    /// From here on this counts, for all clones.
    pub fn set(&self, trust: Trust) {
        self.0.send_if_modified(|current| {
            let other = *current != trust;
            *current = trust;
            other
        });
    }

    /// Tells when it becomes another.
    pub fn follow(&self) -> watch::Receiver<Trust> {
        self.0.subscribe()
    }
}
