//! A review: from a function to findings on lines.

use std::ops::Range;

use redstart_engine::generator::Generation;
use redstart_engine::request::{Event, FinishReason, Priority};
use redstart_plugins::prompt::{Context, Finding as PluginFinding};
use redstart_plugins::{Budget, PluginError};

use crate::assistant::{Assistant, Finding, Severity, engine_request, plugin_model};
use crate::model::LoadedModel;
use crate::snapshot::Snapshot;
use crate::window::Window;

/// Tokens of surrounding code a review may see, besides the function itself.
const SURROUNDINGS: usize = 512;

impl Assistant {
    /// Reviews the function at `function` (byte range, see `redstart_syntax::function`). `progress` is
    /// called with the number of tokens written so far. Dropping the future stops the generation.
    ///
    /// # Errors
    /// A message for the user.
    pub async fn review(
        &self,
        snapshot: &Snapshot,
        function: Range<usize>,
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<Vec<Finding>, String> {
        let model = self.ready_to_review()?;
        let plugin = model.plugins.review.as_ref().ok_or("no plugin can review; see the server's log")?;
        let context = context(&model, snapshot, &function);
        let failed = |error: PluginError| match error {
            PluginError::Returned(reason) => reason,
            other => format!("the review plugin failed: {other}"),
        };

        let prompt = plugin.build(context.clone()).await.map_err(failed)?;
        let budget = Budget::of(&prompt, model.generator.model().max_model_len);
        let tokens = model.assembler.assemble(&prompt, budget).map_err(|error| error.to_string())?.tokens;
        let request = engine_request(&model, snapshot, &prompt, tokens, Priority::Action);
        let generation = model.generator.submit(request).map_err(|error| error.to_string())?;
        let raw = read(generation, progress).await?;
        let answer = plugin.finish(context.into(), raw).await.map_err(failed)?;

        let first_line = snapshot.text.byte_to_line(function.start);
        let last_line = snapshot.text.byte_to_line(function.end.saturating_sub(1).max(function.start));
        Ok(answer
            .findings
            .into_iter()
            .filter_map(|finding| absolute(finding, first_line, last_line))
            .collect())
    }
}

fn context(model: &LoadedModel, snapshot: &Snapshot, function: &Range<usize>) -> Context {
    // Whole lines, so that the focus has the function's own indentation and the lines count from it.
    let text = &snapshot.text;
    let start = text.line_to_byte(text.byte_to_line(function.start));
    let window = Window::around(text, start, function.end, SURROUNDINGS);
    Context {
        task: "review".into(),
        path: snapshot.path.display().to_string(),
        language: snapshot.language_id.to_string(),
        prefix: window.prefix,
        suffix: window.suffix,
        focus: text.byte_slice(start..function.end).to_string().replace("\r\n", "\n"),
        first_line: u32::try_from(text.byte_to_line(start)).unwrap_or(u32::MAX),
        single_line: false,
        snippets: Vec::new(),
        model: plugin_model(model),
        facts: Vec::new(),
    }
}

async fn read(
    mut generation: Generation,
    progress: &(dyn Fn(usize) + Send + Sync),
) -> Result<String, String> {
    let mut raw = String::new();
    let mut tokens = 0;
    while let Some(event) = generation.next().await {
        match event {
            Event::Token(token) => {
                raw.push_str(&token.text);
                tokens += 1;
                progress(tokens);
            }
            Event::Finished(FinishReason::Failed(message), _) => return Err(message),
            Event::Finished(FinishReason::Superseded, _) => {
                return Err("a newer review of this file took its place".into());
            }
            Event::Started(_) | Event::Finished(..) => {}
        }
    }
    Ok(raw)
}

/// A finding in lines of the document. One that lies outside the function was made up.
fn absolute(finding: PluginFinding, first_line: usize, last_line: usize) -> Option<Finding> {
    let from = first_line + finding.first_line as usize;
    let to = (first_line + finding.last_line as usize).min(last_line);
    if from > to {
        return None;
    }
    let severity = match finding.severity.as_str() {
        "error" => Severity::Error,
        "warning" => Severity::Warning,
        "hint" => Severity::Hint,
        _ => Severity::Information,
    };
    Some(Finding {
        first_line: from,
        last_line: to,
        severity,
        kind: finding.kind,
        message: finding.message,
        replacement: finding.replacement,
    })
}
