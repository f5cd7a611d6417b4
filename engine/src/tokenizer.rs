//! The model's vocabulary: text to token ids and back.

mod word_encoder;
mod words;

use std::collections::HashMap;

use tokenizers::{AddedVocabulary, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper};
use word_encoder::WordEncoder;

/// A Hugging Face `tokenizer.json` of the byte-level BPE kind, with control tokens kept apart from text.
///
/// Control tokens are the file's `added_tokens`, whether or not they are marked special: all of them
/// carry meaning for the model that the text of a file must not be able to forge. They are taken out
/// of the encoder and live in a map of their own.
pub struct Tokenizer {
    /// Encodes text; knows no added token.
    encoder: tokenizers::Tokenizer,
    words: Option<WordEncoder>,
    control_ids: HashMap<String, u32>,
    tokens: TokenTable,
    /// Token of each single byte; `None` for bytes that UTF-8 does not use and the vocabulary lacks.
    byte_tokens: [Option<u32>; 256],
}

impl Tokenizer {
    /// Parses the bytes of a `tokenizer.json`.
    ///
    /// # Errors
    /// When the bytes are not one, or not one of a byte-level BPE; the message says what was wrong.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, String> {
        let mut encoder = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|error| format!("tokenizer.json cannot be read: {error}"))?;
        require_byte_level_bpe(&encoder)?;

        let control_ids: HashMap<String, u32> =
            encoder.get_added_tokens_decoder().into_iter().map(|(id, token)| (token.content, id)).collect();
        // Without added tokens the encoder cannot find one in a text. Truncation, padding and
        // post-processing would add or drop tokens that the caller did not ask for.
        encoder.with_added_vocabulary(AddedVocabulary::new());
        encoder.with_post_processor(None::<PostProcessorWrapper>);
        encoder.with_padding(None);
        encoder
            .with_truncation(None)
            .map_err(|error| format!("tokenizer.json has an unusable truncation: {error}"))?;

        let text_ids = encoder.get_vocab(false);
        let tokens = TokenTable::new(&text_ids, &control_ids);
        let byte_tokens = byte_tokens(&text_ids)?;
        let words = WordEncoder::of(&encoder);
        Ok(Self { encoder, words, control_ids, tokens, byte_tokens })
    }

    /// Tokens of `text`, no more and no less: no beginning- or end-of-text token is added. Nothing in
    /// the text can become a control token: `<|im_end|>` typed in a file is seven or so ordinary tokens.
    ///
    /// A tokenizer that normalizes (Qwen's composes accents, NFC) does so here, so decoding may give
    /// a canonically equal text rather than the same bytes.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let by_words = self.words.as_ref().and_then(|words| words.encode(self.encoder.get_model(), text));
        let ids = match by_words.map_or_else(|| self.encode_by_library(text), Ok) {
            Ok(ids) => ids,
            // The crate's error type covers cases such as a failing normalizer; bytes always work.
            Err(_) => return self.encode_bytes(text.as_bytes()).collect(),
        };
        if !ids.iter().any(|&id| self.is_control(id)) {
            return ids;
        }
        // A vocabulary may list an added token among its BPE tokens too, reachable from text.
        ids.iter()
            .flat_map(|&id| {
                let spelled = self.is_control(id).then(|| self.encode_bytes(self.tokens.written(id)));
                let kept = spelled.is_none().then_some(id);
                spelled.into_iter().flatten().chain(kept)
            })
            .collect()
    }

    fn encode_by_library(&self, text: &str) -> tokenizers::Result<Vec<u32>> {
        Ok(self.encoder.encode_fast(text, false)?.get_ids().to_vec())
    }

    fn encode_bytes(&self, bytes: &[u8]) -> impl Iterator<Item = u32> {
        bytes.iter().filter_map(|&byte| self.byte_tokens[usize::from(byte)])
    }

    /// Id of the control token written `content`, such as `<|fim_middle|>`.
    pub fn control_token(&self, content: &str) -> Option<u32> {
        self.control_ids.get(content).copied()
    }

    /// All control tokens, as written, in the order of their ids.
    pub fn control_tokens(&self) -> Vec<String> {
        let mut by_id: Vec<(&u32, &String)> =
            self.control_ids.iter().map(|(content, id)| (id, content)).collect();
        by_id.sort_unstable();
        by_id.into_iter().map(|(_, content)| content.clone()).collect()
    }

    /// Whether `id` is a control token.
    pub fn is_control(&self, id: u32) -> bool {
        self.tokens.is_control(id)
    }

    /// Number of token ids: one more than the largest. A model's logits may be wider (padding).
    pub fn vocab_size(&self) -> usize {
        self.tokens.len()
    }

    /// The bytes that `id` adds to the text: none for a control token or an id without a token. One
    /// token may hold a part of a UTF-8 character.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        if self.is_control(id) { &[] } else { self.tokens.written(id) }
    }

    /// The text of `ids`, without control tokens; invalid UTF-8 becomes U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).copied().collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Tokenizer")
            .field("vocab_size", &self.vocab_size())
            .field("control_tokens", &self.control_ids.len())
            .finish_non_exhaustive()
    }
}

