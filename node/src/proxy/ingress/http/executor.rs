//! The tasks that hyper starts, and their owner.

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Runs hyper's tasks for an owner that waits for them, and ends them when the proxy is cut.
#[derive(Debug, Clone)]
pub(super) struct TrackedExecutor {
    tasks: TaskTracker,
    cut: CancellationToken,
}

impl TrackedExecutor {
    pub(super) fn new(cut: CancellationToken) -> Self {
        Self {
            tasks: TaskTracker::new(),
            cut,
        }
    }

    /// Waits for all tasks, to which none may be added any more.
    pub(super) async fn join(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl<F> hyper::rt::Executor<F> for TrackedExecutor
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, task: F) {
        let task = std::panic::AssertUnwindSafe(task).catch_unwind();
        let task = self.cut.clone().run_until_cancelled_owned(task);
        self.tasks.spawn(async move {
            if let Some(Err(panic)) = task.await {
                let why = panic
                    .downcast_ref::<&str>()
                    .map(|why| (*why).to_owned())
                    .or_else(|| panic.downcast_ref::<String>().cloned());
                tracing::error!(
                    task = "http connection",
                    error = why.as_deref().unwrap_or("unknown"),
                    "a task panicked: this is a defect of the program, please report it with this line; the node goes on"
                );
            }
        });
    }
}
