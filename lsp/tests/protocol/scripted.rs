//! A generator that says what a test tells it to.

use std::sync::{Arc, Mutex};

use redstart_engine::generator::{Generation, GenerationSender, Generator, ModelInfo};
use redstart_engine::request::{Event, FinishReason, Request, SubmitError, Token, Usage};
use redstart_engine::tokenizer::Tokenizer;
use tokio::sync::Notify;

pub(crate) struct ScriptedGenerator {
    info: ModelInfo,
    answer: Mutex<Answer>,
    held: Mutex<Vec<Held>>,
    submitted: Notify,
    requests: Mutex<Vec<Request>>,
    /// Log-probability of each token that is said.
    logprob: Mutex<f32>,
}

struct Held {
    sender: GenerationSender,
    begins_with: String,
}

#[derive(Clone)]
enum Answer {
    Say(String),
    Hold,
    Panic,
}

impl ScriptedGenerator {
    pub(crate) fn new() -> Arc<Self> {
        let tokenizer = Tokenizer::from_bytes(redstart::embedded::TOKENIZER).expect("a tokenizer");
        Arc::new(Self {
            info: ModelInfo {
                name: "scripted".to_owned(),
                description: "no weights".to_owned(),
                max_model_len: 8192,
                vocab_size: tokenizer.vocab_size(),
                tokenizer: Some(Arc::new(tokenizer)),
            },
            answer: Mutex::new(Answer::Say(String::new())),
            held: Mutex::default(),
            submitted: Notify::new(),
            requests: Mutex::default(),
            logprob: Mutex::default(),
        })
    }

    /// From now on, answer with this text at once.
    pub(crate) fn say(&self, text: &str) {
        *self.answer.lock().expect("no panic") = Answer::Say(text.to_owned());
    }

    /// From now on, give each token this probability.
    pub(crate) fn be_sure(&self, probability: f32) {
        *self.logprob.lock().expect("no panic") = probability.ln();
    }

    fn logprob(&self) -> f32 {
        *self.logprob.lock().expect("no panic")
    }

    /// From now on, answer nothing.
    pub(crate) fn hold(&self) {
        *self.answer.lock().expect("no panic") = Answer::Hold;
    }

    /// From now on, panic.
    pub(crate) fn panic(&self) {
        *self.answer.lock().expect("no panic") = Answer::Panic;
    }

    /// Waits for `count` generations to be held.
    pub(crate) async fn holding(&self, count: usize) {
        loop {
            let submitted = self.submitted.notified();
            if self.held.lock().expect("no panic").len() >= count {
                return;
            }
            submitted.await;
        }
    }

    /// Requests that generate, so far.
    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The prompt of the last request that generates, as text.
    pub(crate) fn last_prompt(&self) -> String {
        let tokenizer = self.info.tokenizer.as_ref().expect("it has one");
        let requests = self.requests();
        let tokens = requests.last().map_or(&[][..], |request| &request.prompt);
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| tokenizer.token_bytes(*token).to_vec()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether each held generation was cancelled, in the order of submission.
    pub(crate) fn cancelled(&self) -> Vec<bool> {
        self.held.lock().expect("no panic").iter().map(|held| held.sender.is_cancelled()).collect()
    }

    /// Lets a held generation say `text` and go on.
    pub(crate) fn release_some(&self, index: usize, text: &str) {
        let held = &mut self.held.lock().expect("no panic")[index];
        start(&held.sender, &std::mem::take(&mut held.begins_with), text, self.logprob());
    }

    /// Lets a held generation fail.
    pub(crate) fn fail(&self, index: usize) {
        let failed = FinishReason::Failed("scripted".to_owned());
        self.held.lock().expect("no panic")[index].sender.send(Event::Finished(failed, Usage::default()));
    }

    /// Lets a held generation say `text` and end.
    pub(crate) fn release(&self, index: usize, text: &str) {
        let held = &self.held.lock().expect("no panic")[index];
        say(&held.sender, &held.begins_with, text, self.logprob());
    }
}

/// Sends a token per character; first, as the engine would, what the output was told to begin with.
fn say(sender: &GenerationSender, begins_with: &str, text: &str, logprob: f32) {
    start(sender, begins_with, text, logprob);
    sender.send(Event::Finished(FinishReason::StopToken(0), Usage::default()));
}

fn start(sender: &GenerationSender, begins_with: &str, text: &str, logprob: f32) {
    sender.send(Event::Started(Usage { prompt_tokens: 10, ..Usage::default() }));
    for (id, character) in (0..).zip(begins_with.chars().chain(text.chars())) {
        let text = character.to_string();
        sender.send(Event::Token(Token { id, text, top_logprobs: vec![(id, logprob)] }));
    }
}

impl Generator for ScriptedGenerator {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let (sender, generation) = Generation::channel();
        if request.params.max_tokens == 0 {
            // Only fills the cache.
            say(&sender, "", "", 0.0);
            return Ok(generation);
        }
        self.requests.lock().expect("no panic").push(request.clone());
        let begins_with = request.params.begins_with;
        let answer = self.answer.lock().expect("no panic").clone();
        match answer {
            Answer::Say(text) => say(&sender, &begins_with, &text, self.logprob()),
            Answer::Hold => self.held.lock().expect("no panic").push(Held { sender, begins_with }),
            Answer::Panic => panic!("scripted"),
        }
        self.submitted.notify_waiters();
        Ok(generation)
    }
}
