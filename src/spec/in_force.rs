//! The trust in force: a reload changes it while machines run, and nothing has to be started again for that. In: the keys
//! of the settings. Out: those of the moment, and news of others.

use tokio::sync::watch;

use super::trust::Trust;

/// Whom the daemon's settings trust at the moment; `None` where the keys in a machine's own properties count. The clones
/// share it.
#[derive(Debug, Clone)]
pub struct TrustInForce(watch::Sender<Option<Trust>>);

impl Default for TrustInForce {
    fn default() -> Self {
        Self::new(None)
    }
}

impl TrustInForce {
    /// Begins with this.
    pub fn new(trust: Option<Trust>) -> Self {
        Self(watch::Sender::new(trust))
    }

    /// As it is now.
    pub fn now(&self) -> Option<Trust> {
        self.0.borrow().clone()
    }

    /// From here on this counts, for all clones.
    pub fn set(&self, trust: Option<Trust>) {
        self.0.send_if_modified(|current| {
            let other = *current != trust;
            *current = trust;
            other
        });
    }

    /// Tells when it becomes another.
    pub fn follow(&self) -> watch::Receiver<Option<Trust>> {
        self.0.subscribe()
    }
}
