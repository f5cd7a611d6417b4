//! A small pool of persistent threads for one backend.
//!
//! A step of a small model has a hundred parallel regions of a few microseconds each, so a region
//! must start without a system call: workers spin briefly for the next one. Between steps they park,
//! and an idle engine uses no processor time. Nothing here allocates after the pool was made.
//!
//! A region's tasks are divided into one contiguous range per thread, so that each streams its part of
//! a matrix in the order of memory; a thread that is done takes tasks from the far end of the others'
//! ranges, so that one that lost its processor, or is on a slow core, holds nobody up.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use super::cores;
pub use super::cores::default_threads;
use crate::turns;

/// How long a worker spins for the next region before it parks, unless told otherwise: more than a step computes
/// between two regions. When the machine is busy the caller may wait for the processor that is spun on,
/// so not much more.
const SPIN: Duration = Duration::from_micros(50);

/// How long the caller spins for the last worker before it lets others run. A worker that runs is
/// done sooner; to yield earlier would often be to wait for a time slice of somebody else.
const PATIENCE: Duration = Duration::from_millis(1);

/// Bit of [`Shared::gate`]: the region may be entered.
const OPEN: u64 = 1 << 63;

/// Shift of the number of threads that may enter, in [`Shared::gate`].
const THREADS: u32 = 32;

/// The bits of [`Shared::gate`] that count the workers inside.
const INSIDE: u64 = u32::MAX as u64;

/// What a region runs: `(task, thread)`.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// How a [`ThreadPool`] is made.
#[derive(Clone, Copy, Debug)]
pub struct PoolOptions {
    /// Threads, the caller's included; at least one.
    pub threads: usize,
    /// Whether each thread is kept on a core of its own, the caller of [`ThreadPool::adopt_caller`] too.
    pub pin: bool,
    /// How long a worker spins for the next region before it parks.
    pub spin: Duration,
    /// How long each thread computes before it lets others run.
    pub turn: Duration,
}

impl PoolOptions {
    /// `threads` threads that go where the system puts them.
    pub fn new(threads: usize) -> Self {
        Self { threads, pin: false, spin: SPIN, turn: turns::TURN }
    }
}

/// Threads that run the parallel regions of one owner; the calling thread is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Threads that the next regions use.
    limit: usize,
    /// The processor of each thread, where they are pinned.
    places: Option<Vec<usize>>,
    /// The thread that was last adopted.
    caller: Option<ThreadId>,
    /// How long each thread's turns are.
    turn: Duration,
}

struct Shared {
    current: Padded<Current>,
    /// [`OPEN`] while a region may be entered, the number of threads it is for, and the number of workers inside.
    /// A worker that has lost its processor is outside, and then nobody waits for it.
    gate: Padded<AtomicU64>,
    /// One per thread.
    seats: Box<[Padded<Seat>]>,
    /// Threads of the steps under way; workers beyond them do not spin.
    active: AtomicUsize,
    /// Whether a task of the current region panicked.
    panicked: AtomicBool,
    /// Whether workers should end.
    stop: AtomicBool,
    /// Turns of the spin loop before a worker parks.
    spins: u32,
    /// Turns of the spin loop before the caller yields to others.
    patience: u32,
}

/// Alone on its cache lines (two: processors fetch them in pairs), so that threads that write to it do not
/// slow down those that read its neighbours.
#[repr(align(128))]
struct Padded<T>(T);

/// What is looked at to find the next region.
struct Current {
    /// Counts regions; a change publishes `task`.
    epoch: AtomicUsize,
    /// The current region's. Written only while the gate is zero: closed and left by every worker.
    task: UnsafeCell<Option<*const Task<'static>>>,
}

/// What belongs to one thread.
struct Seat {
    tasks: TaskRange,
    /// Whether the worker sleeps, or is about to.
    parked: AtomicBool,
}

