//! The clock of the deadlines. Compiled guests compare wasmtime's epoch with their deadline at every
//! loop and call; this thread advances it. It must be an OS thread: a timer of an async runtime could
//! itself be starved by a guest that spins.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use wasmtime::Engine;

/// Precision of deadlines.
pub(crate) const TICK: Duration = Duration::from_millis(25);

/// Ticks without a call after which the clock stops. While somebody types it runs on, since waking its thread
/// takes as long as half a call.
const LINGER: u32 = 40;

/// Advances the epoch of one engine while calls are under way and for a moment after, and sleeps otherwise.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Calls under way.
    calls: usize,
    /// Ticks since the last one.
    quiet: u32,
    stopped: bool,
}

/// Held while a call is under way.
pub(crate) struct Ticking<'a>(&'a Shared);

impl Ticker {
    pub(crate) fn start(engine: Engine) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new()
            .name("redstart-plugin-clock".to_owned())
            .spawn(move || tick(&engine, &of_thread))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Makes the clock run until the result is dropped.
    pub(crate) fn run(&self) -> Ticking<'_> {
        let mut state = self.shared.state();
        state.calls += 1;
        if state.sleeps() {
            self.shared.changed.notify_one();
        }
        state.quiet = 0;
        Ticking(&self.shared)
    }
}

impl Drop for Ticking<'_> {
    fn drop(&mut self) {
        self.0.state().calls -= 1;
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.state().stopped = true;
        self.shared.changed.notify_one();
        if let Some(thread) = self.thread.take() {
            // It cannot have panicked in a way that matters now.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // Counters are whole at every moment, so a panic elsewhere leaves nothing half-done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the clock waits for a call.
    fn sleeps(&self) -> bool {
        self.quiet >= LINGER
    }
}

fn tick(engine: &Engine, shared: &Shared) {
    let mut state = shared.state();
    while !state.stopped {
        if state.sleeps() {
            state = shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        }
        let waited = shared.changed.wait_timeout(state, TICK);
        state = waited.unwrap_or_else(PoisonError::into_inner).0;
        engine.increment_epoch();
        state.quiet = if state.calls > 0 { 0 } else { state.quiet + 1 };
    }
}
