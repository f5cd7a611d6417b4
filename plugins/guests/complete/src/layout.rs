//! From the text around the caret to segments.

use redstart_plugin_sdk::{
    Context, Prompt, Segment, Stability, Trim, fact, has_control, known_controls, number_fact,
    require_controls, segment, split_current_line, split_lines,
};

pub(crate) const FIM_PREFIX: &str = "<|fim_prefix|>";
pub(crate) const FIM_SUFFIX: &str = "<|fim_suffix|>";
pub(crate) const FIM_MIDDLE: &str = "<|fim_middle|>";
const FILE_SEP: &str = "<|file_sep|>";
const REPO_NAME: &str = "<|repo_name|>";

/// A model that writes one of these has left the middle.
pub(crate) const STOPS: [&str; 8] =
    ["<|endoftext|>", FILE_SEP, FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE, "<|fim_pad|>", REPO_NAME, "<|im_end|>"];

/// Lines of the suffix that matter as much as the prefix: they say where the middle must arrive. Blank
/// lines after them count too, because a vocabulary may have a word for several line ends.
const NEAR_SUFFIX_LINES: usize = 8;

/// What is given up first when the prompt is over budget.
mod weight {
    /// The same for all, whatever they are: of equal weights the host gives up the last, and the prompt
    /// still begins as it did.
    pub(super) const SNIPPET: u8 = 10;
    pub(super) const FAR_SUFFIX: u8 = 50;
    pub(super) const PREFIX: u8 = 100;
    pub(super) const NEAR_SUFFIX: u8 = 150;
    pub(super) const CURRENT_LINE: u8 = 250;
}

pub(crate) fn build(context: &Context) -> Result<Prompt, String> {
    if context.task != "complete" {
        return Err(format!("this plugin builds prompts for `complete`, not for `{}`", context.task));
    }
    require_controls(&context.model, &[FIM_PREFIX, FIM_SUFFIX, FIM_MIDDLE])
        .map_err(|missing| format!("{missing}, so it cannot complete in the middle of a file"))?;
    let mut segments = header(context);
    let layout = fact(&context.model.facts, "fim-layout").unwrap_or("prefix-first");
    match layout {
        "suffix-first" => suffix_first(context, &mut segments),
        "suffix-line-last" => suffix_line_last(context, &mut segments)?,
        "line-last" => line_last(context, &mut segments)?,
        "prefix-first" => prefix_first(context, &mut segments),
        other => {
            return Err(format!(
                "fact `fim-layout` is `{other}`; known layouts are suffix-first, suffix-line-last, line-last and prefix-first"
            ));
        }
    }
    let wanted_tokens = if context.single_line { 48 } else { 160 };
    let default_tokens = wanted_tokens.min(context.model.context_tokens / 4);
    Ok(Prompt {
        segments,
        stop: if context.single_line { vec!["\n".to_owned()] } else { Vec::new() },
        stop_control: known_controls(&context.model, &STOPS),
        max_tokens: number(context, "max-tokens")?.unwrap_or(default_tokens),
        prompt_tokens: number(context, "window-tokens")?.unwrap_or(0),
        facts: Vec::new(),
    })
}

/// A fact of this request, or else of the model.
fn number(context: &Context, name: &str) -> Result<Option<u32>, String> {
    Ok(number_fact(&context.facts, name)?.or(number_fact(&context.model.facts, name)?))
}

/// The repository's name, other files, and the name of this one, as far as the model has words for it.
fn header(context: &Context) -> Vec<Segment> {
    let mut segments = Vec::new();
    if let Some(repository) =
        fact(&context.facts, "repository").filter(|_| has_control(&context.model, REPO_NAME))
    {
        segments.push(segment(Stability::Workspace).control(REPO_NAME).text(repository).build());
    }
    if !has_control(&context.model, FILE_SEP) {
        return segments;
    }
    for snippet in &context.snippets {
        let end = if snippet.text.ends_with('\n') { "" } else { "\n" };
        segments.push(
            segment(Stability::Session)
                .control(FILE_SEP)
                .text(format!("{}\n{}{end}", snippet.path, snippet.text))
                .trim(Trim::Drop, weight::SNIPPET)
                .build(),
        );
    }
    segments.push(segment(Stability::Document).control(FILE_SEP).text(format!("{}\n", context.path)).build());
    segments
}