// SAFETY: `task` is the only field that is not Sync. It is written by `run` while `gate` is zero and
// read by workers between entering through the open gate (release/acquire) and leaving. What it points to
// is Sync and outlives the region: `run` returns only when the gate is zero again.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only ever used as a shared reference to something Sync.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `threads` threads (at least one), the caller's included.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::with_options(PoolOptions::new(threads))
    }

    /// A pool as `options` say.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn with_options(options: PoolOptions) -> std::io::Result<Self> {
        let threads = options.threads.max(1);
        let shared = Arc::new(Shared {
            current: Padded(Current { epoch: AtomicUsize::new(0), task: UnsafeCell::new(None) }),
            gate: Padded(AtomicU64::new(0)),
            seats: (0..threads).map(|_| Padded(Seat::default())).collect(),
            active: AtomicUsize::new(threads),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            spins: turns_in(options.spin),
            patience: turns_in(PATIENCE),
        });
        let places = if options.pin { cores::placement(threads) } else { None };
        let turn = options.turn;
        let mut pool = Self { shared, workers: Vec::new(), limit: threads, places, caller: None, turn };
        for thread in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let place = pool.places.as_ref().map(|places| places[thread]);
            let worker =
                std::thread::Builder::new().name(format!("redstart-cpu-{thread}")).spawn(move || {
                    settle(place, turn);
                    shared.work(thread);
                })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads of the pool, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Makes the calling thread one of the pool's: giving way to others, and on its core where this pool pins its
    /// threads. For a thread that will call [`run`](Self::run) for long; it stays so.
    pub fn adopt_caller(&mut self) {
        let caller = Some(std::thread::current().id());
        if self.caller != caller {
            self.caller = caller;
            settle(self.places.as_ref().map(|places| places[0]), self.turn);
        }
    }

    /// Makes the regions from now on use `threads` threads at most (and at least one). The others park.
    pub fn limit(&mut self, threads: usize) {
        self.limit = threads.clamp(1, self.threads());
        self.shared.active.store(self.limit, Ordering::Relaxed);
    }

    /// Calls `task(i, thread)` for every `i` below `tasks`, spread over the threads, and returns when all
    /// are done. `thread` is below [`threads`](Self::threads); no two calls at the same time have the same.
    ///
    /// # Panics
    /// When a task panicked, after all threads have left the region. When there are 2^31 tasks or more.
    pub fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        let threads = self.limit.min(tasks);
        turns::begin_region();
        if threads <= 1 {
            for i in 0..tasks {
                task(i, 0);
                turns::end_if_over();
            }
            return;
        }
        let shared = &*self.shared;
        let erased: *const Task<'_> = &task;
        // SAFETY: only the lifetime changes; `run` does not return, nor unwind, before the gate is closed
        // and every worker that entered has left.
        let erased: *const Task<'static> = unsafe { std::mem::transmute(erased) };
        // SAFETY: `&mut self` keeps other regions out, and the gate is zero, so no worker reads.
        unsafe { *shared.current.0.task.get() = Some(erased) };
        let tasks = i32::try_from(tasks).expect("fewer than 2^31 tasks").cast_unsigned();
        for (thread, seat) in shared.seats[..threads].iter().enumerate() {
            seat.0.tasks.set(share(tasks, threads, thread), share(tasks, threads, thread + 1));
        }
        shared.panicked.store(false, Ordering::Relaxed);
        shared.gate.0.store(OPEN | (threads as u64) << THREADS, Ordering::Release);
        self.publish(threads);
        let mut let_others_run = || {
            turns::end_if_over();
            true
        };
        let outcome =
            catch_unwind(AssertUnwindSafe(|| shared.take_tasks(&task, threads, 0, &mut let_others_run)));
        shared.gate.0.fetch_and(INSIDE, Ordering::Relaxed);
        let mut waited = 0u32;
        while shared.gate.0.load(Ordering::Acquire) > 0 {
            std::hint::spin_loop();
            waited = waited.saturating_add(1);
            if waited > shared.patience {
                // The last worker may have lost its processor, perhaps to this very thread.
                std::thread::yield_now();
            } else {
                turns::end_if_over();
            }
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a worker thread of the CPU backend panicked");
    }

    /// Makes the first `threads` threads look at the region again. Sequentially consistent together with
    /// [`Shared::wait`]: either the worker sees the new epoch or this sees it parked.
    fn publish(&self, threads: usize) {
        self.shared.current.0.epoch.fetch_add(1, Ordering::SeqCst);
        for (worker, seat) in self.workers.iter().zip(&self.shared.seats[1..]).take(threads - 1) {
            if seat.0.parked.load(Ordering::SeqCst) {
                worker.thread().unpark();
            }
        }
    }
}

/// Makes the calling thread a thread of a pool, on the processor that it is given.
fn settle(place: Option<usize>, turn: Duration) {
    if let Some(place) = place {
        cores::keep_on(&[place]);
    }
    turns::give_way();
    turns::set_length(turn);
}

