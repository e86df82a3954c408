//! Tasks that have an owner.

use std::future::Future;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::task::{JoinError, JoinSet};

/// The tasks of one owner. Dropping it ends them all; none outlives it.
#[derive(Debug)]
pub(crate) struct Tasks {
    what: &'static str,
    set: JoinSet<()>,
}

impl Tasks {
    /// No tasks yet; `what` they do is for the log line of a panic.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            set: JoinSet::new(),
        }
    }

    /// Starts a task on the caller's runtime.
    pub(crate) fn spawn(&mut self, task: impl Future<Output = ()> + Send + 'static) {
        self.set.spawn(task);
    }

    /// Starts a task on `runtime`.
    pub(crate) fn spawn_on(
        &mut self,
        task: impl Future<Output = ()> + Send + 'static,
        runtime: &Handle,
    ) {
        self.set.spawn_on(task, runtime);
    }

    pub(crate) fn len(&self) -> usize {
        self.set.len()
    }

    /// Completes when a task has ended and was joined; never while there is none. To be polled
    /// in the owner's loop, so that ended tasks do not pile up.
    pub(crate) async fn reap(&mut self) {
        match self.set.join_next().await {
            Some(result) => self.report(result),
            None => std::future::pending().await,
        }
    }

    /// Waits for all tasks to end by themselves.
    pub(crate) async fn join_all(&mut self) {
        while let Some(result) = self.set.join_next().await {
            self.report(result);
        }
    }

    /// Waits for all tasks to end by themselves, for at most `grace`, and ends the rest. Returns
    /// how many were ended.
    pub(crate) async fn shutdown(&mut self, grace: Duration) -> usize {
        let _ = tokio::time::timeout(grace, self.join_all()).await;
        let left = self.set.len();
        self.set.abort_all();
        self.join_all().await;
        left
    }

    fn report(&self, result: Result<(), JoinError>) {
        if let Err(error) = result
            && error.is_panic()
        {
            tracing::error!(
                task = self.what,
                %error,
                "a task panicked: this is a defect of the program, please report it with this line; the node goes on"
            );
        }
    }
}
