//! The completion prompt that needs no plugin. It stands in when the plugin fails, so that typing goes
//! on: the text around the caret and nothing else.

use crate::prompt::{Answer, Context, Piece, Prompt, Segment, Stability, Trim};

const PREFIX: &str = "<|fim_prefix|>";
const SUFFIX: &str = "<|fim_suffix|>";
const MIDDLE: &str = "<|fim_middle|>";
const STOPS: [&str; 6] = ["<|endoftext|>", "<|file_sep|>", PREFIX, SUFFIX, MIDDLE, "<|im_end|>"];

/// A fill-in-the-middle prompt in the layout that the model's `fim-layout` fact names (prefix first
/// without one); for a model without the control tokens, the prefix to be continued.
pub fn complete(context: &Context) -> Prompt {
    let has = |token: &str| context.model.control_tokens.iter().any(|known| known == token);
    let facts = &context.model.facts;
    let fact = |name: &str| facts.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str());
    let window = fact("window-tokens").and_then(|tokens| tokens.parse().ok()).unwrap_or(0);
    let can_fill = [PREFIX, SUFFIX, MIDDLE].into_iter().all(has);
    let line_start = context.prefix.rfind('\n').map_or(0, |newline| newline + 1);
    let (ahead, current) = context.prefix.split_at(line_start);
    let (anchored, begun) = anchored(context).unwrap_or((ahead, current));
    // All of one class: the layouts stand as written.
    let before = |before| text(before, Trim::Start, 100);
    let line = |line| text(line, Trim::Start, 250);
    let after = text(&context.suffix, Trim::End, 50);
    let segments = match fact("fim-layout") {
        _ if !can_fill => vec![before(ahead), line(current)],
        Some("suffix-first") => {
            vec![control(SUFFIX), after, control(PREFIX), before(ahead), line(current), control(MIDDLE)]
        }
        Some("suffix-line-last") => {
            vec![control(SUFFIX), after, control(PREFIX), before(anchored), control(MIDDLE), line(begun)]
        }
        Some("line-last") => {
            vec![control(PREFIX), before(anchored), control(SUFFIX), after, control(MIDDLE), line(begun)]
        }
        _ => vec![control(PREFIX), before(ahead), line(current), control(SUFFIX), after, control(MIDDLE)],
    };
    let max_tokens = if context.single_line { 48 } else { 160 };
    Prompt {
        segments,
        stop: if context.single_line { vec!["\n".to_owned()] } else { Vec::new() },
        stop_control: STOPS.into_iter().filter(|token| has(token)).map(str::to_owned).collect(),
        max_tokens: max_tokens.min(context.model.context_tokens / 4).max(1),
        prompt_tokens: window,
        facts: Vec::new(),
    }
}

/// The prefix parted where the text typed since the anchor begins, as the fact `middle-bytes` says.
fn anchored(context: &Context) -> Option<(&str, &str)> {
    let (_, bytes) = context.facts.iter().find(|(name, _)| name == "middle-bytes")?;
    let start = context.prefix.len().checked_sub(bytes.parse().ok()?)?;
    context.prefix.split_at_checked(start)
}

/// What [`complete`]'s raw text means: one insertion, or none when it is blank.
pub fn finish(context: &Context, raw: &str) -> Answer {
    let text = if context.single_line { raw.lines().next().unwrap_or_default() } else { raw };
    let text = text.trim_end();
    let insertions = if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    Answer { insertions, findings: Vec::new(), facts: Vec::new() }
}

fn control(token: &str) -> Segment {
    let pieces = vec![Piece::Control(token.to_owned())];
    Segment { pieces, stability: Stability::Document, trim: Trim::Keep, weight: u8::MAX }
}

fn text(text: &str, trim: Trim, weight: u8) -> Segment {
    Segment { pieces: vec![Piece::Text(text.to_owned())], stability: Stability::Document, trim, weight }
}
