//! A completion: from a caret to shaped text.

use std::time::{Duration, Instant};

use redstart_engine::generator::Generation;
use redstart_engine::request::{Event, FinishReason, Priority, SubmitError, Token};
use redstart_plugins::prompt::{Context, Prompt};
use redstart_plugins::{Budget, builtin};
use redstart_syntax::caret::Caret;
use redstart_syntax::scope::{self, Scope};
use redstart_syntax::shape;
use redstart_syntax::stop::{StopPolicy, Verdict};
use redstart_syntax::trigger::{self, Trigger};

use crate::assistant::{Assistant, NoSuggestion, Suggestion, SuggestionStats, engine_request, plugin_model};
use crate::model::LoadedModel;
use crate::snapshot::Snapshot;

impl Assistant {
    /// A suggestion at byte offset `caret`. Dropping the future stops the generation, and
    /// that is how a newer request ends an older one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn complete(
        &self,
        snapshot: &Snapshot,
        caret: usize,
        trigger: Trigger,
    ) -> Result<Suggestion, NoSuggestion> {
        let started = Instant::now();
        let caret = Caret::new(&snapshot.text, caret, snapshot.language);
        trigger::check(&caret, trigger).map_err(|reason| NoSuggestion::NotHere(reason.to_string()))?;
        let model = self.ready().map_err(NoSuggestion::NotReady)?;
        let scope = scope::wants_block(&caret, None);

        let half_typed = half_typed(caret.line_prefix());
        let context = context(&model, snapshot, &caret, scope, half_typed);
        let mut stats = SuggestionStats::default();
        let (prompt, tokens) =
            self.prompt(&model, &context, &mut stats).await.map_err(NoSuggestion::Failed)?;
        let mut request = engine_request(&model, snapshot, &prompt, tokens, Priority::Typing);
        request.params.begins_with = half_typed.to_owned();
        request.params.top_logprobs = 1;
        let generation = model.generator.submit(request).map_err(refused)?;
        stats.submit = started.elapsed();

        let mut watch = Watch::new(StopPolicy::new(&caret, scope), half_typed.len(), started);
        let raw = watch.read(generation, &mut stats).await?;
        stats.confidence = watch.confidence();
        if trigger == Trigger::Automatic && stats.confidence < model.hints.min_confidence {
            return Err(NoSuggestion::Unsure);
        }
        let text = insertion(&model, &context, raw, stats.fallback_prompt).await;
        let shaped = shape::shape(&text, &caret, scope).ok_or(NoSuggestion::Nothing)?;
        stats.total = started.elapsed();
        let at = caret.byte();
        Ok(Suggestion { range: at..at + shaped.replace, text: shaped.text, stats })
    }

    /// The plugin's prompt in tokens; the built-in prompt when the plugin has none that fits.
    async fn prompt(
        &self,
        model: &LoadedModel,
        context: &Context,
        stats: &mut SuggestionStats,
    ) -> Result<(Prompt, Vec<u32>), String> {
        if let Some(plugin) = &model.plugins.complete {
            let built = plugin.build(context.clone()).await.map_err(|error| error.to_string());
            match built.and_then(|prompt| Ok((tokens(model, &prompt)?, prompt))) {
                Ok((tokens, prompt)) => return Ok((prompt, tokens)),
                Err(error) => model.plugins.report(plugin, &error),
            }
        }
        stats.fallback_prompt = true;
        let prompt = builtin::complete(context);
        let tokens = tokens(model, &prompt)?;
        Ok((prompt, tokens))
    }
}

/// The end of the line before the caret that the prompt leaves out, and that the output must begin with:
/// a word that may be half typed, with the blank before it. Vocabularies join a blank to the word after it
/// and know words better than their halves, so a prompt that ends there is continued better. It is
/// also the same prompt for every letter of the word. Empty where only indentation precedes the caret.
fn half_typed(line_prefix: &str) -> &str {
    const LONGEST: usize = 40;
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let without_word = line_prefix.trim_end_matches(is_word);
    let start = match without_word.strip_suffix(' ') {
        Some(before) if !before.trim().is_empty() => before.len(),
        _ => without_word.len(),
    };
    if line_prefix.len() - start > LONGEST || line_prefix.trim().is_empty() {
        ""
    } else {
        &line_prefix[start..]
    }
}

