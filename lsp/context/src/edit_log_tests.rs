use std::time::Duration;

use proptest::prelude::*;

use super::*;

/// A document with its log.
struct Edited {
    text: Rope,
    log: EditLog,
    clock: u64,
}

impl Edited {
    fn new(text: &str) -> Self {
        let text = Rope::from_str(text);
        Self { log: EditLog::new(text.clone()), text, clock: 0 }
    }

    /// Replaces the characters `range` with `with`.
    fn replace(&mut self, range: Range<usize>, with: &str) {
        let before = self.text.clone();
        let bytes = before.char_to_byte(range.start)..before.char_to_byte(range.end);
        self.text.remove(range.clone());
        self.text.insert(range.start, with);
        self.clock += 1;
        self.log.edited(&before, &self.text, &bytes, self.clock);
    }

    /// Replaces the first occurrence of `old`.
    fn change(&mut self, old: &str, new: &str) {
        let text = self.text.to_string();
        let at = text.find(old).expect("it is there");
        let start = text[..at].chars().count();
        self.replace(start..start + old.chars().count(), new);
    }

    fn hunks(&self) -> Vec<Hunk> {
        self.log.hunks(&self.text, Instant::now() + Duration::from_secs(60))
    }

    fn diff(&self) -> String {
        let mut diff = String::new();
        for hunk in self.hunks() {
            diff += "@\n";
            hunk.removed.iter().for_each(|line| diff += &format!("-{line}\n"));
            hunk.added.iter().for_each(|line| diff += &format!("+{line}\n"));
        }
        diff
    }
}

fn numbered() -> String {
    (0..40).map(|n| format!("line {n:02}\n")).collect()
}

#[test]
fn changes_are_lines() {
    let mut edited = Edited::new(&numbered());
    edited.change("line 10", "ten");
    edited.change("line 20\n", "");
    edited.change("line 30\n", "line 30\nnew\n");
    edited.change("line 01", "one");
    assert_eq!(edited.diff(), "@\n-line 01\n+one\n@\n-line 10\n+ten\n@\n-line 20\n@\n+new\n");
}

#[test]
fn adjacent_edits_are_one() {
    let mut edited = Edited::new(&numbered());
    for c in ["a", "b", "c"] {
        edited.change("line 10", &format!("{c}line 10"));
    }
    edited.change("line 12", "twelve");
    assert_eq!(edited.diff(), "@\n-line 10\n-line 11\n-line 12\n+abcline 10\n+line 11\n+twelve\n");
    assert_eq!(edited.hunks()[0].born, 1);
    assert_eq!(edited.hunks()[0].touched, 4);
}

#[test]
fn an_undo_leaves_nothing() {
    let mut edited = Edited::new(&numbered());
    edited.change("line 10", "ten");
    edited.change("line 30\n", "");
    edited.change("ten", "line 10");
    assert_eq!(edited.diff(), "@\n-line 30\n");
    edited.change("line 31", "line 30\nline 31");
    assert_eq!(edited.diff(), "");
}

#[test]
fn a_replaced_text_shows_what_differs() {
    let mut edited = Edited::new(&numbered());
    let new = numbered().replace("line 15", "fifteen");
    edited.replace(0..edited.text.len_chars(), &new);
    assert_eq!(edited.diff(), "@\n-line 15\n+fifteen\n");
    assert_eq!(edited.hunks()[0].lines, 15..16);
}

#[test]
fn the_oldest_are_forgotten() {
    let text: String = (0..200).map(|n| format!("line {n:03}\n")).collect();
    let mut edited = Edited::new(&text);
    for n in 0..40 {
        edited.change(&format!("line {:03}", n * 4), &format!("new {n}\nand more"));
    }
    let hunks = edited.hunks();
    assert_eq!(hunks.len(), MAX_PLACES);
    assert_eq!(hunks[0].added, ["new 16", "and more"]);
    assert_eq!(hunks[0].removed, ["line 064"]);
}

proptest! {
    #[test]
    fn the_log_is_the_difference(
        text in "[ab\n\r]{0,60}",
        edits in prop::collection::vec(
            (any::<prop::sample::Index>(), 0usize..8, "[abé\n\r]{0,6}"), 0..60),
    ) {
        let mut edited = Edited::new(&text);
        for (at, remove, insert) in edits {
            let start = at.index(edited.text.len_chars() + 1);
            let end = (start + remove).min(edited.text.len_chars());
            edited.replace(start..end, &insert);
        }
        // Undoing the hunks, last first, gives the base.
        let mut lines = lines_of(&edited.text, &(0..edited.text.len_lines()));
        for hunk in edited.hunks().iter().rev() {
            let gone: Vec<_> = lines.splice(hunk.lines.clone(), hunk.removed.clone()).collect();
            prop_assert_eq!(&gone, &hunk.added);
        }
        prop_assert_eq!(lines, lines_of(&edited.log.base, &(0..edited.log.base.len_lines())));
    }
}
