//! The threads that guests run on: few, with a stack that is known to hold the guest's and the host's.
//! Guests never run on the threads of an async runtime, which they would block.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};

type Job = Box<dyn FnOnce() + Send>;

/// A queue and the threads that empty it. They end when it is dropped.
pub(crate) struct Workers {
    jobs: Sender<Job>,
}

impl Workers {
    pub(crate) fn start(threads: usize, stack_bytes: usize) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = queue.clone();
            std::thread::Builder::new()
                .name(format!("redstart-plugin-{number}"))
                .stack_size(stack_bytes)
                .spawn(move || work(&queue))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job. One that panics ends alone; whoever waits for it sees its channel closed.
    pub(crate) fn submit(&self, job: impl FnOnce() + Send + 'static) {
        // The threads live as long as this sender, so the queue is open.
        let _ = self.jobs.send(Box::new(job));
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    loop {
        // The guard is gone before the job runs.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        if catch_unwind(AssertUnwindSafe(job)).is_err() {
            tracing::error!("a plugin call panicked in the host");
        }
    }
}