fn context(
    model: &LoadedModel,
    snapshot: &Snapshot,
    caret: &Caret,
    scope: Scope,
    half_typed: &str,
) -> Context {
    let at = caret.byte();
    let mut window = snapshot.prompt_memory.place(&snapshot.text, at, model.hints.window_tokens);
    window.cut_end(half_typed);
    Context {
        task: "complete".into(),
        path: snapshot.path.display().to_string(),
        language: snapshot.language_id.to_string(),
        prefix: window.prefix,
        suffix: window.suffix,
        focus: String::new(),
        first_line: u32::try_from(snapshot.text.byte_to_line(at)).unwrap_or(u32::MAX),
        single_line: scope == Scope::SingleLine,
        snippets: Vec::new(),
        model: plugin_model(model),
        facts: vec![("middle-bytes".to_owned(), window.middle_bytes.to_string())],
    }
}

/// Leaves room for the answer, and keeps to the window the model does well with.
fn tokens(model: &LoadedModel, prompt: &Prompt) -> Result<Vec<u32>, String> {
    let mut budget = Budget::of(prompt, model.generator.model().max_model_len);
    budget.max_prompt_tokens = budget.max_prompt_tokens.min(model.hints.window_tokens);
    let assembled = model.assembler.assemble(prompt, budget).map_err(|error| error.to_string())?;
    Ok(assembled.tokens)
}

fn refused(error: SubmitError) -> NoSuggestion {
    match error {
        SubmitError::Stopped(message) => NoSuggestion::NotReady(message),
        other => NoSuggestion::Failed(other.to_string()),
    }
}

/// Reads a generation until the policy, the model or a limit ends it.
struct Watch {
    policy: StopPolicy,
    /// Bytes still to come of what was half typed.
    to_skip: usize,
    started: Instant,
    first_line: Option<Duration>,
    /// Sum of the log-probabilities of the tokens of the first line, and their number.
    logprob: (f32, usize),
}

impl Watch {
    fn new(policy: StopPolicy, to_skip: usize, started: Instant) -> Self {
        Self { policy, to_skip, started, first_line: None, logprob: (0.0, 0) }
    }

    /// The raw text that follows the caret, up to where it should stop.
    async fn read(
        &mut self,
        mut generation: Generation,
        stats: &mut SuggestionStats,
    ) -> Result<String, NoSuggestion> {
        let mut reason = None;
        while let Some(event) = generation.next().await {
            match event {
                Event::Started(usage) => {
                    stats.prompt_tokens = usage.prompt_tokens;
                    stats.cached_tokens = usage.cached_tokens;
                }
                Event::Token(token) => {
                    stats.generated_tokens += 1;
                    if self.take(&token) == Verdict::Stop {
                        break;
                    }
                }
                Event::Finished(finished, _) => reason = Some(finished),
            }
        }
        drop(generation);
        stats.first_line = self.first_line.unwrap_or_else(|| self.started.elapsed());
        match reason {
            Some(FinishReason::Superseded) => Err(NoSuggestion::Superseded),
            Some(FinishReason::Failed(message)) => Err(NoSuggestion::Failed(message)),
            Some(FinishReason::MaxTokens | FinishReason::ContextFull) => Ok(self.whole_lines().to_owned()),
            _ => Ok(self.policy.accepted().to_owned()),
        }
    }

    fn take(&mut self, token: &Token) -> Verdict {
        let skipped = self.to_skip.min(token.text.len());
        self.to_skip -= skipped;
        if self.first_line.is_none() && skipped == 0 {
            self.logprob.0 += token.top_logprobs.first().map_or(0.0, |(_, logprob)| *logprob);
            self.logprob.1 += 1;
        }
        let verdict = self.policy.push(token.text.get(skipped..).unwrap_or_default());
        if self.first_line.is_none() && self.policy.accepted().trim_start_matches('\n').contains('\n') {
            self.first_line = Some(self.started.elapsed());
        }
        verdict
    }

    /// A line that a limit cut in two is not shown, unless it is the only one.
    fn whole_lines(&self) -> &str {
        let text = self.policy.accepted();
        match text.trim_end().rfind('\n') {
            Some(end) if !text[..end].trim().is_empty() => &text[..end],
            _ => text,
        }
    }

    /// Geometric mean of the probabilities of the first line's tokens; 1 for none.
    fn confidence(&self) -> f32 {
        let (sum, count) = self.logprob;
        if count == 0 { 1.0 } else { (sum / count as f32).exp() }
    }
}

/// What the plugin makes of the raw text; the built-in reading where the plugin fails.
async fn insertion(model: &LoadedModel, context: &Context, raw: String, fallback: bool) -> String {
    let plugin = model.plugins.complete.as_ref().filter(|_| !fallback);
    let answer = match plugin {
        Some(plugin) => plugin.finish(context.clone(), raw.clone()).await.unwrap_or_else(|error| {
            model.plugins.report(plugin, &error.to_string());
            builtin::finish(context, &raw)
        }),
        None => builtin::finish(context, &raw),
    };
    answer.insertions.into_iter().next().unwrap_or_default()
}
