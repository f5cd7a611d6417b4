//! Checks of what crosses the boundary, beyond what its types say.

use crate::error::PluginError;
use crate::prompt::{Answer, Context, Finding, Info, Piece, Prompt};

const MAX_SEGMENTS: usize = 1024;
const MAX_STOPS: usize = 32;
const MAX_INSERTIONS: usize = 16;
const MAX_FINDINGS: usize = 200;
const SEVERITIES: [&str; 4] = ["error", "warning", "information", "hint"];

/// Bytes of the texts that a caller sizes. Names and facts are few and short.
pub(crate) fn context_bytes(context: &Context) -> usize {
    let snippets: usize =
        context.snippets.iter().map(|snippet| snippet.path.len() + snippet.text.len()).sum();
    context.prefix.len() + context.suffix.len() + context.focus.len() + snippets
}

/// A plugin names itself and at least one task.
pub(crate) fn info(info: &Info) -> Result<(), PluginError> {
    if info.name.is_empty() || info.tasks.is_empty() {
        return Err(PluginError::BadAnswer("describe() names no plugin or no task".to_owned()));
    }
    Ok(())
}

/// Passes a prompt on that can be run on the context's model.
pub(crate) fn prompt(prompt: Prompt, context: &Context) -> Result<Prompt, PluginError> {
    let bad = |reason: String| Err(PluginError::BadPrompt(reason));
    if prompt.segments.len() > MAX_SEGMENTS {
        return bad(format!("{} segments; the limit is {MAX_SEGMENTS}", prompt.segments.len()));
    }
    let mut pieces = prompt.segments.iter().flat_map(|segment| &segment.pieces).peekable();
    if pieces.peek().is_none() {
        return bad("it is empty".to_owned());
    }
    let controls = pieces.filter_map(|piece| match piece {
        Piece::Control(token) => Some(token),
        Piece::Text(_) => None,
    });
    let known = |token: &str| context.model.control_tokens.iter().any(|known| known == token);
    if let Some(unknown) = controls.chain(&prompt.stop_control).find(|token| !known(token)) {
        return bad(format!("{} has no control token {unknown:?}", context.model.name));
    }
    if prompt.stop.len() + prompt.stop_control.len() > MAX_STOPS {
        return bad(format!("more than {MAX_STOPS} stops"));
    }
    if prompt.stop.iter().any(String::is_empty) {
        return bad("an empty stop text, which would end the answer before it begins".to_owned());
    }
    let limit = context.model.context_tokens;
    if prompt.max_tokens == 0 || prompt.max_tokens >= limit {
        return bad(format!(
            "an answer of {} tokens, with a model of {limit} for prompt and answer",
            prompt.max_tokens
        ));
    }
    Ok(prompt)
}

/// Passes an answer on whose findings lie within the context's focus.
pub(crate) fn answer(answer: Answer, context: &Context) -> Result<Answer, PluginError> {
    let bad = |reason: String| Err(PluginError::BadAnswer(reason));
    if answer.insertions.len() > MAX_INSERTIONS {
        return bad(format!("{} insertions; the limit is {MAX_INSERTIONS}", answer.insertions.len()));
    }
    if answer.findings.len() > MAX_FINDINGS {
        return bad(format!("{} findings; the limit is {MAX_FINDINGS}", answer.findings.len()));
    }
    let lines = context.focus.lines().count() as u64;
    let outside =
        |finding: &&Finding| finding.last_line < finding.first_line || u64::from(finding.last_line) >= lines;
    if let Some(finding) = answer.findings.iter().find(outside) {
        let Finding { first_line, last_line, .. } = finding;
        return bad(format!("a finding on lines {first_line} to {last_line} of a text of {lines}"));
    }
    if let Some(finding) =
        answer.findings.iter().find(|finding| !SEVERITIES.contains(&finding.severity.as_str()))
    {
        return bad(format!("unknown severity {:?}", finding.severity));
    }
    Ok(answer)
}
