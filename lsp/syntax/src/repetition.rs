//! Finds where generated text starts to go round in circles.

/// Longest cycle of characters that is looked for. Longer ones are found by whole lines.
const MAX_PERIOD: usize = 48;

/// Watches characters; constant work for each.
#[derive(Clone, Debug)]
pub(crate) struct Repetition {
    recent: [char; MAX_PERIOD],
    seen: usize,
    /// For each period, how many characters in a row equal the one a period earlier.
    runs: [usize; MAX_PERIOD + 1],
}

impl Repetition {
    pub(crate) fn new() -> Self {
        Self { recent: ['\0'; MAX_PERIOD], seen: 0, runs: [0; MAX_PERIOD + 1] }
    }

    /// Reads the next character. When the text has become a cycle: how many characters at its end
    /// repeat the cycle's first round.
    pub(crate) fn push(&mut self, c: char) -> Option<usize> {
        let mut found = None;
        let mut longest_run = 0;
        for period in 1..=MAX_PERIOD.min(self.seen) {
            if self.back(period) != c {
                self.runs[period] = 0;
                continue;
            }
            self.runs[period] += 1;
            let run = self.runs[period];
            // A cycle of 3 is also one of 6 and of 9: the shortest has the longest run, and counts.
            if found.is_none() && run > longest_run && run >= self.limit(period, c) {
                found = Some(run);
            }
            longest_run = longest_run.max(run);
        }
        self.recent[self.seen % MAX_PERIOD] = c;
        self.seen += 1;
        found
    }

    /// The character `distance` before the next one.
    fn back(&self, distance: usize) -> char {
        self.recent[(self.seen - distance) % MAX_PERIOD]
    }

    /// How many repeated characters make a cycle of `period` a fault. Rulers (`-----`) and deep indents
    /// are long, vectors (`0, 0, 0, 0`) are short and right; two and a half rounds of something longer
    /// are the stutter of a weak model.
    fn limit(&self, period: usize, c: char) -> usize {
        // The cycle is the last `period` characters, `c` included.
        let has_word = c.is_alphanumeric() || (1..period).any(|at| self.back(at).is_alphanumeric());
        match (has_word, period) {
            (false, _) => 100,
            (true, ..8) => 24,
            (true, _) => 12.max(period + period / 2),
        }
    }
}

/// How many of the last lines repeat: the last lines are three rounds of the same one to four lines.
/// `None` when they do not. Lines of punctuation alone repeat in honest code.
pub(crate) fn repeated_lines(lines: &[&str]) -> Option<usize> {
    (1..=4).find_map(|period| {
        let start = lines.len().checked_sub(3 * period)?;
        let rounds = &lines[start..];
        let first = &rounds[..period];
        let cycles = rounds.chunks(period).all(|round| round == first);
        let has_word = first.iter().any(|line| line.contains(char::is_alphanumeric));
        (cycles && has_word).then_some(2 * period)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_fault(text: &str) -> Option<(usize, usize)> {
        let mut repetition = Repetition::new();
        text.chars().enumerate().find_map(|(at, c)| Some((at, repetition.push(c)?)))
    }

    #[test]
    fn stutter_is_found() {
        assert_eq!(first_fault("a + b + a + b + a + b"), Some((19, 12)));
        assert!(first_fault("x.push(1);\nx.push(1);\nx.push(1);\n").is_some());
        assert!(first_fault(&"é".repeat(40)).is_some());
        assert!(first_fault(&"-".repeat(140)).is_some());
    }

    #[test]
    fn honest_repetition_passes() {
        for text in [
            "0.0, 0.0, 0.0, 0.0, 0.0",
            "[0, 0, 0, 0, 0, 0, 0, 0]",
            "# --------------------------------------------------------------------",
            "                                        deep",
            "x0 + x1 + x2 + x3 + x4 + x5",
            "self.a = a\nself.b = b\nself.c = c\n",
        ] {
            assert_eq!(first_fault(text), None, "{text}");
        }
    }

    #[test]
    fn lines() {
        assert_eq!(repeated_lines(&["a", "b", "b", "b"]), Some(2));
        assert_eq!(repeated_lines(&["a", "b", "a", "b", "a", "b"]), Some(4));
        assert_eq!(repeated_lines(&["}", "}", "}"]), None);
        assert_eq!(repeated_lines(&["a", "a"]), None);
    }
}
