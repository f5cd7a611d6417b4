//! When to ask: at once while the engine keeps up with the typing, and less often when it does not.

use std::time::{Duration, Instant};

/// Longest wait for the next key.
const LONGEST_WAIT: Duration = Duration::from_millis(400);
/// Answers this fast are always worth asking for.
const FAST: Duration = Duration::from_millis(60);
/// A longer time between two keys is a pause, and says nothing of the rhythm.
const PAUSE: Duration = Duration::from_millis(1500);
/// Weight of the newest time between two keys in their average.
const NEWEST: f64 = 0.25;
/// How many of the last first lines say how fast the engine is.
const REMEMBERED: usize = 5;

/// The rhythm of somebody's typing.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pace {
    last_key: Option<Instant>,
    /// Average time between two keys, in seconds, once there were two.
    between_keys: Option<f64>,
}

/// How fast the engine brings a first line: the median of the last few. Not their average, which one prompt that was not
/// in the cache would spoil for many answers after it.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct EngineSpeed {
    recent: [Duration; REMEMBERED],
    /// How many there were.
    count: usize,
}

impl Pace {
    /// Notes a key.
    pub(crate) fn key_pressed(&mut self, now: Instant) {
        if let Some(last) = self.last_key.replace(now) {
            let between = now.saturating_duration_since(last);
            if between < PAUSE {
                let newest = between.as_secs_f64();
                let average =
                    self.between_keys.map_or(newest, |average| average + NEWEST * (newest - average));
                self.between_keys = Some(average);
            }
        }
    }

    /// How long to wait for another key before the engine is asked. Nothing while its answers come faster
    /// than keys; otherwise a little more than this person takes between two keys, so that what is asked for
    /// is mostly what is still wanted when it comes.
    pub(crate) fn wait(&self, speed: EngineSpeed) -> Duration {
        let (Some(first_line), Some(between)) = (speed.first_line(), self.between_keys) else {
            return Duration::ZERO;
        };
        if first_line.as_secs_f64() <= between.max(FAST.as_secs_f64()) {
            return Duration::ZERO;
        }
        Duration::from_secs_f64(1.25 * between).min(LONGEST_WAIT)
    }
}

impl EngineSpeed {
    /// Notes how long a first line took from the request on, of which the request was held back for `held`: that says nothing
    /// of the engine, and would have the next ones held back too.
    pub(crate) fn measured(&mut self, first_line: Duration, held: Duration) {
        self.recent[self.count % REMEMBERED] = first_line.saturating_sub(held);
        self.count += 1;
    }

    /// `None` before the first.
    fn first_line(mut self) -> Option<Duration> {
        let known = &mut self.recent[..self.count.min(REMEMBERED)];
        known.sort_unstable();
        // Of two, the shorter.
        known.get(known.len().saturating_sub(1) / 2).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed_every(milliseconds: u64, keys: u32) -> Pace {
        let (start, mut pace) = (Instant::now(), Pace::default());
        for key in 0..keys {
            pace.key_pressed(start + key * Duration::from_millis(milliseconds));
        }
        pace
    }

    fn speed(milliseconds: u64) -> EngineSpeed {
        let mut speed = EngineSpeed::default();
        speed.measured(Duration::from_millis(milliseconds), Duration::ZERO);
        speed
    }

    #[test]
    fn nobody_waits_while_the_engine_keeps_up() {
        assert_eq!(typed_every(150, 20).wait(speed(20)), Duration::ZERO);
        assert_eq!(typed_every(150, 20).wait(speed(149)), Duration::ZERO);
        assert_eq!(typed_every(20, 20).wait(speed(50)), Duration::ZERO, "a burst of keys");
        assert_eq!(typed_every(150, 20).wait(EngineSpeed::default()), Duration::ZERO, "not yet known");
    }

    #[test]
    fn a_slow_engine_is_asked_when_the_next_key_is_late() {
        let wait = typed_every(150, 20).wait(speed(900));
        assert!(wait > Duration::from_millis(180) && wait < Duration::from_millis(195), "{wait:?}");
        assert_eq!(typed_every(1000, 20).wait(speed(3000)), LONGEST_WAIT);
    }

    #[test]
    fn one_slow_answer_among_fast_ones_holds_nothing_back() {
        let mut speed = speed(2000);
        assert_ne!(typed_every(150, 20).wait(speed), Duration::ZERO, "nothing else is known");
        for first_line in [90, 90, 2000, 90, 90, 2000, 90] {
            speed.measured(Duration::from_millis(first_line), Duration::ZERO);
            assert_eq!(typed_every(150, 20).wait(speed), Duration::ZERO);
        }
        for _ in 0..3 {
            speed.measured(Duration::from_millis(2000), Duration::ZERO);
        }
        assert_ne!(typed_every(150, 20).wait(speed), Duration::ZERO, "most are slow");
    }

    #[test]
    fn an_engine_that_is_fast_again_is_asked_at_once_again() {
        let (pace, mut speed) = (typed_every(150, 20), EngineSpeed::default());
        (0..REMEMBERED).for_each(|_| speed.measured(Duration::from_millis(900), Duration::ZERO));
        for _ in 0..REMEMBERED {
            let held = pace.wait(speed);
            speed.measured(held + Duration::from_millis(90), held);
        }
        assert_eq!(pace.wait(speed), Duration::ZERO);
    }

    #[test]
    fn pauses_are_no_rhythm_and_the_rhythm_is_learned_anew() {
        let mut pace = typed_every(100, 20);
        let last = pace.last_key.expect("typed");
        pace.key_pressed(last + Duration::from_secs(60));
        assert!((pace.between_keys.expect("typed") - 0.1).abs() < 1e-9);
        for key in 1..30 {
            pace.key_pressed(last + Duration::from_secs(60) + key * Duration::from_millis(300));
        }
        assert!(pace.between_keys.expect("typed") > 0.29);
    }
}
