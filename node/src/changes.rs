//! Hearing that something has changed, in the order in which one began to listen.
//!
//! tokio's `watch` wakes its receivers in an order that it draws itself, which no seed of ours
//! decides; this one wakes them first come, first served, so that a fleet in virtual time repeats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// Something that changes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    version: AtomicU64,
    notify: Notify,
}

/// Hears of changes since it last looked.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    seen: u64,
}

impl Changes {
    /// It has changed.
    pub(crate) fn notify(&self) {
        self.shared.version.fetch_add(1, Ordering::AcqRel);
        self.shared.notify.notify_waiters();
    }

    /// Hears of what changes from now on.
    pub(crate) fn watch(&self) -> Watcher {
        Watcher {
            shared: self.shared.clone(),
            seen: self.shared.version.load(Ordering::Acquire),
        }
    }
}

impl Watcher {
    /// What has changed until now is known.
    pub(crate) fn mark_unchanged(&mut self) {
        self.seen = self.shared.version.load(Ordering::Acquire);
    }

    /// Completes when something has changed that is not known. May be dropped at any time.
    pub(crate) async fn changed(&mut self) {
        loop {
            let mut notified = std::pin::pin!(self.shared.notify.notified());
            // Before the look, so that no change falls between the two.
            notified.as_mut().enable();
            let version = self.shared.version.load(Ordering::Acquire);
            if version != self.seen {
                self.seen = version;
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn changes_are_heard_once_and_in_turn() {
        let changes = Changes::default();
        let mut watcher = changes.watch();
        changes.notify();
        changes.notify();
        watcher.changed().await;
        changes.notify();
        watcher.mark_unchanged();
        let heard = Arc::new(std::sync::Mutex::new(Vec::new()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (mut watcher, heard) = (changes.watch(), heard.clone());
            tasks.spawn(async move {
                watcher.changed().await;
                if let Ok(mut heard) = heard.lock() {
                    heard.push(number);
                }
            });
        }
        tokio::task::yield_now().await;
        changes.notify();
        while tasks.join_next().await.is_some() {}
        let heard = heard.lock().map(|heard| heard.clone());
        assert_eq!(heard.ok(), Some((0..20).collect::<Vec<_>>()));
    }
}
