//! What the thread pool costs: a region of empty tasks, and how soon another thread is at work.
//!
//! `cargo run --release -p redstart-engine --example pool_speed -- [THREADS]`

#![expect(clippy::print_stdout, reason = "a command-line measurement; stdout is for its figures")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use redstart_engine::cpu::threads::{PoolOptions, ThreadPool, default_threads};

const REPEATS: usize = 300;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let given = std::env::args().nth(1).map(|threads| threads.parse()).transpose()?;
    let threads = given.unwrap_or_else(default_threads);
    if threads < 2 {
        return Err("give a number of threads above one".into());
    }
    for pin in [false, true] {
        let mut pool = ThreadPool::with_options(PoolOptions { pin, ..PoolOptions::new(threads) })?;
        pool.adopt_caller();
        println!("{threads} threads, {}", if pin { "pinned" } else { "not pinned" });
        for tasks in [2, 16, 128, 1024] {
            report(&format!("  region of {tasks} empty tasks"), || region(&mut pool, tasks));
        }
        report("  another thread's first task, after 10 us without a region", || {
            spin(Duration::from_micros(10));
            first_task_elsewhere(&mut pool)
        });
        report("  another thread's first task, after 2 ms without a region", || {
            std::thread::sleep(Duration::from_millis(2));
            first_task_elsewhere(&mut pool)
        });
    }
    Ok(())
}

/// Mean time of a region, of a hundred one after the other.
fn region(pool: &mut ThreadPool, tasks: usize) -> Duration {
    const REGIONS: u32 = 100;
    let started = Instant::now();
    for _ in 0..REGIONS {
        pool.run(tasks, |task, _| {
            std::hint::black_box(task);
        });
    }
    started.elapsed() / REGIONS
}

/// Time from the call of `run` until a thread that is not the caller has a task.
fn first_task_elsewhere(pool: &mut ThreadPool) -> Duration {
    let arrival = AtomicU64::new(0);
    let started = Instant::now();
    pool.run(2, |_, thread| {
        if thread > 0 {
            arrival.store(started.elapsed().as_nanos() as u64, Ordering::Relaxed);
        }
        // The caller leaves the other task to the other thread.
        while arrival.load(Ordering::Relaxed) == 0 && started.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
    });
    match arrival.into_inner() {
        0 => started.elapsed(),
        nanoseconds => Duration::from_nanos(nanoseconds),
    }
}

fn spin(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

fn report(what: &str, mut measure: impl FnMut() -> Duration) {
    let mut times: Vec<Duration> = (0..REPEATS).map(|_| measure()).collect();
    times.sort();
    println!("{what}: best {:.2?}, median {:.2?}", times[0], times[REPEATS / 2]);
}
