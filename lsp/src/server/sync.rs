//! Locks that outlive a panic, and tasks that end with their session.

use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::task::JoinSet;

/// Locks, whatever happened to the last holder: a panic is caught and reported where it happens, and
/// one failed request must not take the documents with it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tasks that nobody waits for. Dropping it ends them.
#[derive(Default)]
pub(super) struct Background {
    tasks: Mutex<JoinSet<()>>,
}

impl Background {
    /// Starts a task.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }
}
