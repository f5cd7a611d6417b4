//! The threads that guests run on: few, with a stack that is known to hold the guest's and the host's. A guest that is
//! known to be quick may run on the caller's instead (see [`Workers::run_here`]).

use std::cell::RefCell;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::task::{Context, Poll};
use std::thread;

use tokio::sync::oneshot;

use crate::host::Sandbox;

type Job = Box<dyn FnOnce(&GuestThread<'_>) + Send>;

/// A queue and the threads that empty it. They end when it is dropped.
pub(crate) struct Workers {
    queue: Arc<Queue>,
}

/// Not a channel: with one receiver for all, each job taken would wake the thread that receives next.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// The thread on which plugins can be called, while it runs a job.
pub struct GuestThread<'a> {
    sandbox: &'a Sandbox,
    afterwards: RefCell<Vec<Afterwards>>,
}

type Afterwards = Box<dyn FnOnce(&Sandbox) + Send>;

/// What a job returns, to be waited for. A job that panics panics there.
#[must_use]
pub struct Outcome<T>(oneshot::Receiver<thread::Result<T>>);

impl<T> Future for Outcome<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<T> {
        Pin::new(&mut self.0).poll(context).map(|outcome| {
            let outcome = outcome.expect("a job that is waited for is run");
            outcome.unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

impl Workers {
    pub(crate) fn start(threads: usize, stack_bytes: usize, sandbox: &Arc<Sandbox>) -> std::io::Result<Self> {
        let workers = Self { queue: Arc::default() };
        for number in 0..threads {
            let (queue, sandbox) = (Arc::clone(&workers.queue), Arc::clone(sandbox));
            thread::Builder::new()
                .name(format!("redstart-plugin-{number}"))
                .stack_size(stack_bytes)
                .spawn(move || work(&queue, &sandbox))?;
        }
        Ok(workers)
    }

    /// Queues a job at once. It is not run if the outcome is dropped before.
    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        self.submit(move |thread| {
            if !reply.is_closed() {
                let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(thread))));
            }
        });
        Outcome(answer)
    }

    /// [`run`](Self::run), but on the calling thread, before this returns. What the job puts off is for the others.
    pub(crate) fn run_here<T>(
        &self,
        sandbox: &Sandbox,
        job: impl FnOnce(&GuestThread<'_>) -> T,
    ) -> Outcome<T> {
        let (reply, answer) = oneshot::channel();
        let thread = GuestThread { sandbox, afterwards: RefCell::default() };
        let _ = reply.send(catch_unwind(AssertUnwindSafe(|| job(&thread))));
        let put_off = thread.afterwards.take();
        if !put_off.is_empty() {
            self.submit(move |thread| put_off.into_iter().for_each(|work| work(thread.sandbox)));
        }
        Outcome(answer)
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
        self.queue.state().jobs.push_back(Box::new(job));
        self.queue.changed.notify_one();
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.queue.state().closed = true;
        self.queue.changed.notify_all();
    }
}

impl Queue {
    fn state(&self) -> MutexGuard<'_, State> {
        // Whole at every moment: nothing that can panic happens under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next job; `None` once there will be no more.
    fn next(&self) -> Option<Job> {
        let waiting = |state: &mut State| state.jobs.is_empty() && !state.closed;
        let state = self.changed.wait_while(self.state(), waiting);
        state.unwrap_or_else(PoisonError::into_inner).jobs.pop_front()
    }
}

impl GuestThread<'_> {
    pub(crate) fn sandbox(&self) -> &Sandbox {
        self.sandbox
    }

    /// Puts off what nobody needs to wait for until the job has answered.
    pub(crate) fn afterwards(&self, work: impl FnOnce(&Sandbox) + Send + 'static) {
        self.afterwards.borrow_mut().push(Box::new(work));
    }
}

fn work(queue: &Queue, sandbox: &Sandbox) {
    while let Some(job) = queue.next() {
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
