//! Token bytes to text, as they come.

/// Turns a stream of token bytes into text. A UTF-8 character may be spread over several tokens: it is
/// given out once it is whole. Bytes that cannot be part of a character become U+FFFD as soon as that
/// is sure, exactly as [`String::from_utf8_lossy`] would do on the whole.
#[derive(Debug, Default)]
pub struct Detokenizer {
    /// The beginning of a character; at most three bytes between calls.
    open: Vec<u8>,
}

impl Detokenizer {
    /// Adds the bytes of one token and appends to `text` what became certain.
    pub fn push(&mut self, bytes: &[u8], text: &mut String) {
        if self.open.is_empty() && bytes.is_ascii() {
            text.extend(bytes.iter().map(|&byte| char::from(byte)));
            return;
        }
        self.open.extend_from_slice(bytes);
        let mut done = 0;
        for chunk in self.open.utf8_chunks() {
            text.push_str(chunk.valid());
            done += chunk.valid().len();
            let invalid = chunk.invalid();
            if invalid.is_empty() || (done + invalid.len() == self.open.len() && is_open(invalid)) {
                break;
            }
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid.len();
        }
        self.open.drain(..done);
    }

    /// Ends the stream: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self, text: &mut String) {
        if !self.open.is_empty() {
            self.open.clear();
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }

    /// Whether a character is still unfinished.
    pub fn is_open(&self) -> bool {
        !self.open.is_empty()
    }
}

/// Whether more bytes could make a character of `bytes`.
fn is_open(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn run(pieces: &[Vec<u8>]) -> Vec<String> {
        let mut detokenizer = Detokenizer::default();
        let mut texts: Vec<String> = pieces
            .iter()
            .map(|piece| {
                let mut text = String::new();
                detokenizer.push(piece, &mut text);
                text
            })
            .collect();
        let mut rest = String::new();
        detokenizer.finish(&mut rest);
        assert!(!detokenizer.is_open());
        texts.push(rest);
        texts
    }

    #[test]
    fn a_character_comes_out_with_its_last_byte() {
        let pieces = [vec![b'a', 0xF0], vec![0x9F, 0x8E], vec![0x89, b'b']];
        assert_eq!(run(&pieces), ["a", "", "🎉b", ""]);
    }

    #[test]
    fn an_unfinished_character_is_replaced_at_the_end_only() {
        assert_eq!(run(&[vec![0xE2, 0x82]]), ["", "\u{FFFD}"]);
    }

    #[test]
    fn a_broken_character_is_replaced_at_once() {
        assert_eq!(run(&[vec![0xE2, 0x82], vec![b'x']]), ["", "\u{FFFD}x", ""]);
        assert_eq!(run(&[vec![0xFF]]), ["\u{FFFD}", ""]);
    }

    proptest! {
        #[test]
        fn pieces_together_give_the_lossy_whole(
            pieces in prop::collection::vec(
                prop::collection::vec(
                    prop_oneof![any::<u8>(), Just(0xE2), Just(0x82), Just(0xAC), Just(0xF0), Just(0x9F), Just(b'a')],
                    0..5,
                ),
                0..12,
            )
        ) {
            let whole = String::from_utf8_lossy(&pieces.concat()).into_owned();
            prop_assert_eq!(run(&pieces).concat(), whole);
        }

        #[test]
        fn valid_text_comes_out_as_it_is(text in "\\PC{0,12}", cut in 1usize..4) {
            let pieces: Vec<Vec<u8>> = text.as_bytes().chunks(cut).map(<[u8]>::to_vec).collect();
            prop_assert_eq!(run(&pieces).concat(), text);
        }
    }
}
