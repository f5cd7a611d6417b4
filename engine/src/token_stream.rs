//! One generation's way out: tokens in, events to the receiver.

use std::sync::Arc;

use crate::detokenizer::Detokenizer;
use crate::generator::{Control, GenerationSender};
use crate::request::{Event, FinishReason, Token, Usage};
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;

/// Turns tokens into [`Event`]s: adds the text that became certain, watches for stop texts.
///
/// A token whose text is still open (half a character, the possible beginning of a stop text) is kept
/// until the next token or the end, because it carries what is left when the generation ends there.
#[derive(Debug)]
pub(crate) struct TokenStream {
    sender: GenerationSender,
    tokenizer: Option<Arc<Tokenizer>>,
    detokenizer: Detokenizer,
    stop: StopMatcher,
    kept: Option<Token>,
}

impl TokenStream {
    pub(crate) fn new(
        sender: GenerationSender,
        tokenizer: Option<Arc<Tokenizer>>,
        stop: Vec<String>,
    ) -> Self {
        Self {
            sender,
            tokenizer,
            detokenizer: Detokenizer::default(),
            stop: StopMatcher::new(stop),
            kept: None,
        }
    }

    /// Whether the receiver cancelled or is gone.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.sender.is_cancelled()
    }

    /// What the receiver can say, for others to hear.
    pub(crate) fn control(&self) -> Control {
        self.sender.control()
    }

    /// Whether the receiver waits, whatever the request was submitted as.
    pub(crate) fn is_awaited(&self) -> bool {
        self.sender.is_awaited()
    }

    /// Tells that the first step is planned.
    pub(crate) fn start(&self, usage: Usage) {
        self.sender.send(Event::Started(usage));
    }

    /// Adds a token. Returns the stop text that is complete with it.
    pub(crate) fn push(&mut self, id: u32, top_logprobs: Vec<(u32, f32)>) -> Option<String> {
        self.send_kept();
        let mut text = String::new();
        let mut found = None;
        if let Some(tokenizer) = &self.tokenizer {
            let mut decoded = String::new();
            self.detokenizer.push(tokenizer.token_bytes(id), &mut decoded);
            found = self.stop.push(&decoded, &mut text).map(str::to_owned);
        }
        self.kept = Some(Token { id, text, top_logprobs });
        if found.is_none() && !self.detokenizer.is_open() && !self.stop.is_open() {
            self.send_kept();
        }
        found
    }

    /// Ends the stream.
    pub(crate) fn finish(mut self, reason: FinishReason, usage: Usage) {
        if let Some(token) = &mut self.kept
            && !matches!(reason, FinishReason::StopText(_))
        {
            let mut rest = String::new();
            self.detokenizer.finish(&mut rest);
            // The reason stands: a stop text that only the replacement of half a character completes
            // was not written by the model.
            let _ = self.stop.push(&rest, &mut token.text);
            self.stop.finish(&mut token.text);
        }
        self.send_kept();
        self.sender.send(Event::Finished(reason, usage));
    }

    fn send_kept(&mut self) {
        if let Some(token) = self.kept.take() {
            self.sender.send(Event::Token(token));
        }
    }
}
