//! What changed between two versions of a text.

use std::ops::Range;

use ropey::Rope;

/// The bytes of an older text that a newer one replaced, as one span: several edits are one that
/// reaches from the first to the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Change {
    replaced: Range<usize>,
    new_end: usize,
}

impl Change {
    /// Compares the texts. Parts that both share in memory, as versions of one document do, are not
    /// read, so this costs little however long the document is.
    pub(super) fn between(old: &Rope, new: &Rope) -> Self {
        if old.is_instance(new) {
            let end = old.len_bytes();
            return Self { replaced: end..end, new_end: end };
        }
        let start = common(pieces(old, false), pieces(new, false), false);
        let rest = old.len_bytes().min(new.len_bytes()) - start;
        let end = common(pieces(old, true), pieces(new, true), true).min(rest);
        Self { replaced: start..old.len_bytes() - end, new_end: new.len_bytes() - end }
    }

    /// Where a position of the old text is in the new one; `None` when it lay within what was replaced.
    pub(super) fn moved(&self, position: usize) -> Option<usize> {
        if position <= self.replaced.start {
            Some(position)
        } else if position >= self.replaced.end {
            Some(position - self.replaced.end + self.new_end)
        } else {
            None
        }
    }
}

fn pieces(text: &Rope, from_end: bool) -> impl Iterator<Item = &[u8]> {
    let mut chunks =
        if from_end { text.chunks_at_byte(text.len_bytes()).0.reversed() } else { text.chunks() };
    std::iter::from_fn(move || chunks.next().map(str::as_bytes))
}

/// Bytes that the two have in common from where they begin.
fn common<'a>(
    mut one: impl Iterator<Item = &'a [u8]>,
    mut two: impl Iterator<Item = &'a [u8]>,
    from_end: bool,
) -> usize {
    let (mut left, mut right): (&[u8], &[u8]) = (&[], &[]);
    let mut total = 0;
    loop {
        if left.is_empty() {
            left = match one.next() {
                Some(piece) => piece,
                None => return total,
            };
        }
        if right.is_empty() {
            right = match two.next() {
                Some(piece) => piece,
                None => return total,
            };
        }
        let length = left.len().min(right.len());
        let (a, b) = if from_end {
            (&left[left.len() - length..], &right[right.len() - length..])
        } else {
            (&left[..length], &right[..length])
        };
        if !std::ptr::eq(a, b) && a != b {
            let same = |(x, y): &(&u8, &u8)| x == y;
            return total
                + if from_end {
                    a.iter().rev().zip(b.iter().rev()).take_while(same).count()
                } else {
                    a.iter().zip(b).take_while(same).count()
                };
        }
        total += length;
        (left, right) = if from_end {
            (&left[..left.len() - length], &right[..right.len() - length])
        } else {
            (&left[length..], &right[length..])
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn positions_move_with_the_text_around_them() {
        let change = Change::between(&Rope::from_str("one two three"), &Rope::from_str("one 2 three"));
        assert_eq!(change, Change { replaced: 4..7, new_end: 5 });
        assert_eq!([3, 4, 5, 7, 13].map(|at| change.moved(at)), [Some(3), Some(4), None, Some(5), Some(11)]);
        let same = Rope::from_str("same");
        assert_eq!(Change::between(&same, &same.clone()).moved(2), Some(2));
        assert_eq!(Change::between(&same, &Rope::from_str("same")).moved(2), Some(2));
    }

    proptest! {
        /// What lies outside the span is the same text, and the span is what one edit made it.
        #[test]
        fn the_rest_is_the_same(
            lines in prop::collection::vec("[ab]{0,12}\n", 0..400),
            at in 0.0f64..1.0, removed in 0usize..200, inserted in "[abc]{0,30}",
        ) {
            let old = Rope::from_str(&lines.concat());
            let start = (old.len_bytes() as f64 * at) as usize;
            let end = (start + removed).min(old.len_bytes());
            let mut new = old.clone();
            new.remove(start..end);
            new.insert(start, &inserted);
            let change = Change::between(&old, &new);
            let (before, after) = (old.to_string(), new.to_string());
            prop_assert_eq!(&before[..change.replaced.start], &after[..change.replaced.start]);
            prop_assert_eq!(&before[change.replaced.end..], &after[change.new_end..]);
            prop_assert!(change.replaced.len() <= end - start, "no more than was edited");
            prop_assert!(change.new_end - change.replaced.start <= inserted.len());
        }
    }
}
