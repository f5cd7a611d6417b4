//! Reviews: a question to a chat model about one function, and findings out of whatever it answers.

mod findings;
mod question;

use redstart_plugin_sdk::{Answer, Context, Info, Prompt, PromptPlugin};

struct Review;

impl PromptPlugin for Review {
    fn describe() -> Info {
        Info {
            name: "review".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            tasks: vec!["review".to_owned()],
            facts: Vec::new(),
        }
    }

    fn build(context: Context) -> Result<Prompt, String> {
        question::build(&context)
    }

    fn finish(context: Context, raw: String) -> Result<Answer, String> {
        let findings = findings::parse(&raw, context.focus.lines().count());
        if findings.is_empty() && !findings::says_none(&raw) {
            let beginning: String = raw.trim().chars().take(80).collect();
            return Err(format!("the model's answer is not a review; it begins with {beginning:?}"));
        }
        Ok(Answer { insertions: Vec::new(), findings, facts: Vec::new() })
    }
}

redstart_plugin_sdk::export!(Review);

#[cfg(test)]
mod tests;
