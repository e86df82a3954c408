//! A drain that is asked for over the admin API, and may be cancelled while it is only a notice.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

/// How far an asked drain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// None is asked for.
    None,
    /// One is asked for, and can be cancelled.
    Asked(Option<Duration>),
    /// The node leaves.
    Begun,
}

/// Whether the node has been asked to drain.
#[derive(Debug, Clone)]
pub struct DrainAsk {
    stage: Arc<watch::Sender<Stage>>,
}

/// That cannot be asked for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotNow;

impl DrainAsk {
    /// Nobody has asked.
    #[must_use]
    pub fn new() -> Self {
        Self {
            stage: Arc::new(watch::Sender::new(Stage::None)),
        }
    }

    /// Asks for a drain, with another deadline than the config's.
    ///
    /// # Errors
    /// When one is under way.
    pub fn ask(&self, deadline: Option<Duration>) -> Result<(), NotNow> {
        self.change(|stage| (stage == Stage::None).then_some(Stage::Asked(deadline)))
    }

    /// Takes it back.
    ///
    /// # Errors
    /// When there is none, or it has gone too far.
    pub fn cancel(&self) -> Result<(), NotNow> {
        self.change(|stage| matches!(stage, Stage::Asked(_)).then_some(Stage::None))
    }

    /// From now on it cannot be taken back. Fails when it just was.
    pub(crate) fn begin_asked(&self) -> Result<(), NotNow> {
        self.change(|stage| matches!(stage, Stage::Asked(_)).then_some(Stage::Begun))
    }

    /// The node leaves, whether asked or not.
    pub(crate) fn begin(&self) {
        self.stage.send_replace(Stage::Begun);
    }

    /// Completes when a drain is asked for.
    pub(crate) async fn asked(&self) -> Option<Duration> {
        let mut stage = self.stage.subscribe();
        loop {
            if let Stage::Asked(deadline) = *stage.borrow_and_update() {
                return deadline;
            }
            if stage.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Completes when it is taken back.
    pub(crate) async fn cancelled(&self) {
        let mut stage = self.stage.subscribe();
        if stage.wait_for(|stage| *stage == Stage::None).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    fn change(&self, next: impl FnOnce(Stage) -> Option<Stage>) -> Result<(), NotNow> {
        let changed = self.stage.send_if_modified(|stage| match next(*stage) {
            Some(next) => {
                *stage = next;
                true
            }
            None => false,
        });
        if changed { Ok(()) } else { Err(NotNow) }
    }
}

impl Default for DrainAsk {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_drain_is_taken_back_only_while_it_is_asked_for() {
        let drain = DrainAsk::new();
        assert_eq!(drain.cancel(), Err(NotNow));
        assert_eq!(drain.ask(Some(Duration::from_secs(3))), Ok(()));
        assert_eq!(drain.asked().await, Some(Duration::from_secs(3)));
        assert_eq!(drain.ask(None), Err(NotNow));
        assert_eq!(drain.cancel(), Ok(()));
        drain.cancelled().await;
        assert_eq!(drain.begin_asked(), Err(NotNow));
        assert_eq!(drain.ask(None), Ok(()));
        assert_eq!(drain.begin_asked(), Ok(()));
        assert_eq!(drain.cancel(), Err(NotNow));
        assert_eq!(drain.ask(None), Err(NotNow));
    }
}
