//! Text to tokens word by word.
//!
//! The library's way, an interpreted pattern and an account of where every byte came from, takes some 25 µs for a line of code,
//! and over 100 µs between two keys, when nothing of it is in the processor's caches any more. Here words are found by a
//! function and looked up among those met before; a new one is merged by the library. `cargo bench -p redstart-engine --bench
//! tokenizer` compares the two.

use std::collections::HashMap;
use std::sync::RwLock;

use tokenizers::{Model, NormalizerWrapper, Tokenizer};

use super::byte_of_char;
use super::words::Words;

/// Words that are remembered, and the longest in bytes. Source code has few more.
const REMEMBERED: usize = 1 << 15;
const LONGEST: usize = 48;

/// Encodes words, and remembers their tokens.
pub(super) struct WordEncoder {
    words: Words,
    /// The byte alphabet of the vocabulary.
    chars: [char; 256],
    /// Whether accents are composed first (NFC).
    composes: bool,
    known: RwLock<HashMap<Box<str>, Box<[u32]>>>,
}

impl WordEncoder {
    /// For a tokenizer whose words are known, and that changes nothing in a text but to compose accents.
    pub(super) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let composes = match tokenizer.get_normalizer() {
            None => false,
            Some(NormalizerWrapper::NFC(_)) => true,
            Some(_) => return None,
        };
        let words = Words::of(tokenizer.get_pre_tokenizer()?)?;
        let mut chars = ['\0'; 256];
        for (char, byte) in byte_of_char() {
            chars[usize::from(byte)] = char;
        }
        Some(Self { words, chars, composes, known: RwLock::default() })
    }

    /// The tokens of a text. `None`: this text is for the library.
    pub(super) fn encode(&self, model: &impl Model, text: &str) -> Option<Vec<u32>> {
        // Below the first combining mark nothing composes.
        if self.composes && text.chars().any(|c| c >= '\u{300}') {
            return None;
        }
        let mut ids = Vec::with_capacity(text.len() / 2);
        for word in self.words.split(text) {
            self.encode_word(model, word, &mut ids)?;
        }
        Some(ids)
    }

    /// Nobody waits for whoever holds the words, which may be without a processor: then a word is merged again.
    fn encode_word(&self, model: &impl Model, word: &str, ids: &mut Vec<u32>) -> Option<()> {
        if let Ok(known) = self.known.try_read()
            && let Some(tokens) = known.get(word)
        {
            ids.extend_from_slice(tokens);
            return Some(());
        }
        let spelled: String = word.bytes().map(|byte| self.chars[usize::from(byte)]).collect();
        let tokens: Box<[u32]> = model.tokenize(&spelled).ok()?.into_iter().map(|token| token.id).collect();
        ids.extend_from_slice(&tokens);
        if word.len() <= LONGEST
            && let Ok(mut known) = self.known.try_write()
            && known.len() < REMEMBERED
        {
            known.insert(word.into(), tokens);
        }
        Some(())
    }
}
