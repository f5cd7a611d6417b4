//! Fill-in-the-middle completion: the text around the caret, laid out the way the model learned it.
//!
//! The model's `fim-layout` fact chooses:
//! - `suffix-first`: suffix, prefix, middle. Typing only appends, so the cached prompt stays good.
//! - `suffix-line-last`: the same, but what was typed since stands after `fim_middle`: the last bytes of the
//!   prefix that the context's fact `middle-bytes` counts, or without one the current line. A model that
//!   learned middles from the start of a line continues such a line better than a prefix cut within one.
//! - `line-last`: prefix, suffix, and what was typed since after `fim_middle`. For models trained prefix
//!   first (Qwen2.5-Coder), it keeps the cache as the others do.
//! - `prefix-first` (the default): prefix, suffix, middle, as in the papers.
//!
//! Over budget, the far part of the suffix goes first, then the start of the prefix, then the near
//! part of the suffix; snippets from other files go before all of these, the last one first.

mod answer;
mod layout;

use redstart_plugin_sdk::{Answer, Context, Info, Prompt, PromptPlugin};

struct Complete;

impl PromptPlugin for Complete {
    fn describe() -> Info {
        Info {
            name: "complete".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tasks: vec!["complete".to_owned()],
            facts: Vec::new(),
        }
    }

    fn build(context: Context) -> Result<Prompt, String> {
        layout::build(&context)
    }

    fn finish(context: Context, raw: String) -> Result<Answer, String> {
        Ok(answer::finish(&context, &raw))
    }
}

redstart_plugin_sdk::export!(Complete);

#[cfg(test)]
mod tests;
