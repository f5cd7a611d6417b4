//! How the system divides processors between threads that compute and all others.
//!
//! A thread that computes takes turns with others: every now and then it asks whether its turn is over
//! ([`end_if_over`]), more often than a turn is long, in tasks that take longer as well.

use std::cell::RefCell;
use std::time::{Duration, Instant};

/// How long a thread computes before it lets others run, unless told otherwise; to ask takes less than a hundredth of it.
/// Others wait longer after others took long.
pub(crate) const TURN: Duration = Duration::from_micros(100);

/// Others are done sooner when they answer a keystroke. Who takes longer computes as well, or draws.
const BRIEF: Duration = Duration::from_millis(2);

/// How much time of such others is given at once: several pictures of an editor.
const GIVEN: Duration = Duration::from_millis(20);

/// What is given beyond, as much again at the most, is had back so many times before others are let run again: beside a compiler
/// a thread would otherwise get little of its processor.
const KEPT: u32 = 20;

/// The clock is looked at so often in a turn.
const LOOKS_PER_TURN: u32 = 8;

/// Questions between two looks at the most. To look takes about as long as the shortest task between two questions.
const QUESTIONS_PER_LOOK: u32 = 8;

/// Values between two questions where there are many, such as a vocabulary's: some 10 to 50 microseconds.
const PART: usize = 8192;

thread_local! {
    static OWN: RefCell<Turns> = RefCell::new(Turns::new(TURN));
}

/// `values` in order, a few thousand at a time with the place of the first; in between others are let run when it is time.
pub(crate) fn parts<T>(values: &[T]) -> impl Iterator<Item = (usize, &[T])> {
    (0..).step_by(PART).zip(values.chunks(PART)).inspect(|_| end_if_over())
}

/// Makes `values` so long with copies of `value`, as [`Vec::resize`] does. In between others are let run when it is time: memory that
/// nobody has used yet comes from the system page by page, some milliseconds for a first step's.
pub(crate) fn resize<T: Clone>(values: &mut Vec<T>, len: usize, value: &T) {
    values.truncate(len);
    values.reserve(len - values.len());
    while values.len() < len {
        values.resize(len.min(values.len() + PART), value.clone());
        end_if_over();
    }
}

/// Makes the calling thread's turns so long.
pub(crate) fn set_length(turn: Duration) {
    OWN.replace(Turns::new(turn));
}

/// Says that the calling thread will ask more seldom, or more often, than before.
pub(crate) fn begin_region() {
    OWN.with_borrow_mut(Turns::begin_region);
}

/// Whether it is time for the calling thread to let others run.
pub(crate) fn is_over() -> bool {
    OWN.with_borrow_mut(Turns::is_over)
}

/// Lets others run on the calling thread's processor.
pub(crate) fn end() {
    OWN.with_borrow_mut(Turns::end);
}

/// Lets others run, if it is time.
pub(crate) fn end_if_over() {
    OWN.with_borrow_mut(|turns| {
        if turns.is_over() {
            turns.end();
        }
    });
}

/// When a thread that computes lets others run.
///
/// A thread that wakes up for a moment can have had more than its share of the last one, as a server and its editor have
/// when they answer each other. Then a thread that computes keeps the processor until the clock ticks
/// (Linux: 1 to 10 ms), unless it asks.
#[derive(Debug)]
struct Turns {
    /// How long a turn mostly is, and how long the one under way.
    usual: Duration,
    length: Duration,
    end: Instant,
    /// When the clock was looked at, the questions since, and after how many it is again.
    looked: Instant,
    questions: u32,
    questions_per_look: u32,
    /// Seconds that may still be given to others who take long; below zero when they took more.
    credit: f64,
    /// Whether others took long after the turn before this one.
    took_long: bool,
}

impl Turns {
    fn new(turn: Duration) -> Self {
        let now = Instant::now();
        Self {
            usual: turn,
            length: turn,
            end: now + turn,
            looked: now,
            questions: 0,
            questions_per_look: 1,
            credit: GIVEN.as_secs_f64(),
            took_long: false,
        }
    }

    fn begin_region(&mut self) {
        self.questions_per_look = 1;
    }

    fn is_over(&mut self) -> bool {
        self.questions += 1;
        if self.questions < self.questions_per_look {
            return false;
        }
        let now = Instant::now();
        self.questions_per_look = self.questions_until_next_look(now - self.looked);
        (self.looked, self.questions) = (now, 0);
        now >= self.end
    }