fn suffix_first(context: &Context, segments: &mut Vec<Segment>) {
    let (prefix, line) = split_current_line(&context.prefix);
    segments.push(control(Stability::Document, FIM_SUFFIX));
    suffix(context, segments);
    segments.push(control(Stability::Document, FIM_PREFIX));
    segments.push(before_line(prefix));
    segments.push(current_line(Stability::Line, line));
    segments.push(control(Stability::Line, FIM_MIDDLE));
}

fn suffix_line_last(context: &Context, segments: &mut Vec<Segment>) -> Result<(), String> {
    let (prefix, typed) = split_typed(context)?;
    segments.push(control(Stability::Document, FIM_SUFFIX));
    suffix(context, segments);
    segments.push(control(Stability::Document, FIM_PREFIX));
    segments.push(before_line(prefix));
    middle(typed, segments);
    Ok(())
}

fn line_last(context: &Context, segments: &mut Vec<Segment>) -> Result<(), String> {
    let (prefix, typed) = split_typed(context)?;
    segments.push(control(Stability::Document, FIM_PREFIX));
    segments.push(before_line(prefix));
    segments.push(control(Stability::Document, FIM_SUFFIX));
    suffix(context, segments);
    middle(typed, segments);
    Ok(())
}

/// The middle as far as it is known.
fn middle(typed: &str, segments: &mut Vec<Segment>) {
    segments.push(control(Stability::Line, FIM_MIDDLE));
    segments.push(current_line(Stability::Line, typed));
}

/// The prefix parted where the text begins that was typed since the window was placed.
fn split_typed(context: &Context) -> Result<(&str, &str), String> {
    match number_fact(&context.facts, "middle-bytes")? {
        Some(bytes) => split_end(&context.prefix, bytes as usize),
        None => Ok(split_current_line(&context.prefix)),
    }
}

/// The text without its last `bytes` bytes, and those.
fn split_end(text: &str, bytes: usize) -> Result<(&str, &str), String> {
    let split = text.len().checked_sub(bytes).and_then(|start| text.split_at_checked(start));
    split.ok_or_else(|| format!("fact `middle-bytes` is {bytes}, where no character of the prefix begins"))
}

fn prefix_first(context: &Context, segments: &mut Vec<Segment>) {
    let (prefix, line) = split_current_line(&context.prefix);
    segments.push(control(Stability::Document, FIM_PREFIX));
    segments.push(before_line(prefix));
    // In this layout the line stands before the suffix, so it cannot be of a later class.
    segments.push(current_line(Stability::Document, line));
    segments.push(control(Stability::Document, FIM_SUFFIX));
    suffix(context, segments);
    segments.push(control(Stability::Line, FIM_MIDDLE));
}

fn control(stability: Stability, token: &str) -> Segment {
    segment(stability).control(token).build()
}

fn before_line(text: &str) -> Segment {
    segment(Stability::Document).text(text).trim(Trim::Start, weight::PREFIX).build()
}

/// Trimmed only when the line alone is longer than the whole budget.
fn current_line(stability: Stability, text: &str) -> Segment {
    segment(stability).text(text).trim(Trim::Start, weight::CURRENT_LINE).build()
}

fn suffix(context: &Context, segments: &mut Vec<Segment>) {
    let (near, far) = split_near(&context.suffix);
    for (text, weight) in [(near, weight::NEAR_SUFFIX), (far, weight::FAR_SUFFIX)] {
        if !text.is_empty() {
            segments.push(segment(Stability::Document).text(text).trim(Trim::End, weight).build());
        }
    }
}

fn split_near(suffix: &str) -> (&str, &str) {
    let (near, far) = split_lines(suffix, NEAR_SUFFIX_LINES);
    let blank: usize =
        far.split_inclusive('\n').take_while(|line| line.trim().is_empty()).map(str::len).sum();
    suffix.split_at(near.len() + blank)
}
