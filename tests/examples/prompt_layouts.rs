//! How much of each prompt an engine has already computed: editing played through the real window, plugin,
//! assembly and tokenizer, for every layout, with the window kept from request to request and without.
//!
//! No model runs and no clock is read, so the figures are the same on any machine. A prompt's cached share is what
//! the engine's prefix cache would serve: whole blocks of 16 tokens that an earlier prompt of this run begins
//! with too, but never the last token.
//!
//!     cargo run -p redstart-tests --example prompt_layouts
//!     cargo run -p redstart-tests --example prompt_layouts -- TOKENIZER_JSON [WINDOW_TOKENS]
//!
//! Without a tokenizer: the embedded model's, in its window of 448 tokens; with one, in 2,048.
//! The scripts are in `tests/editing`; [`editor`] explains their steps.

#![expect(clippy::print_stdout, reason = "a program; its report belongs on stdout")]

#[path = "prompt_layouts/editor.rs"]
mod editor;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use redstart::model::PromptTokenizer;
use redstart::window::{PromptMemory, Window};
use redstart_engine::tokenizer::Tokenizer;
use redstart_plugins::prompt::{Context, Model};
use redstart_plugins::{Assembler, Budget, Limits, Plugin, PluginHost, shipped};

use editor::{Moment, Script};

/// Tokens of a block of the prefix cache.
const BLOCK: usize = 16;
/// Earlier prompts that the cache still holds.
const HELD: usize = 64;
const CONTEXT_TOKENS: usize = 32_768;

/// One way to lay out a prompt.
struct Setup {
    name: &'static str,
    layout: &'static str,
    /// Whether the window is kept from one request to the next.
    kept: bool,
    /// Whether what was typed since the anchor stands last, or the current line alone.
    anchored: bool,
}

const SETUPS: [Setup; 9] = [
    Setup { name: "prefix-first", layout: "prefix-first", kept: false, anchored: false },
    Setup { name: "prefix-first, kept window", layout: "prefix-first", kept: true, anchored: false },
    Setup { name: "line-last", layout: "line-last", kept: false, anchored: false },
    Setup { name: "line-last, kept window", layout: "line-last", kept: true, anchored: false },
    Setup { name: "line-last, kept window and anchor", layout: "line-last", kept: true, anchored: true },
    Setup { name: "suffix-first", layout: "suffix-first", kept: false, anchored: false },
    Setup { name: "suffix-first, kept window", layout: "suffix-first", kept: true, anchored: false },
    Setup { name: "suffix-line-last, kept window", layout: "suffix-line-last", kept: true, anchored: false },
    Setup {
        name: "suffix-line-last, kept window and anchor",
        layout: "suffix-line-last",
        kept: true,
        anchored: true,
    },
];

#[derive(Clone, Copy, Default)]
struct Tally {
    prompts: usize,
    tokens: usize,
    cached: usize,
    /// Prompts of which less than half was cached.
    cold: usize,
}

/// What all setups share.
struct Bench {
    plugin: Plugin,
    tokenizer: Arc<Tokenizer>,
    window_tokens: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut arguments = std::env::args().skip(1);
    let (file, window) = match arguments.next() {
        Some(file) => (file.into(), 2048),
        None => (root.join("models/nano/tokenizer.json"), 448),
    };
    let window_tokens = arguments.next().map_or(Ok(window), |tokens| tokens.parse())?;
    let tokenizer = Arc::new(Tokenizer::from_bytes(&std::fs::read(file)?)?);
    let plugin = PluginHost::new(Limits::default())?.load("complete", shipped::COMPLETE)?;
    let bench = Bench { plugin, tokenizer, window_tokens };
    let scripts = Script::all(&root)?;

