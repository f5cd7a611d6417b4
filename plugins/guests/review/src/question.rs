//! The question: how to answer, where the function stands, and the function with numbered lines.

use redstart_plugin_sdk::{Context, Prompt, Stability, Trim, known_controls, number_fact, segment};

/// Kept short: small models follow a short text better, and it is the part every review shares.
const SYSTEM: &str = "You review code. Report real problems only: bugs, security holes, needless slowness, misleading \
names or comments. Answer with one JSON object per line and nothing else:\n\
{\"first_line\": 3, \"last_line\": 4, \"severity\": \"error\", \"kind\": \"bug\", \"message\": \"what is wrong and why\", \
\"replacement\": \"the corrected lines\"}\n\
severity is error, warning, information or hint. kind is bug, security, performance, style or documentation. Line \
numbers are those before the `|`. replacement holds the whole lines first_line to last_line as they should be, \
indentation included, without numbers; leave it null when there is no short correction. \
If there is nothing to report, answer: no findings";

/// Lines around the function that are shown, at most.
const LINES_BEFORE: usize = 30;
const LINES_AFTER: usize = 12;
const MAX_TOKENS: u32 = 1024;

mod weight {
    pub(super) const AFTER: u8 = 20;
    pub(super) const BEFORE: u8 = 40;
}

/// What ends a turn in the chat formats in use.
const STOPS: [&str; 8] = [
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|im_start|>",
    "<end_of_turn>",
    "</s>",
];

pub(crate) fn build(context: &Context) -> Result<Prompt, String> {
    if context.task != "review" {
        return Err(format!("this plugin builds prompts for `review`, not for `{}`", context.task));
    }
    let Some(chat) = &context.model.chat else {
        return Err(format!("{} cannot review: it has no chat format", context.model.name));
    };
    if context.focus.trim().is_empty() {
        return Err("there is no code to review".to_owned());
    }
    let document = || segment(Stability::Document);
    let mut segments = vec![
        segment(Stability::Model).pieces(&chat.system).text(SYSTEM).pieces(&chat.user).build(),
        document().text(format!("File {} ({}).\n", context.path, context.language)).build(),
    ];
    let before = last_lines(&context.prefix, LINES_BEFORE);
    if !before.trim().is_empty() {
        segments.push(
            document().text("\nBefore it, for reference only:\n").trim(Trim::Drop, weight::BEFORE).build(),
        );
        segments.push(document().text(line_ended(before)).trim(Trim::Start, weight::BEFORE).build());
    }
    segments.push(document().text(format!("\nReview this:\n{}", numbered(&context.focus))).build());
    let after = first_lines(&context.suffix, LINES_AFTER);
    if !after.trim().is_empty() {
        segments.push(
            document().text("\nAfter it, for reference only:\n").trim(Trim::Drop, weight::AFTER).build(),
        );
        segments.push(document().text(line_ended(after)).trim(Trim::End, weight::AFTER).build());
    }
    let last_line = context.focus.lines().count();
    let request = format!("\nFindings in lines 1 to {last_line}, as JSON lines:");
    segments.push(document().text(request).pieces(&chat.reply).build());
    Ok(Prompt {
        segments,
        stop: Vec::new(),
        stop_control: known_controls(&context.model, &STOPS),
        max_tokens: number_fact(&context.facts, "max-tokens")?
            .unwrap_or(MAX_TOKENS.min(context.model.context_tokens / 3)),
        prompt_tokens: 0,
        facts: Vec::new(),
    })
}

/// Lines counted from 1, as models count: `1| def f():`.
fn numbered(focus: &str) -> String {
    focus.lines().enumerate().map(|(index, line)| format!("{}| {line}\n", index + 1)).collect()
}

fn line_ended(text: &str) -> String {
    format!("{}\n", text.trim_end_matches('\n'))
}

fn last_lines(text: &str, lines: usize) -> &str {
    let text = text.trim_end_matches('\n');
    text.rmatch_indices('\n').nth(lines - 1).map_or(text, |(newline, _)| &text[newline + 1..])
}

fn first_lines(text: &str, lines: usize) -> &str {
    let text = text.trim_start_matches('\n');
    text.match_indices('\n').nth(lines - 1).map_or(text, |(newline, _)| &text[..newline])
}
