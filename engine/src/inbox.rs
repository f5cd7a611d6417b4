//! Requests on their way to the scheduler.
//!
//! The scheduler is the engine thread's own while it plans a step and takes in the result; to draw tokens from the
//! logits of a large vocabulary takes a millisecond and more. Those who submit answer keystrokes, and do not wait for
//! that: they leave requests here, where the lock is only ever held for moments.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::admission::{Admission, Waiting};
use crate::generator::{Generation, GenerationSender};
use crate::request::{Request, SubmitError};

/// A request that was admitted.
#[derive(Debug)]
pub(crate) struct Arrival {
    pub(crate) request: Request,
    pub(crate) sender: GenerationSender,
    pub(crate) submitted: Instant,
}

/// Where callers leave requests and the engine thread finds them.
#[derive(Debug)]
pub(crate) struct Inbox {
    admission: Admission,
    state: Mutex<State>,
    /// Signalled when there is a request, or the engine shall stop. A cancelled generation needs no signal:
    /// while one exists the thread is not asleep.
    wake: Condvar,
}

#[derive(Debug, Default)]
struct State {
    arrivals: Vec<Arrival>,
    /// What the scheduler last had that waits for its first step.
    waiting: Vec<Waiting>,
    /// Set by the owner to end the thread.
    shutdown: bool,
    /// Why the thread ended, once it did.
    stopped: Option<String>,
}

impl Inbox {
    pub(crate) fn new(admission: Admission) -> Self {
        Self { admission, state: Mutex::default(), wake: Condvar::new() }
    }

    /// Leaves a request for the engine thread.
    ///
    /// # Errors
    /// When it cannot be served, or the thread has ended.
    pub(crate) fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let (sender, generation) = Generation::channel();
        let mut state = self.lock();
        if let Some(reason) = &state.stopped {
            return Err(SubmitError::Stopped(reason.clone()));
        }
        let arrived = state.arrivals.iter().map(Arrival::waiting);
        self.admission.check(&request, state.waiting.iter().cloned().chain(arrived))?;
        state.arrivals.push(Arrival { request, sender, submitted: generation.submitted() });
        drop(state);
        self.wake.notify_one();
        Ok(generation)
    }

    /// Waits for a request, unless the scheduler `has_work`. Returns false when the thread shall end.
    pub(crate) fn wait(&self, has_work: bool) -> bool {
        let is_idle = |state: &mut State| !state.shutdown && !has_work && state.arrivals.is_empty();
        let state = self.wake.wait_while(self.lock(), is_idle).unwrap_or_else(PoisonError::into_inner);
        !state.shutdown
    }

    /// Moves what has arrived to `arrivals`, which must be empty. It holds its place in the queue.
    pub(crate) fn take(&self, arrivals: &mut Vec<Arrival>) {
        let mut state = self.lock();
        std::mem::swap(&mut state.arrivals, arrivals);
        state.waiting.extend(arrivals.iter().map(Arrival::waiting));
    }

    /// Says which requests the scheduler has that wait for their first step.
    pub(crate) fn set_waiting(&self, waiting: impl Iterator<Item = Waiting>) {
        let mut state = self.lock();
        state.waiting.clear();
        state.waiting.extend(waiting);
    }

    /// How many requests nobody has taken.
    pub(crate) fn len(&self) -> usize {
        self.lock().arrivals.len()
    }

    /// Makes the engine thread end.
    pub(crate) fn shut_down(&self) {
        self.lock().shutdown = true;
        self.wake.notify_one();
    }

    /// Refuses requests from now on. Returns those that nobody took.
    pub(crate) fn close(&self, reason: String) -> Vec<Arrival> {
        let mut state = self.lock();
        state.stopped = Some(reason);
        std::mem::take(&mut state.arrivals)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock leaves the state half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Arrival {
    fn waiting(&self) -> Waiting {
        let Request { priority, supersede_key, .. } = self.request;
        Waiting { priority, supersede_key, control: self.sender.control() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Priority;
    use crate::scheduler::SchedulerConfig;

    fn inbox(max_waiting: usize) -> Inbox {
        let config = SchedulerConfig {
            num_blocks: 8,
            max_model_len: 32,
            vocab_size: 10,
            max_batch_tokens: 8,
            max_sequences: 2,
            max_waiting,
            eos_token_ids: Vec::new(),
        };
        Inbox::new(Admission::new(&config, false))
    }

    fn request(priority: Priority, supersede_key: Option<u64>) -> Request {
        Request { priority, supersede_key, ..Request::new(vec![1, 2], 4) }
    }

    #[test]
    fn a_request_holds_its_place_until_the_scheduler_says_that_it_started() {
        let inbox = inbox(2);
        let typing = || inbox.submit(request(Priority::Typing, None));
        let full = SubmitError::QueueFull { limit: 2 };
        let (_first, second) = (typing().unwrap(), typing().unwrap());
        assert_eq!(typing().unwrap_err(), full, "two have arrived");
        let mut arrivals = Vec::new();
        inbox.take(&mut arrivals);
        assert_eq!((arrivals.len(), inbox.len()), (2, 0));
        assert_eq!(typing().unwrap_err(), full, "the scheduler has two");
        drop(second);
        let _third = typing().expect("a cancelled request holds no place");
        inbox.set_waiting(std::iter::empty());
        let _fourth = typing().expect("those that started no longer wait");
        assert_eq!(typing().unwrap_err(), full, "the third and the fourth have arrived");
    }

    #[test]
    fn a_request_does_not_wait_behind_lower_ones_and_the_one_whose_place_it_takes() {
        let inbox = inbox(1);
        let _warm_up = inbox.submit(request(Priority::WarmUp, None)).unwrap();
        let _typing = inbox.submit(request(Priority::Typing, Some(7))).expect("above the warm-up");
        let _newer = inbox.submit(request(Priority::Typing, Some(7))).expect("in the other's place");
        let other = inbox.submit(request(Priority::Typing, Some(8)));
        assert_eq!(other.unwrap_err(), SubmitError::QueueFull { limit: 1 });
    }

    #[test]
    fn what_cannot_be_served_is_refused_at_once() {
        let inbox = inbox(1);
        let submit = |prompt| inbox.submit(Request::new(prompt, 1)).unwrap_err();
        assert_eq!(submit(vec![1; 32]), SubmitError::PromptTooLong { tokens: 32, limit: 31 });
        assert_eq!(submit(vec![10]), SubmitError::UnknownToken { id: 10, vocab_size: 10 });
        assert_eq!(inbox.len(), 0);
    }

    #[test]
    fn a_closed_inbox_gives_back_what_nobody_took() {
        let inbox = inbox(4);
        let _generation = inbox.submit(request(Priority::Typing, None)).unwrap();
        assert_eq!(inbox.close("the card is gone".to_owned()).len(), 1);
        let refused = inbox.submit(request(Priority::Typing, None));
        assert_eq!(refused.unwrap_err(), SubmitError::Stopped("the card is gone".to_owned()));
    }

    #[test]
    fn waiting_ends_with_work_a_request_and_the_end() {
        let inbox = inbox(4);
        assert!(inbox.wait(true));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.wait(false));
            let _generation = inbox.submit(request(Priority::Typing, None)).unwrap();
            assert!(waiting.join().unwrap());
        });
        inbox.take(&mut Vec::new());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| inbox.wait(false));
            inbox.shut_down();
            assert!(!waiting.join().unwrap());
        });
    }
}
