//! How the system divides processors between threads that compute and all others.

use std::time::{Duration, Instant};

/// How long a thread computes before it lets others run, unless told otherwise; to ask costs less than a thousandth of it.
/// Others wait longer behind long tasks, and after others took long.
pub(super) const TURN: Duration = Duration::from_micros(200);

/// Others are done sooner when they answer a keystroke. Who takes longer computes as well.
const BRIEF: Duration = Duration::from_millis(2);

/// After others took long, a thread keeps its processor for so many times as long: beside a compiler it would
/// otherwise get little of it.
const KEPT: u32 = 20;

/// Tasks after which a thread looks at the clock, which takes about as long as the shortest of them.
const TASKS_PER_LOOK: u32 = 8;

/// When a thread that computes lets others run.
///
/// A thread that wakes up for a moment can have had more than its share of the last one, as a server and its editor have
/// when they answer each other. Then a thread that computes keeps the processor until the clock ticks
/// (Linux: 1 to 10 ms), unless it asks.
#[derive(Debug)]
pub(super) struct Turns {
    turn: Duration,
    end: Instant,
    /// Tasks since the clock was looked at.
    tasks: u32,
}

impl Turns {
    pub(super) fn new(turn: Duration) -> Self {
        Self { turn, end: Instant::now() + turn, tasks: 0 }
    }

    /// Whether it is time to let others run, after one more task.
    pub(super) fn is_over(&mut self) -> bool {
        self.tasks += 1;
        if self.tasks < TASKS_PER_LOOK {
            return false;
        }
        self.tasks = 0;
        Instant::now() >= self.end
    }

    /// Lets others run, if it is time after one more task.
    pub(super) fn take(&mut self) {
        if self.is_over() {
            self.end();
        }
    }

    /// Lets others run.
    pub(super) fn end(&mut self) {
        let now = Instant::now();
        std::thread::yield_now();
        let others = now.elapsed();
        let next = if others < BRIEF { self.turn } else { others * KEPT };
        self.end = now + others + next;
    }
}

/// Makes the calling thread give way to threads that wake up for a moment: those that answer a keystroke, and the editor's
/// own. Its share of the processor stays what it is. Elsewhere than on Linux nothing changes.
///
/// As a batch thread it does not take a processor from a thread that is about to be done; as it was, it did so from
/// the very thread that had just given it work. And with long time slices (Linux since 6.12) it mostly has
/// the later deadline, so that a thread that wakes up gets the processor at once. They are no longer, because a
/// thread that yields forfeits the rest of its slice (Linux since 6.18).
pub fn give_way() {
    if let Err(error) = system::give_way() {
        tracing::debug!(%error, "a thread that computes is scheduled as any other");
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::io;
    use std::mem::size_of;

    /// A time slice longer than others' (at most 3 ms), in nanoseconds.
    const LONG: u64 = 4_000_000;

    const CALLING_THREAD: libc::pid_t = 0;
    const NO_FLAGS: libc::c_uint = 0;

    pub(super) fn give_way() -> io::Result<()> {
        let mut attributes = attributes()?;
        // Other policies were chosen by somebody, and mean something else by the runtime.
        if attributes.sched_policy != libc::SCHED_OTHER as u32 {
            return Ok(());
        }
        attributes.sched_policy = libc::SCHED_BATCH as u32;
        attributes.sched_runtime = LONG;
        // SAFETY: the kernel reads as many bytes as the structure says it has.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_setattr, CALLING_THREAD, &raw const attributes, NO_FLAGS)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What the scheduler knows of the calling thread.
    pub(super) fn attributes() -> io::Result<libc::sched_attr> {
        // SAFETY: numbers only, for which zero is a value.
        let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
        let bytes = size_of::<libc::sched_attr>() as libc::c_uint;
        // SAFETY: the kernel writes no more than the number of bytes it is told, and the structure is that large.
        let result = unsafe {
            libc::syscall(libc::SYS_sched_getattr, CALLING_THREAD, &raw mut attributes, bytes, NO_FLAGS)
        };
        if result == 0 { Ok(attributes) } else { Err(io::Error::last_os_error()) }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn a_thread_becomes_a_batch_thread_of_the_same_share() {
            // On a thread of its own: it would stay so with the test's.
            let of_thread = || {
                let before = attributes().unwrap();
                give_way().unwrap();
                (before, attributes().unwrap())
            };
            let (before, after) = std::thread::spawn(of_thread).join().unwrap();
            let ordinary = before.sched_policy == libc::SCHED_OTHER as u32;
            let batch = libc::SCHED_BATCH as u32;
            assert_eq!(after.sched_policy, if ordinary { batch } else { before.sched_policy });
            assert_eq!(after.sched_nice, before.sched_nice);
            // Older kernels do not say how long a slice is.
            assert!([before.sched_runtime, LONG].contains(&after.sched_runtime));
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub(super) fn give_way() -> std::io::Result<()> {
        Ok(())
    }
}