/// First task of `thread`, when `tasks` are divided evenly.
fn share(tasks: u32, threads: usize, thread: usize) -> u32 {
    // Below `tasks`, as `thread` is at most `threads`.
    (u64::from(tasks) * thread as u64 / threads as u64) as u32
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.publish(self.threads());
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen, thread);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            // Out of the region while others run, so that nobody waits for this thread.
            while self.take_part(thread).is_some_and(|is_done| !is_done) {
                turns::end();
            }
        }
    }

    /// Takes part in the current region until nothing is left to take, or the thread's turn is over; returns which
    /// of the two, or `None` when the region cannot be entered.
    fn take_part(&self, thread: usize) -> Option<bool> {
        let threads = self.enter(thread)?;
        turns::begin_region();
        let mut is_done = true;
        // SAFETY: inside the gate the task stays as it was published.
        if let Some(task) = unsafe { *self.current.0.task.get() } {
            // SAFETY: the pointer is valid as long as this worker is inside the gate; see `run`.
            let task = unsafe { &*task };
            let take = || self.take_tasks(task, threads, thread, &mut || !turns::is_over());
            match catch_unwind(AssertUnwindSafe(take)) {
                Ok(none_left) => is_done = none_left,
                Err(_) => self.panicked.store(true, Ordering::Relaxed),
            }
        }
        self.gate.0.fetch_sub(1, Ordering::Release);
        Some(is_done)
    }

    /// Enters the current region, unless it is closed or not for this thread; returns the number of threads
    /// it is for.
    fn enter(&self, thread: usize) -> Option<usize> {
        let threads = |gate| ((gate & !OPEN) >> THREADS) as usize;
        let enter = |gate| (gate & OPEN != 0 && thread < threads(gate)).then_some(gate + 1);
        self.gate.0.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).ok().map(threads)
    }

    /// Waits until the epoch is no longer `seen`; returns the new one.
    fn wait(&self, seen: usize, thread: usize) -> usize {
        let epoch = &self.current.0.epoch;
        if thread < self.active.load(Ordering::Relaxed) {
            for _ in 0..self.spins {
                let epoch = epoch.load(Ordering::Acquire);
                if epoch != seen {
                    return epoch;
                }
                std::hint::spin_loop();
            }
        }
        let parked = &self.seats[thread].0.parked;
        parked.store(true, Ordering::SeqCst);
        while epoch.load(Ordering::SeqCst) == seen {
            std::thread::park();
        }
        parked.store(false, Ordering::SeqCst);
        epoch.load(Ordering::SeqCst)
    }

    /// Runs the thread's own tasks, then those that others have left. Asks after each whether it `may_go_on`, and returns
    /// whether it might until nothing was left.
    fn take_tasks(
        &self,
        task: &Task<'_>,
        threads: usize,
        thread: usize,
        may_go_on: &mut impl FnMut() -> bool,
    ) -> bool {
        while let Some(i) = self.seats[thread].0.tasks.take_first() {
            task(i, thread);
            if !may_go_on() {
                return false;
            }
        }
        for other in (1..threads).map(|step| (thread + step) % threads) {
            while let Some(i) = self.seats[other].0.tasks.take_last() {
                task(i, thread);
                if !may_go_on() {
                    return false;
                }
            }
        }
        true
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self { tasks: TaskRange(AtomicU64::new(0)), parked: AtomicBool::new(false) }
    }
}

/// The tasks of a thread that nobody has taken, `first..end`: `end` in the upper half of the word. The owner
/// takes from the front and others from the back. Relaxed: what a task reads was published with the region.
struct TaskRange(AtomicU64);

impl TaskRange {
    fn set(&self, first: u32, end: u32) {
        self.0.store(u64::from(end) << 32 | u64::from(first), Ordering::Relaxed);
    }

    /// For the owner. After `None`, `first` lies beyond `end`, one further each time that the owner asks again: half of the
    /// numbers are left for that.
    fn take_first(&self) -> Option<usize> {
        let range = self.0.fetch_add(1, Ordering::Relaxed);
        (bounds(range).0 < bounds(range).1).then_some(bounds(range).0 as usize)
    }

    fn take_last(&self) -> Option<usize> {
        let shorten = |range| (bounds(range).0 < bounds(range).1).then(|| range - (1 << 32));
        let range = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorten).ok()?;
        Some(bounds(range).1 as usize - 1)
    }
}

/// `(first, end)` of a [`TaskRange`].
fn bounds(range: u64) -> (u32, u32) {
    (range as u32, (range >> 32) as u32)
}

