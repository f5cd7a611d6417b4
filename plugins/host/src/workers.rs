//! The threads that guests run on: few, with a stack that is known to hold the guest's and the host's.
//! Guests never run on the threads of an async runtime, which they would block.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use tokio::sync::oneshot;

use crate::host::Sandbox;

type Job = Box<dyn FnOnce(&GuestThread<'_>) + Send>;

/// A queue and the threads that empty it. They end when it is dropped.
pub(crate) struct Workers {
    jobs: Sender<Job>,
}

/// A thread on which plugins can be called, while it runs a job.
pub struct GuestThread<'a> {
    sandbox: &'a Sandbox,
    afterwards: RefCell<Vec<Afterwards>>,
}

type Afterwards = Box<dyn FnOnce(&Sandbox)>;

impl Workers {
    pub(crate) fn start(threads: usize, stack_bytes: usize, sandbox: &Arc<Sandbox>) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let (queue, sandbox) = (Arc::clone(&queue), Arc::clone(sandbox));
            thread::Builder::new()
                .name(format!("redstart-plugin-{number}"))
                .stack_size(stack_bytes)
                .spawn(move || work(&queue, &sandbox))?;
        }
        Ok(Self { jobs })
    }

    /// Queues a job at once; the future waits for it. A job that panics panics there. Nothing is run for a future that
    /// was dropped before.
    pub(crate) fn run<T, F>(&self, job: F) -> impl Future<Output = T> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        self.submit(move |thread| {
            if !reply.is_closed() {
                let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(thread))));
            }
        });
        async move {
            let outcome = answer.await.expect("a job that is waited for is run");
            outcome.unwrap_or_else(|panic| resume_unwind(panic))
        }
    }

    /// [`run`](Self::run) for threads that may block.
    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> T {
        let (reply, answer) = mpsc::sync_channel(1);
        self.submit(move |thread| {
            let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(thread))));
        });
        let outcome = answer.recv().expect("a job that is waited for is run");
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    }

    fn submit(&self, job: impl FnOnce(&GuestThread<'_>) + Send + 'static) {
        // The threads live as long as this sender, so the queue is open.
        let _ = self.jobs.send(Box::new(job));
    }
}

impl GuestThread<'_> {
    pub(crate) fn sandbox(&self) -> &Sandbox {
        self.sandbox
    }

    /// Puts off what nobody needs to wait for until the job has answered.
    pub(crate) fn afterwards(&self, work: impl FnOnce(&Sandbox) + 'static) {
        self.afterwards.borrow_mut().push(Box::new(work));
    }
}

fn work(queue: &Mutex<Receiver<Job>>, sandbox: &Sandbox) {
    loop {
        // The guard is gone before the job runs.
        let next = queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(job) = next else { return };
        let thread = GuestThread { sandbox, afterwards: RefCell::default() };
        let run = || {
            job(&thread);
            thread.afterwards.take().into_iter().for_each(|work| work(sandbox));
        };
        if catch_unwind(AssertUnwindSafe(run)).is_err() {
            tracing::error!("clearing up after a plugin call panicked");
        }
    }
}
