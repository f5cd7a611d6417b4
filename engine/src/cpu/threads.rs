//! A small pool of persistent threads for one backend.
//!
//! A step of a small model has a hundred parallel regions of a few microseconds each, so a region
//! must start without a system call: workers spin briefly for the next one. Between steps they park,
//! and an idle engine uses no processor time.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

/// Turns of the spin loop before a worker parks: some tens of microseconds.
const SPINS: usize = 2_000;

/// Most threads taken unless asked otherwise: beyond these a desktop's memory is the limit.
const MOST_DEFAULT_THREADS: usize = 8;

/// Bit of [`Shared::gate`]: the region may be entered.
const OPEN: usize = 1 << (usize::BITS - 1);

/// What a region runs: `(task, thread)`.
type Task<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// Threads that run the parallel regions of one owner; the calling thread is one of them.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// The current region. Written only while `gate` is zero: closed and left by every worker.
    region: UnsafeCell<Region>,
    /// Counts regions; a change publishes `region`.
    epoch: AtomicUsize,
    /// Next task that nobody has taken.
    next_task: AtomicUsize,
    /// [`OPEN`] while a region may be entered, plus the number of workers inside. A worker that has
    /// lost its processor is outside, and then nobody waits for it.
    gate: AtomicUsize,
    /// Whether a task of the current region panicked.
    panicked: AtomicBool,
    /// Whether workers should end.
    stop: AtomicBool,
    /// Number of parked workers, changed under `lock`.
    parked: AtomicUsize,
    lock: Mutex<()>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Region {
    task: Option<*const Task<'static>>,
    tasks: usize,
}

// SAFETY: `region` is the only field that is not Sync. It is written by `run` while `gate` is zero and
// read by workers between entering through the open gate (release/acquire) and leaving. The task it
// points to is Sync and outlives the region: `run` returns only when the gate is zero again.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only ever used as a shared reference to something Sync.
unsafe impl Send for Shared {}

impl ThreadPool {
    /// A pool of `threads` threads (at least one), the caller's included.
    ///
    /// # Errors
    /// When the system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            region: UnsafeCell::new(Region { task: None, tasks: 0 }),
            epoch: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            gate: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stop: AtomicBool::new(false),
            parked: AtomicUsize::new(0),
            lock: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self { shared, workers: Vec::new() };
        for thread in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("redstart-cpu-{thread}"))
                .spawn(move || shared.work(thread))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that run a region, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i, thread)` for every `i` below `tasks`, spread over the threads, and returns when all
    /// are done. `thread` is below [`threads`](Self::threads); no two calls at the same time have the same.
    ///
    /// # Panics
    /// When a task panicked, after all threads have left the region.
    pub fn run(&mut self, tasks: usize, task: impl Fn(usize, usize) + Sync) {
        if self.workers.is_empty() || tasks <= 1 {
            (0..tasks).for_each(|i| task(i, 0));
            return;
        }
        let shared = &*self.shared;
        let erased: *const Task<'_> = &task;
        // SAFETY: only the lifetime changes; `run` does not return, nor unwind, before the gate is closed
        // and every worker that entered has left.
        let erased: *const Task<'static> = unsafe { std::mem::transmute(erased) };
        // SAFETY: `&mut self` keeps other regions out, and the gate is zero, so no worker reads.
        unsafe { *shared.region.get() = Region { task: Some(erased), tasks } };
        shared.next_task.store(0, Ordering::Relaxed);
        shared.panicked.store(false, Ordering::Relaxed);
        shared.gate.store(OPEN, Ordering::Release);
        shared.publish();
        let outcome = catch_unwind(AssertUnwindSafe(|| shared.take_tasks(&task, tasks, 0)));
        shared.gate.fetch_and(!OPEN, Ordering::Relaxed);
        let mut spins = 0;
        while shared.gate.load(Ordering::Acquire) > 0 {
            spin(&mut spins);
        }
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
        assert!(!shared.panicked.load(Ordering::Relaxed), "a worker thread of the CPU backend panicked");
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.publish();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of its tasks, so there is nothing to report here.
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// Makes workers look at the region again. Sequentially consistent together with
    /// [`wait`](Self::wait): either the worker sees the new epoch or this sees it parked.
    fn publish(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
        if self.parked.load(Ordering::SeqCst) > 0 {
            drop(self.lock.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }

    fn work(&self, thread: usize) {
        let mut seen = 0;
        loop {
            seen = self.wait(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            if !self.enter() {
                continue;
            }
            // SAFETY: inside the gate the region stays as it was published.
            let Region { task, tasks } = unsafe { *self.region.get() };
            if let Some(task) = task {
                // SAFETY: the pointer is valid as long as this worker is inside the gate; see `run`.
                let task = unsafe { &*task };
                if catch_unwind(AssertUnwindSafe(|| self.take_tasks(task, tasks, thread))).is_err() {
                    self.panicked.store(true, Ordering::Relaxed);
                }
            }
            self.gate.fetch_sub(1, Ordering::Release);
        }
    }

    /// Enters the current region unless it is closed.
    fn enter(&self) -> bool {
        let enter = |gate| (gate & OPEN != 0).then_some(gate + 1);
        self.gate.fetch_update(Ordering::Acquire, Ordering::Relaxed, enter).is_ok()
    }

    /// Waits until the epoch is no longer `seen`; returns the new one.
    fn wait(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != seen {
                return epoch;
            }
            std::hint::spin_loop();
        }
        let mut guard = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        self.parked.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.parked.fetch_sub(1, Ordering::SeqCst);
        drop(guard);
        self.epoch.load(Ordering::SeqCst)
    }

    fn take_tasks(&self, task: &Task<'_>, tasks: usize, thread: usize) {
        loop {
            let i = self.next_task.fetch_add(1, Ordering::Relaxed);
            if i >= tasks {
                return;
            }
            task(i, thread);
        }
    }
}

/// One turn of waiting for the other threads: spins at first, then lets others run, since a worker
/// may have lost its processor.
fn spin(spins: &mut usize) {
    *spins += 1;
    if *spins < SPINS {
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// Physical cores this process may use, at most eight: two hyperthreads share the units that the
/// kernels keep busy.
pub fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(physical_cores().unwrap_or(allowed)).clamp(1, MOST_DEFAULT_THREADS)
}

/// Physical cores of the machine where the system tells (Linux).
fn physical_cores() -> Option<usize> {
    let mut cores = std::collections::HashSet::new();
    for entry in std::fs::read_dir("/sys/devices/system/cpu").ok()?.flatten() {
        // Each core is known by the list of its hyperthreads.
        if let Ok(siblings) = std::fs::read_to_string(entry.path().join("topology/thread_siblings_list")) {
            cores.insert(siblings);
        }
    }
    (!cores.is_empty()).then_some(cores.len())
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
    fn parked_workers_wake_for_the_next_region() {
        let mut pool = ThreadPool::new(3).unwrap();
        for _ in 0..5 {
            while pool.shared.parked.load(Ordering::SeqCst) < 2 {
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