/// How many turns of a spin loop last as long as `time`. Measured, since a processor's pause instruction takes from
/// some to 140 cycles; counted and not timed later, so that a thread that lost its processor while it spun
/// still spins when it is back, instead of parking just when it is wanted.
fn turns_in(time: Duration) -> u32 {
    const SAMPLE: u32 = 200;
    let sample = || {
        let started = Instant::now();
        (0..SAMPLE).for_each(|_| std::hint::spin_loop());
        started.elapsed()
    };
    // The shortest: the others were interrupted.
    let shortest = (0..5).map(|_| sample()).min().expect("there are five").max(Duration::from_nanos(1));
    u32::try_from(time.as_nanos() * u128::from(SAMPLE) / shortest.as_nanos()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_once_in_every_region() {
        for threads in [1, 2, 5] {
            let mut pool = ThreadPool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 1000] {
                for _ in 0..20 {
                    let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(tasks, |i, thread| {
                        assert!(thread < threads);
                        counts[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn every_task_runs_once_where_each_thread_lets_others_run_all_the_time() {
        let options = PoolOptions { turn: Duration::ZERO, ..PoolOptions::new(3) };
        let mut pool = ThreadPool::with_options(options).unwrap();
        let mut check = || {
            pool.adopt_caller();
            for tasks in [2, 30, 1000, 1000, 1000] {
                let counts: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, |i, _| {
                    counts[i].fetch_add(1, Ordering::Relaxed);
                    // Within a task, too.
                    turns::end_if_over();
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
            }
        };
        // On a thread of its own, which stays adopted.
        std::thread::scope(|scope| scope.spawn(&mut check).join().unwrap());
    }

    #[test]
    fn parked_workers_wake_for_the_next_region() {
        let mut pool = ThreadPool::new(3).unwrap();
        for _ in 0..5 {
            while pool.shared.seats[1..].iter().any(|seat| !seat.0.parked.load(Ordering::SeqCst)) {
                std::thread::yield_now();
            }
            let count = AtomicUsize::new(0);
            pool.run(10, |_, _| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[test]
    fn a_limit_keeps_workers_out_and_lets_them_in_again() {
        let mut pool = ThreadPool::new(4).unwrap();
        for limit in [1, 3, 2, 4, 9, 0] {
            pool.limit(limit);
            for _ in 0..50 {
                let count = AtomicUsize::new(0);
                pool.run(100, |_, thread| {
                    assert!(thread < limit.max(1), "thread {thread} of {limit}");
                    count.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(count.into_inner(), 100);
            }
        }
    }

    /// The first task of one thread waits for all the others: those behind it must be taken from that thread.
    #[test]
    fn tasks_behind_a_long_one_are_taken_by_others() {
        const TASKS: usize = 64;
        for threads in [2, 3] {
            let mut pool = ThreadPool::new(threads).unwrap();
            for thread in 0..threads {
                let long = share(TASKS as u32, threads, thread) as usize;
                let done = AtomicUsize::new(0);
                pool.run(TASKS, |i, _| {
                    while i == long && done.load(Ordering::Relaxed) < TASKS - 1 {
                        std::thread::yield_now();
                    }
                    done.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(done.into_inner(), TASKS);
            }
        }
    }

    #[test]
    fn shares_are_even_and_without_gaps() {
        for (tasks, threads) in [(2, 2), (7, 3), (64, 5), (i32::MAX as u32, 256)] {
            let ends: Vec<u32> = (0..=threads).map(|thread| share(tasks, threads, thread)).collect();
            assert_eq!((ends[0], ends[threads]), (0, tasks));
            let least = tasks / threads as u32;
            assert!(ends.windows(2).all(|pair| (least..=least + 1).contains(&(pair[1] - pair[0]))));
        }
    }

    #[test]
    fn a_range_gives_every_task_once_from_both_ends() {
        let range = TaskRange(AtomicU64::new(0));
        assert_eq!((range.take_last(), range.take_first(), range.take_last()), (None, None, None));
        range.set(3, 7);
        let taken = [range.take_first(), range.take_last(), range.take_last(), range.take_first()];
        assert_eq!(taken, [Some(3), Some(6), Some(5), Some(4)]);
        assert_eq!((range.take_first(), range.take_last()), (None, None));
    }

    #[test]
    fn pinned_threads_compute_the_same() {
        // More threads than processors are left where they are.
        for threads in [2, 300] {
            let options = PoolOptions { pin: true, ..PoolOptions::new(threads) };
            let mut pool = ThreadPool::with_options(options).unwrap();
            // The caller is a thread of its own: it stays pinned.
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    pool.adopt_caller();
                    let count = AtomicUsize::new(0);
                    pool.run(1000, |_, _| {
                        count.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(count.into_inner(), 1000);
                });
            });
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_lives_on() {
        let mut pool = ThreadPool::new(3).unwrap();
        for bad in [0, 50, 99] {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |i, _| assert!(i != bad, "task {i}"));
            }));
            assert!(outcome.is_err());
        }
        let count = AtomicUsize::new(0);
        pool.run(100, |_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 100);
    }
}
