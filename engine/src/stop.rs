//! Stop texts, which may straddle tokens.

/// Watches text for stop texts as it comes. Text that might be the beginning of one is held back until
/// that is decided, so no part of a stop text is ever given out.
///
/// The stop text that is complete first wins; of several complete at the same character, the longest.
/// Where the text is cut into pieces makes no difference.
#[derive(Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
}

impl StopMatcher {
    /// A matcher for `stops`, none of which may be empty.
    ///
    /// # Panics
    /// When a stop text is empty.
    pub fn new(stops: Vec<String>) -> Self {
        assert!(stops.iter().all(|stop| !stop.is_empty()), "a stop text is empty");
        Self { stops, held: String::new() }
    }

    /// Adds `text`; appends to `certain` what is surely no part of a stop text. Returns the stop text
    /// that was found, if any: then everything before it has been given out and the rest is dropped.
    pub fn push(&mut self, text: &str, certain: &mut String) -> Option<&str> {
        self.held.push_str(text);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop.as_str()).map(|start| (start + stop.len(), start, stop)))
            .min();
        if let Some((_, start, stop)) = found {
            certain.push_str(&self.held[..start]);
            self.held.clear();
            return Some(stop);
        }
        let start = self.open_start();
        certain.push_str(&self.held[..start]);
        self.held.drain(..start);
        None
    }

    /// Ends the stream: what was held back is no stop text.
    pub fn finish(&mut self, certain: &mut String) {
        certain.push_str(&self.held);
        self.held.clear();
    }

    /// Whether text is held back.
    pub fn is_open(&self) -> bool {
        !self.held.is_empty()
    }

    /// Where the longest end of the held text that begins a stop text starts.
    fn open_start(&self) -> usize {
        let longest_stop = self.stops.iter().map(String::len).max().unwrap_or(0);
        let first = self.held.len().saturating_sub(longest_stop.saturating_sub(1));
        (first..self.held.len())
            .filter(|&start| self.held.is_char_boundary(start))
            .find(|&start| self.stops.iter().any(|stop| stop.starts_with(&self.held[start..])))
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Output and stop text of the whole `text` at once, character by character.
    fn naive(stops: &[String], text: &str) -> (String, Option<String>) {
        let ends = text.char_indices().map(|(start, char)| start + char.len_utf8());
        for end in ends {
            let found = stops
                .iter()
                .filter(|stop| text[..end].ends_with(stop.as_str()))
                .max_by_key(|stop| stop.len());
            if let Some(stop) = found {
                return (text[..end - stop.len()].to_owned(), Some(stop.clone()));
            }
        }
        (text.to_owned(), None)
    }

    fn run(stops: &[String], pieces: &[String]) -> (String, Option<String>) {
        let mut matcher = StopMatcher::new(stops.to_vec());
        let mut certain = String::new();
        for piece in pieces {
            if let Some(stop) = matcher.push(piece, &mut certain) {
                return (certain, Some(stop.to_owned()));
            }
            for stop in stops {
                assert!(!certain.contains(stop.as_str()), "a stop text was given out");
            }
        }
        matcher.finish(&mut certain);
        assert!(!matcher.is_open());
        (certain, None)
    }

    #[test]
    fn a_stop_text_may_straddle_pieces() {
        let pieces = ["one\n".to_owned(), "\n".to_owned(), "two".to_owned()];
        assert_eq!(run(&["\n\n".to_owned()], &pieces), ("one".to_owned(), Some("\n\n".to_owned())));
    }

    #[test]
    fn the_possible_beginning_of_a_stop_text_is_held_back() {
        let mut matcher = StopMatcher::new(vec!["</end>".to_owned()]);
        let mut certain = String::new();
        assert_eq!(matcher.push("a < b </e", &mut certain), None);
        assert_eq!(certain, "a < b ");
        assert!(matcher.is_open());
        assert_eq!(matcher.push("m>", &mut certain), None);
        assert_eq!(certain, "a < b </em>");
    }

    #[test]
    fn the_first_complete_stop_text_wins_and_then_the_longest() {
        let text = ["xabc".to_owned()];
        assert_eq!(run(&["abc".to_owned(), "b".to_owned()], &text), ("xa".to_owned(), Some("b".to_owned())));
        assert_eq!(run(&["c".to_owned(), "bc".to_owned()], &text), ("xa".to_owned(), Some("bc".to_owned())));
    }

    proptest! {
        #[test]
        fn pieces_stop_where_the_whole_does(
            stops in prop::collection::vec("[abé]{1,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,4}", 0..10),
        ) {
            prop_assert_eq!(run(&stops, &pieces), naive(&stops, &pieces.concat()));
        }
    }
}