/// The bytes of every token, in one buffer: token `id` is `bytes[ends[id - 1]..ends[id]]`.
struct TokenTable {
    bytes: Vec<u8>,
    ends: Vec<u32>,
    control: Vec<bool>,
}

impl TokenTable {
    fn new(text_ids: &HashMap<String, u32>, control_ids: &HashMap<String, u32>) -> Self {
        let largest = text_ids.values().chain(control_ids.values()).max();
        let count = largest.map_or(0, |&id| id as usize + 1);
        let mut written: Vec<&str> = vec![""; count];
        let mut control = vec![false; count];
        for (content, &id) in text_ids {
            written[id as usize] = content;
        }
        for (content, &id) in control_ids {
            written[id as usize] = content;
            control[id as usize] = true;
        }
        let byte_of = byte_of_char();
        let mut bytes = Vec::new();
        let mut ends = Vec::with_capacity(count);
        for (content, &is_control) in written.iter().zip(&control) {
            let start = bytes.len();
            for char in content.chars() {
                match byte_of.get(&char) {
                    Some(&byte) if !is_control => bytes.push(byte),
                    _ => {
                        // Written as it is, as control tokens are.
                        bytes.truncate(start);
                        bytes.extend_from_slice(content.as_bytes());
                        break;
                    }
                }
            }
            ends.push(bytes.len() as u32);
        }
        Self { bytes, ends, control }
    }

    fn len(&self) -> usize {
        self.ends.len()
    }

    fn is_control(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    fn written(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else {
            return &[];
        };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }
}

fn require_byte_level_bpe(tokenizer: &tokenizers::Tokenizer) -> Result<(), String> {
    let kind = match tokenizer.get_model() {
        ModelWrapper::BPE(_) => None,
        ModelWrapper::WordPiece(_) => Some("WordPiece"),
        ModelWrapper::WordLevel(_) => Some("WordLevel"),
        ModelWrapper::Unigram(_) => Some("Unigram"),
    };
    if let Some(kind) = kind {
        return Err(format!("the tokenizer is a {kind} model; only byte-level BPE is supported"));
    }
    let byte_level = |step: &PreTokenizerWrapper| matches!(step, PreTokenizerWrapper::ByteLevel(_));
    let found = match tokenizer.get_pre_tokenizer() {
        Some(PreTokenizerWrapper::Sequence(steps)) => steps.as_ref().iter().any(byte_level),
        Some(step) => byte_level(step),
        None => false,
    };
    if found {
        Ok(())
    } else {
        Err("the tokenizer is a BPE without a ByteLevel pre-tokenizer; only byte-level BPE is supported"
            .into())
    }
}

/// The token of every byte that UTF-8 can contain; without one of them some text could not be encoded.
fn byte_tokens(text_ids: &HashMap<String, u32>) -> Result<[Option<u32>; 256], String> {
    let mut tokens = [None; 256];
    for (char, byte) in byte_of_char() {
        tokens[usize::from(byte)] = text_ids.get(char.encode_utf8(&mut [0; 4]) as &str).copied();
    }
    let never_in_utf8 = |byte: u8| matches!(byte, 0xC0 | 0xC1 | 0xF5..);
    match (0..=255u8).find(|&byte| tokens[usize::from(byte)].is_none() && !never_in_utf8(byte)) {
        Some(byte) => Err(format!(
            "the tokenizer has no token for the byte 0x{byte:02X}; only byte-level BPE is supported"
        )),
        None => Ok(tokens),
    }
}

/// The alphabet of byte-level BPE (from GPT-2): printable Latin-1 bytes stand for themselves, the
/// others for the characters from U+0100 on, in order.
fn byte_of_char() -> HashMap<char, u8> {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let others = (0..=255u8).filter(|&byte| !printable(byte));
    let stand_ins = ('\u{100}'..).zip(others);
    (0..=255u8)
        .filter(|&byte| printable(byte))
        .map(|byte| (char::from(byte), byte))
        .chain(stand_ins)
        .collect()
}
