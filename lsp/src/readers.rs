//! The thread on which generations are read.

use std::thread;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// Runs the tasks that read what the engine generates. To see where a suggestion should end they parse its lines, up to
/// some milliseconds each; on the thread of the messages an edit would wait for that.
pub(crate) struct Readers {
    runtime: Option<Handle>,
    /// Ends the thread, and its tasks, when dropped.
    _end: oneshot::Sender<()>,
}

impl Readers {
    pub(crate) fn start() -> Self {
        let (end, ended) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_time().build().and_then(|runtime| {
            let handle = runtime.handle().clone();
            let run = move || drop(runtime.block_on(ended));
            thread::Builder::new().name("redstart-readers".to_owned()).spawn(run).map(|_| handle)
        });
        if let Err(error) = &runtime {
            tracing::warn!(%error, "no thread to read suggestions on; edits may wait for them");
        }
        Self { runtime: runtime.ok(), _end: end }
    }

    /// Where tasks that read run. Without the thread, the runtime of the caller, who must be in one.
    pub(crate) fn handle(&self) -> Handle {
        self.runtime.clone().unwrap_or_else(Handle::current)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_computes_there_keeps_nobody_here_waiting() {
        let readers = Readers::start();
        let (tell, told) = std::sync::mpsc::channel();
        // Blocks its thread until this one goes on.
        let computing = readers.handle().spawn(async move { told.recv() });
        tokio::task::yield_now().await;
        tell.send(7).unwrap();
        assert_eq!(computing.await.unwrap(), Ok(7));
    }

    #[tokio::test]
    async fn its_tasks_end_with_it() {
        let readers = Readers::start();
        let (held, ended) = oneshot::channel::<()>();
        readers.handle().spawn(async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(readers);
        assert!(ended.await.is_err(), "the task was dropped");
    }
}