    let names: Vec<&str> = scripts.iter().map(|script| script.name.as_str()).collect();
    println!("cached share of prompt tokens, window of {window_tokens} tokens\n");
    println!("| layout | {} | all | computed a prompt | prompts over half cold |", names.join(" | "));
    println!("|---|{}---|---|---|", "---|".repeat(names.len()));
    for setup in &SETUPS {
        let mut all = Tally::default();
        let mut cells = Vec::new();
        for script in &scripts {
            let tally = bench.play(setup, script).await?;
            cells.push(tally.share());
            all.add(tally);
        }
        let computed = (all.tokens - all.cached) as f64 / all.prompts as f64;
        let cold = format!("{} of {}", all.cold, all.prompts);
        println!("| {} | {} | {} | {computed:.1} | {cold} |", setup.name, cells.join(" | "), all.share());
    }
    Ok(())
}

impl Bench {
    async fn play(&self, setup: &Setup, script: &Script) -> Result<Tally, Box<dyn std::error::Error>> {
        let assembler = Assembler::new(Arc::new(PromptTokenizer(self.tokenizer.clone())), 1 << 22);
        let memory = PromptMemory::default();
        let mut earlier: VecDeque<Vec<u32>> = VecDeque::new();
        let mut tally = Tally::default();
        for moment in script.moments()? {
            let prompt = self.plugin.build(self.context(setup, &memory, &moment)).await?;
            let mut budget = Budget::of(&prompt, CONTEXT_TOKENS);
            budget.max_prompt_tokens = budget.max_prompt_tokens.min(self.window_tokens);
            let tokens = assembler.assemble(&prompt, budget)?.tokens;
            // The first prompt of a file is cold in every layout.
            if !earlier.is_empty() {
                let cached = earlier.iter().map(|held| shared_blocks(held, &tokens)).max().unwrap_or(0);
                tally.add(Tally {
                    prompts: 1,
                    tokens: tokens.len(),
                    cached,
                    cold: usize::from(cached * 2 < tokens.len()),
                });
            }
            earlier.push_front(tokens);
            earlier.truncate(HELD);
        }
        Ok(tally)
    }

    fn context(&self, setup: &Setup, memory: &PromptMemory, moment: &Moment) -> Context {
        let mut window = if setup.kept {
            memory.place(&moment.text, moment.caret, self.window_tokens)
        } else {
            Window::around(&moment.text, moment.caret, moment.caret, self.window_tokens)
        };
        let half_typed = half_typed(&window.prefix).to_owned();
        window.cut_end(&half_typed);
        let fact = |name: &str, value: String| (name.to_owned(), value);
        let mut facts = Vec::new();
        if setup.anchored {
            facts.push(fact("middle-bytes", window.middle_bytes.to_string()));
        }
        Context {
            task: "complete".into(),
            path: moment.path.clone(),
            language: String::new(),
            prefix: window.prefix,
            suffix: window.suffix,
            focus: String::new(),
            first_line: 0,
            single_line: true,
            snippets: Vec::new(),
            model: Model {
                name: "none".into(),
                context_tokens: CONTEXT_TOKENS as u32,
                control_tokens: self.tokenizer.control_tokens(),
                chat: None,
                facts: vec![
                    fact("fim-layout", setup.layout.into()),
                    fact("window-tokens", self.window_tokens.to_string()),
                ],
            },
            facts,
        }
    }
}

/// The word that may be half typed and the blank before it, which the server leaves out of prompts.
fn half_typed(prefix: &str) -> &str {
    let line = prefix.rsplit('\n').next().unwrap_or_default();
    let before = line.trim_end_matches(|c: char| c.is_alphanumeric() || c == '_');
    let before = before.strip_suffix(' ').filter(|before| !before.trim().is_empty()).unwrap_or(before);
    if line.trim().is_empty() { "" } else { &line[before.len()..] }
}

/// Tokens in whole blocks that both begin with, at least one of `tokens` left to compute.
fn shared_blocks(held: &[u32], tokens: &[u32]) -> usize {
    let shared = held.iter().zip(tokens).take_while(|(old, new)| old == new).count();
    shared.min(tokens.len().saturating_sub(1)) / BLOCK * BLOCK
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.prompts += other.prompts;
        self.tokens += other.tokens;
        self.cached += other.cached;
        self.cold += other.cold;
    }

    fn share(self) -> String {
        format!("{:.1} %", 100.0 * self.cached as f64 / self.tokens.max(1) as f64)
    }
}
