//! Accepted text, followed for a while to see how much of it stays.

use std::ops::Range;

use crate::snapshot::TextEdit;

/// Accepted suggestions that are followed in one document at most.
const MAX_FOLLOWED: usize = 32;

/// The places of accepted suggestions.
#[derive(Debug, Default)]
pub(crate) struct Survivors {
    followed: Vec<(u64, Range<usize>)>,
}

impl Survivors {
    /// Follows the text of suggestion `id` from now on.
    pub(crate) fn follow(&mut self, id: u64, bytes: Range<usize>) {
        if self.followed.len() == MAX_FOLLOWED {
            self.followed.remove(0);
        }
        self.followed.push((id, bytes));
    }

    /// Moves along with an edit. What is typed within the text, or at its end, belongs to its place.
    pub(crate) fn edited(&mut self, edit: &TextEdit) {
        let (start, end, inserted) = (edit.bytes.start, edit.bytes.end, edit.inserted.len());
        for (_, place) in &mut self.followed {
            let moved = |at: usize| if at >= end { at - (end - start) + inserted } else { at.min(start) };
            let is_before = end <= place.start && !(start == place.start && edit.bytes.is_empty());
            let first = if is_before { moved(place.start) } else { place.start.min(start) };
            let last = if place.end < start { place.end } else { moved(place.end) };
            *place = first..last.max(first);
        }
    }

    /// Where the text of suggestion `id` is now. It is no longer followed.
    pub(crate) fn take(&mut self, id: u64) -> Option<Range<usize>> {
        let index = self.followed.iter().position(|(followed, _)| *followed == id)?;
        Some(self.followed.remove(index).1)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn edit(bytes: Range<usize>, inserted: &str) -> TextEdit {
        TextEdit { bytes, inserted: inserted.to_owned() }
    }

    #[test]
    fn a_place_moves_grows_and_shrinks() {
        let place_after = |edits: &[TextEdit]| {
            let mut survivors = Survivors::default();
            survivors.follow(1, 10..20);
            edits.iter().for_each(|edit| survivors.edited(edit));
            survivors.take(1)
        };
        assert_eq!(place_after(&[edit(0..0, "abc")]), Some(13..23), "above");
        assert_eq!(place_after(&[edit(12..14, "")]), Some(10..18), "within");
        assert_eq!(place_after(&[edit(20..20, "xy")]), Some(10..22), "at its end");
        assert_eq!(place_after(&[edit(25..30, "")]), Some(10..20), "below");
        assert_eq!(place_after(&[edit(5..25, "")]), Some(5..5), "all of it");
        assert_eq!(place_after(&[edit(5..12, "q")]), Some(5..14), "its beginning");
    }

    proptest! {
        #[test]
        fn a_place_stays_in_the_text(
            edits in prop::collection::vec((0usize..60, 0usize..20, 0usize..10), 0..30),
        ) {
            let mut survivors = Survivors::default();
            survivors.follow(1, 10..20);
            let mut length = 40;
            for (start, removed, inserted) in edits {
                let start = start.min(length);
                let end = (start + removed).min(length);
                survivors.edited(&edit(start..end, &"x".repeat(inserted)));
                length = length - (end - start) + inserted;
            }
            let place = survivors.take(1).expect("followed");
            prop_assert!(place.start <= place.end && place.end <= length, "{place:?} of {length}");
        }
    }
}