    /// As many as fit between two looks, when the last ones took `time`.
    fn questions_until_next_look(&self, time: Duration) -> u32 {
        let wanted = (self.usual / LOOKS_PER_TURN).as_nanos() * u128::from(self.questions);
        let questions = wanted.checked_div(time.as_nanos()).unwrap_or(u128::MAX);
        questions.clamp(1, u128::from(QUESTIONS_PER_LOOK)) as u32
    }

    fn end(&mut self) {
        let before = Instant::now();
        std::thread::yield_now();
        let now = Instant::now();
        self.length = self.next_length(now - before);
        self.end = now + self.length;
    }

    /// How long the next turn is, when others took `others` after the one that is over.
    ///
    /// Who computes takes long each time it is let run. Once, it may have been a virtual machine's host, or an editor that
    /// drew, and who wants the processor next may be answering a keystroke.
    fn next_length(&mut self, others: Duration) -> Duration {
        let (kept, given) = (f64::from(KEPT), GIVEN.as_secs_f64());
        self.credit = (self.credit + self.length.as_secs_f64() / kept).min(given);
        let took_long_before = std::mem::replace(&mut self.took_long, others >= BRIEF);
        if !self.took_long {
            return self.usual;
        }
        self.credit = (self.credit - others.as_secs_f64()).max(-given);
        if !took_long_before {
            return self.usual;
        }
        self.usual.max(Duration::from_secs_f64((-self.credit).max(0.0) * kept))
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

#[cfg(test)]
mod tests {
    use super::*;

    const TURN: Duration = Duration::from_micros(200);

    fn turns() -> Turns {
        Turns::new(TURN)
    }

    #[test]
    fn a_vector_is_resized_as_by_its_own_method() {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for (value, len) in
            [0, 1, PART, PART + 1, 3 * PART, 2 * PART - 1, 5, 5 * PART + 7].into_iter().enumerate()
        {
            resize(&mut ours, len, &value);
            theirs.resize(len, value);
            assert_eq!(ours, theirs);
        }
    }

    #[test]
    fn who_is_brief_is_let_run_after_every_turn() {
        let mut turns = turns();
        for _ in 0..10_000 {
            turns.length = turns.next_length(BRIEF - Duration::from_nanos(1));
            assert_eq!(turns.length, TURN);
        }
    }

    #[test]
    fn who_draws_now_and_then_is_let_run_after_every_turn() {
        let mut turns = turns();
        for number in 0..10_000 {
            // 5 ms in 120 of computing.
            let others = if number % 600 == 0 { Duration::from_millis(5) } else { Duration::ZERO };
            turns.length = turns.next_length(others);
            assert_eq!(turns.length, TURN, "turn {number}");
        }
    }

    #[test]
    fn who_always_computes_gets_what_is_given_and_then_a_share() {
        let slice = Duration::from_millis(4);
        let mut turns = turns();
        let at_once = (0..100).take_while(|_| {
            turns.length = turns.next_length(slice);
            turns.length == TURN
        });
        assert_eq!(at_once.count(), 5, "all that is given, and what the turns between them add");
        let (mut own, mut others) = (Duration::ZERO, Duration::ZERO);
        for _ in 0..100 {
            own += turns.length;
            others += slice;
            turns.length = turns.next_length(slice);
        }
        let share = own.as_secs_f64() / others.as_secs_f64();
        assert!((19.0..=20.1).contains(&share), "{share} times as long as others");
    }

    #[test]
    fn who_takes_long_but_not_twice_in_a_row_is_let_run_after_every_turn() {
        let mut turns = turns();
        for number in 0..1000 {
            let others = if number % 2 == 0 { Duration::from_millis(5) } else { Duration::ZERO };
            turns.length = turns.next_length(others);
            assert_eq!(turns.length, TURN, "turn {number}");
        }
        turns.next_length(BRIEF);
        assert_eq!(turns.next_length(BRIEF), GIVEN * KEPT, "what was taken before counts then");
    }

    #[test]
    fn a_process_that_was_stopped_for_an_hour_lets_others_run_soon() {
        let mut turns = turns();
        assert_eq!(turns.next_length(Duration::from_secs(3600)), TURN);
        assert_eq!(turns.next_length(Duration::from_secs(3600)), GIVEN * KEPT);
    }

    #[test]
    fn the_clock_is_looked_at_as_often_as_questions_are_rare() {
        let mut turns = turns();
        turns.questions = 4;
        let after = |microseconds| turns.questions_until_next_look(Duration::from_micros(microseconds));
        // 25 microseconds should lie between two looks.
        assert_eq!([0, 1, 20, 50, 100, 5000].map(after), [8, 8, 5, 2, 1, 1]);
    }
}
