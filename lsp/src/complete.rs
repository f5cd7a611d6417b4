//! A completion: from a caret to shaped text.

use std::time::Instant;

use redstart_engine::generator::Generation;
use redstart_engine::request::{Event, FinishReason, Priority, SubmitError, Usage};
use redstart_plugins::prompt::{Context, Prompt};
use redstart_plugins::{Budget, builtin};
use redstart_syntax::caret::Caret;
use redstart_syntax::scope::{self, Scope};
use redstart_syntax::shape;
use redstart_syntax::stop::{StopPolicy, Verdict};
use redstart_syntax::trigger::{self, Trigger};

use crate::assistant::{
    Assistant, NoSuggestion, Suggestion, SuggestionStats, engine_request, plugin_model,
};
use crate::model::LoadedModel;
use crate::snapshot::Snapshot;
use crate::window::Window;

impl Assistant {
    /// A suggestion at byte offset `caret`. Dropping the future stops the generation; a later call
    /// for the same document supersedes an earlier one.
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
        trigger::check(&caret, trigger)
            .map_err(|reason| NoSuggestion::NotHere(reason.to_string()))?;
        let model = self.ready().map_err(NoSuggestion::NotReady)?;
        let scope = scope::wants_block(&caret, None);

        let context = context(&model, snapshot, &caret, scope);
        let mut stats = SuggestionStats::default();
        let (prompt, tokens) = self.prompt(&model, &context, &mut stats).await.map_err(NoSuggestion::Failed)?;
        let request = engine_request(&model, snapshot, &prompt, tokens, Priority::Typing);
        let generation = model.generator.submit(request).map_err(refused)?;
        stats.submit = started.elapsed();

        let raw = generate(generation, StopPolicy::new(&caret, scope), started, &mut stats).await?;
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

fn context(model: &LoadedModel, snapshot: &Snapshot, caret: &Caret, scope: Scope) -> Context {
    let at = caret.byte();
    let window = Window::around(&snapshot.text, at, at, model.hints.window_tokens);
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
        facts: Vec::new(),
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

/// Reads the stream until the policy, the model or a limit ends it. The raw text up to there.
async fn generate(
    mut generation: Generation,
    mut policy: StopPolicy,
    started: Instant,
    stats: &mut SuggestionStats,
) -> Result<String, NoSuggestion> {
    let mut first_line = None;
    let mut tokens = 0;
    let mut finished: Option<(FinishReason, Usage)> = None;
    while let Some(event) = generation.next().await {
        match event {
            Event::Started(usage) => {
                stats.prompt_tokens = usage.prompt_tokens;
                stats.cached_tokens = usage.cached_tokens;
            }
            Event::Token(token) => {
                tokens += 1;
                let verdict = policy.push(&token.text);
                if first_line.is_none() && policy.accepted().trim_start_matches('\n').contains('\n') {
                    first_line = Some(started.elapsed());
                }
                if verdict == Verdict::Stop {
                    break;
                }
            }
            Event::Finished(reason, usage) => finished = Some((reason, usage)),
        }
    }
    drop(generation);
    stats.generated_tokens = tokens;
    stats.first_line = first_line.unwrap_or_else(|| started.elapsed());
    match finished {
        Some((FinishReason::Superseded, _)) => Err(NoSuggestion::Superseded),
        Some((FinishReason::Cancelled, _)) => Err(NoSuggestion::Nothing),
        Some((FinishReason::Failed(message), _)) => Err(NoSuggestion::Failed(message)),
        _ => Ok(policy.accepted().to_owned()),
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
