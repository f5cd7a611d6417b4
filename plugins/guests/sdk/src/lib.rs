//! Write a Redstart prompt plugin in Rust.
//!
//! A plugin is a pure function in two halves: [`PromptPlugin::build`] turns what the editor knows
//! into a prompt, [`PromptPlugin::finish`] turns what the model wrote into items. It imports nothing
//! and remembers nothing: every call runs in a fresh instance with a time and a memory limit.
//!
//! ```
//! use redstart_plugin_sdk::{Answer, Context, Info, Prompt, PromptPlugin, Stability, Trim, segment};
//!
//! struct Continue;
//!
//! impl PromptPlugin for Continue {
//!     fn describe() -> Info {
//!         Info { name: "continue".into(), version: "0.1.0".into(), tasks: vec!["complete".into()], facts: vec![] }
//!     }
//!
//!     fn build(context: Context) -> Result<Prompt, String> {
//!         let prefix = segment(Stability::Document).text(context.prefix).trim(Trim::Start, 100).build();
//!         Ok(Prompt {
//!             segments: vec![prefix],
//!             stop: vec!["\n".into()],
//!             stop_control: vec![],
//!             max_tokens: 32,
//!             prompt_tokens: 0,
//!             facts: vec![],
//!         })
//!     }
//!
//!     fn finish(_context: Context, raw: String) -> Result<Answer, String> {
//!         Ok(Answer { insertions: vec![raw], findings: vec![], facts: vec![] })
//!     }
//! }
//!
//! redstart_plugin_sdk::export!(Continue);
//! ```
//!
//! Build it as a `cdylib` for `wasm32-unknown-unknown` and wrap the module as a component
//! (plugins/README.md shows both commands). The records are those of `plugins/wit/prompt.wit`, where
//! each field is explained.

/// What `wit-bindgen` makes of `plugins/wit/prompt.wit`.
#[expect(missing_docs, reason = "generated; the documentation is that of the WIT file")]
#[allow(unreachable_pub, reason = "generated")]
pub mod bindings {
    wit_bindgen::generate!({
        path: "../../wit",
        world: "prompt-plugin",
        pub_export_macro: true,
        default_bindings_module: "redstart_plugin_sdk::bindings",
        additional_derives: [PartialEq],
    });
}

pub use bindings::exports::redstart::prompt::plugin::{
    Answer, ChatFrame, Context, Fact, Finding, Guest as PromptPlugin, Info, Model, Piece, Prompt, Segment,
    Snippet, Stability, Trim,
};

/// Makes a type that implements [`PromptPlugin`] the plugin that this crate is. Built for the machine
/// itself, as `cargo test` does, the crate exports nothing and only the type is checked.
#[macro_export]
macro_rules! export {
    ($plugin:ident) => {
        #[cfg(target_arch = "wasm32")]
        $crate::bindings::export!($plugin with_types_in $crate::bindings);
        #[cfg(not(target_arch = "wasm32"))]
        const _: fn() -> $crate::Info = <$plugin as $crate::PromptPlugin>::describe;
    };
}

/// Starts a segment of this stability: never trimmed unless [`SegmentBuilder::trim`] says so.
pub fn segment(stability: Stability) -> SegmentBuilder {
    SegmentBuilder(Segment { pieces: Vec::new(), stability, trim: Trim::Keep, weight: u8::MAX })
}

/// A segment in the making.
#[must_use]
pub struct SegmentBuilder(Segment);

impl SegmentBuilder {
    /// Appends text. It can never become a control token, whatever it spells.
    pub fn text(mut self, text: impl Into<String>) -> Self {
        self.0.pieces.push(Piece::Text(text.into()));
        self
    }

    /// Appends one control token of the model, as written.
    pub fn control(mut self, token: impl Into<String>) -> Self {
        self.0.pieces.push(Piece::Control(token.into()));
        self
    }

    /// Appends ready-made pieces, such as those of a [`ChatFrame`].
    pub fn pieces(mut self, pieces: &[Piece]) -> Self {
        self.0.pieces.extend_from_slice(pieces);
        self
    }

    /// Lets the host shorten the segment when the prompt is over budget; lower weights go first.
    pub fn trim(mut self, trim: Trim, weight: u8) -> Self {
        self.0.trim = trim;
        self.0.weight = weight;
        self
    }

    /// The segment.
    pub fn build(self) -> Segment {
        self.0
    }
}

/// The value of the first fact of this name.
pub fn fact<'a>(facts: &'a [Fact], name: &str) -> Option<&'a str> {
    facts.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

/// A fact that is a whole number.
///
/// # Errors
/// A sentence naming the fact, when it is there and not a number.
pub fn number_fact(facts: &[Fact], name: &str) -> Result<Option<u32>, String> {
    fact(facts, name)
        .map(|value| {
            value.trim().parse().map_err(|_| format!("fact `{name}` should be a whole number, not `{value}`"))
        })
        .transpose()
}

/// Whether the model's tokenizer has this control token.
pub fn has_control(model: &Model, token: &str) -> bool {
    model.control_tokens.iter().any(|known| known == token)
}

/// Those of `tokens` that the model has, in the order asked for. For `stop-control`.
pub fn known_controls(model: &Model, tokens: &[&str]) -> Vec<String> {
    tokens.iter().filter(|token| has_control(model, token)).map(|token| token.to_string()).collect()
}

/// Checks that the model has every one of `tokens`.
///
/// # Errors
/// A sentence for the user that names the missing ones.
pub fn require_controls(model: &Model, tokens: &[&str]) -> Result<(), String> {
    let missing: Vec<&str> = tokens.iter().copied().filter(|token| !has_control(model, token)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!("{} lacks the control tokens {}", model.name, missing.join(", ")))
}

/// The text without the line being typed, and that line so far: `"a\nb"` is `("a\n", "b")`.
pub fn split_current_line(prefix: &str) -> (&str, &str) {
    prefix.split_at(prefix.rfind('\n').map_or(0, |newline| newline + 1))
}

/// The first `lines` lines with their line ends, and the rest.
pub fn split_lines(text: &str, lines: usize) -> (&str, &str) {
    if lines == 0 {
        return ("", text);
    }
    text.split_at(text.match_indices('\n').nth(lines - 1).map_or(text.len(), |(newline, _)| newline + 1))
}
