//! From a prompt's segments to tokens: order, tokenize, cut to the budget.
//!
//! The engine keeps what it computed for a prompt and reuses it for the next one as far as their tokens
//! agree from the start. So everything here avoids moving early tokens: segments are ordered by
//! stability, and a segment is cut in *blocks* of lines whose boundaries depend only on the text just before
//! them. While text is typed at the end, the cut stays where it is until the budget is exceeded by a
//! token, moves by a few blocks, and then stays again.
//!
//! A block is also what is tokenized and cached at a time, so an edit costs the blocks it touches, however
//! long the text. Blocks end where tokenizers split anyway: the tokens are those of the whole segment.

mod blocks;
mod cache;
mod trim;

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use crate::prompt::{Piece, Prompt, Segment};
use blocks::CutPoints;
use cache::SegmentCache;

/// The tokens of a model.
pub trait Tokenize: Send + Sync {
    /// Tokens of a text, without any frame around them. Must never yield a control token, whatever the
    /// text spells: `<|im_end|>` in a source file is text.
    fn encode(&self, text: &str) -> Vec<u32>;

    /// The token that a control token's name stands for.
    fn control_token(&self, name: &str) -> Option<u32>;
}

/// How long a prompt may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Budget {
    /// Tokens of the whole prompt.
    pub max_prompt_tokens: usize,
}

impl Budget {
    /// What a model of `context_tokens` leaves for this prompt, beside the answer and within the length
    /// that the prompt asks for.
    pub fn of(prompt: &Prompt, context_tokens: usize) -> Self {
        let room = context_tokens.saturating_sub(prompt.max_tokens as usize);
        let wanted = if prompt.prompt_tokens == 0 { usize::MAX } else { prompt.prompt_tokens as usize };
        Self { max_prompt_tokens: room.min(wanted) }
    }
}

/// A prompt as tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Assembled {
    /// All of them, in order.
    pub tokens: Vec<u32>,
    /// Which tokens each segment became, in the order of the tokens.
    pub spans: Vec<Span>,
}

/// What became of a segment.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Its index in the plugin's prompt.
    pub segment: usize,
    /// Its tokens; empty when it was cut altogether.
    pub tokens: Range<usize>,
    /// Tokens cut for the budget.
    pub cut_tokens: usize,
}

/// Why a prompt cannot become tokens.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssembleError {
    /// A control piece names no token of the model.
    #[error("the model has no control token {0:?}")]
    UnknownControl(String),
    /// What may not be cut is too long.
    #[error("the prompt needs {needed} tokens and may have {budget}")]
    DoesNotFit {
        /// Tokens left after every cut that is allowed.
        needed: usize,
        /// [`Budget::max_prompt_tokens`].
        budget: usize,
    },
}

/// Makes tokens of prompts for one model, remembering the texts it has seen.
pub struct Assembler {
    tokenizer: Arc<dyn Tokenize>,
    cuts: CutPoints,
    cache: Mutex<SegmentCache>,
}

/// The smallest thing that is tokenized: a block of text, or a control token.
struct Unit {
    tokens: Arc<[u32]>,
    /// Control tokens outlive the text around them.
    control: bool,
    /// Tokens that stay.
    kept: Range<usize>,
}

/// A segment as units.
struct Part<'a> {
    index: usize,
    segment: &'a Segment,
    units: Vec<Unit>,
}

impl Assembler {
    /// An assembler that remembers up to about `cache_bytes` of text.
    pub fn new(tokenizer: Arc<dyn Tokenize>, cache_bytes: usize) -> Self {
        let cuts = CutPoints::of(&*tokenizer);
        Self { tokenizer, cuts, cache: Mutex::new(SegmentCache::new(cache_bytes)) }
    }

    /// The tokens of `prompt`, at most [`Budget::max_prompt_tokens`] of them. Over budget, lower
    /// weights are cut first, and of equal weights what stands later.
    ///
    /// # Errors
    /// An unknown control token, or more text that must stay than fits.
    pub fn assemble(&self, prompt: &Prompt, budget: Budget) -> Result<Assembled, AssembleError> {
        let mut parts = self.parts(prompt)?;
        trim::fit(&mut parts, budget.max_prompt_tokens)?;
        let mut assembled = Assembled { tokens: Vec::new(), spans: Vec::with_capacity(parts.len()) };
        for part in &parts {
            let start = assembled.tokens.len();
            for unit in &part.units {
                assembled.tokens.extend_from_slice(&unit.tokens[unit.kept.clone()]);
            }
            assembled.spans.push(Span {
                segment: part.index,
                tokens: start..assembled.tokens.len(),
                cut_tokens: part.units.iter().map(|unit| unit.tokens.len() - unit.kept.len()).sum(),
            });
        }
        Ok(assembled)
    }

    /// Tokenizes a text that prompts may have a part of, so that they find it in the cache. A part's first blocks may
    /// be others than the whole's.
    pub fn learn(&self, text: &str) {
        for block in self.cuts.blocks(text) {
            self.tokens(block);
        }
    }

    /// The segments in their final order, tokenized.
    fn parts<'a>(&self, prompt: &'a Prompt) -> Result<Vec<Part<'a>>, AssembleError> {
        let mut order: Vec<(usize, &Segment)> = prompt.segments.iter().enumerate().collect();
        order.sort_by_key(|(_, segment)| segment.stability as u8);
        order
            .into_iter()
            .map(|(index, segment)| Ok(Part { index, segment, units: self.units(&segment.pieces)? }))
            .collect()
    }

    fn units(&self, pieces: &[Piece]) -> Result<Vec<Unit>, AssembleError> {
        let mut units = Vec::new();
        let mut text = String::new();
        for piece in pieces {
            match piece {
                Piece::Text(more) => text.push_str(more),
                Piece::Control(name) => {
                    self.encode(&std::mem::take(&mut text), &mut units);
                    let token = self.tokenizer.control_token(name);
                    let token = token.ok_or_else(|| AssembleError::UnknownControl(name.clone()))?;
                    units.push(Unit::new([token].into(), true));
                }
            }
        }
        self.encode(&text, &mut units);
        Ok(units)
    }

    fn encode(&self, text: &str, units: &mut Vec<Unit>) {
        units.extend(self.cuts.blocks(text).map(|block| Unit::new(self.tokens(block), false)));
    }

    /// The tokens of a block. Others may look up theirs while one is tokenized.
    fn tokens(&self, block: &str) -> Arc<[u32]> {
        let cache = || self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(tokens) = cache().get(block) {
            return tokens;
        }
        let tokens: Arc<[u32]> = self.tokenizer.encode(block).into();
        cache().insert(block.into(), tokens.clone());
        tokens
    }
}

impl Unit {
    fn new(tokens: Arc<[u32]>, control: bool) -> Self {
        let kept = 0..tokens.len();
        Self { tokens, control, kept }
    }
}

#[cfg(test)]
mod tests;
