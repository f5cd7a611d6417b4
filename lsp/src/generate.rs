//! One generation: prompt, engine, and reading until there is enough.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redstart_engine::generator::Generation;
use redstart_engine::request::{Event, FinishReason, Priority, SamplingParams, SubmitError, Token};
use redstart_plugins::prompt::{Context, Prompt, Snippet};
use redstart_plugins::{Budget, GuestThread, builtin};
use redstart_syntax::caret::Caret;
use redstart_syntax::scope::Scope;
use redstart_syntax::stop::{StopPolicy, TREE_BUDGET, Verdict};

use crate::assistant::{NoSuggestion, SuggestionStats, engine_request, plugin_model};
use crate::model::LoadedModel;
use crate::snapshot::Snapshot;
use crate::window::PromptMemory;

/// A place to generate for, with everything that goes into the prompt.
pub(crate) struct Place {
    pub(crate) snapshot: Snapshot,
    pub(crate) caret: Caret,
    pub(crate) scope: Scope,
    /// Text from elsewhere.
    pub(crate) snippets: Arc<[Snippet]>,
    /// Where prompts for the document had their window.
    pub(crate) windows: Arc<PromptMemory>,
}

/// A prompt that can be submitted, more than once.
pub(crate) struct Prepared {
    model: Arc<LoadedModel>,
    context: Arc<Context>,
    prompt: Prompt,
    tokens: Vec<u32>,
    /// The end of the caret's line that the prompt leaves out and the output begins with.
    half_typed: String,
    /// Whether the plugin failed.
    fallback: bool,
}

impl Prepared {
    /// Builds the prompt for a place: the plugin's, or the built-in one when the plugin has none that fits, or there
    /// is no `thread` for it. Computes for up to a millisecond.
    ///
    /// # Errors
    /// When even that has none, in words for the log.
    pub(crate) fn new(
        model: Arc<LoadedModel>,
        place: &Place,
        thread: Option<&GuestThread<'_>>,
    ) -> Result<Self, String> {
        let half_typed = half_typed(place.caret.line_prefix()).to_owned();
        let context = Arc::new(context(&model, place, &half_typed));
        if let (Some(plugin), Some(thread)) = (&model.plugins.complete, thread) {
            let built = plugin.build_on(thread, &context).map_err(|error| error.to_string());
            match built.and_then(|prompt| Ok((tokens(&model, &prompt)?, prompt))) {
                Ok((tokens, prompt)) => {
                    return Ok(Self { model, context, prompt, tokens, half_typed, fallback: false });
                }
                Err(error) => model.plugins.report(plugin, &error),
            }
        }
        let prompt = builtin::complete(&context);
        let tokens = tokens(&model, &prompt)?;
        Ok(Self { model, context, prompt, tokens, half_typed, fallback: true })
    }

    /// Asks the engine. `sampling` may change how tokens are drawn.
    ///
    /// # Errors
    /// When the engine refuses.
    pub(crate) fn submit(
        &self,
        snapshot: &Snapshot,
        priority: Priority,
        sampling: impl FnOnce(&mut SamplingParams),
    ) -> Result<Generation, NoSuggestion> {
        let mut request = engine_request(&self.model, snapshot, &self.prompt, self.tokens.clone(), priority);
        request.params.begins_with = self.half_typed.clone();
        request.params.top_logprobs = 1;
        sampling(&mut request.params);
        self.model.generator.submit(request).map_err(|error| match error {
            SubmitError::Stopped(message) => NoSuggestion::NotReady(message),
            other => NoSuggestion::Failed(other.to_string()),
        })
    }

    /// What reads a generation of this prompt for a place.
    pub(crate) fn reader(&self, place: &Place, started: Instant) -> Reader {
        Reader {
            policy: policy(place),
            to_skip: self.half_typed.len(),
            started,
            first_line: None,
            logprob: (0.0, 0),
            stats: SuggestionStats { fallback_prompt: self.fallback, ..SuggestionStats::default() },
        }
    }

    /// What the plugin makes of the raw text; the built-in reading where the plugin fails.
    pub(crate) async fn insertion(&self, raw: String) -> String {
        let plugin = self.model.plugins.complete.as_ref().filter(|_| !self.fallback);
        let answer = match plugin {
            Some(plugin) => {
                plugin.finish(Arc::clone(&self.context), raw.clone()).await.unwrap_or_else(|error| {
                    self.model.plugins.report(plugin, &error.to_string());
                    builtin::finish(&self.context, &raw)
                })
            }
            None => builtin::finish(&self.context, &raw),
        };
        answer.insertions.into_iter().next().unwrap_or_default()
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

fn context(model: &LoadedModel, place: &Place, half_typed: &str) -> Context {
    let (snapshot, at) = (&place.snapshot, place.caret.byte());
    let mut window = place.windows.place(&snapshot.text, at, model.hints.window_tokens);
    window.cut_end(half_typed);
    Context {
        task: "complete".into(),
        path: snapshot.path.display().to_string(),
        language: snapshot.language_id.to_string(),
        prefix: window.prefix,
        suffix: window.suffix,
        focus: String::new(),
        first_line: u32::try_from(snapshot.text.byte_to_line(at)).unwrap_or(u32::MAX),
        single_line: place.scope == Scope::SingleLine,
        snippets: place.snippets.to_vec(),
        model: plugin_model(model),
        facts: vec![("middle-bytes".to_owned(), window.middle_bytes.to_string())],
    }
}

/// Leaves room for the answer, and keeps to the window the model does well with.
fn tokens(model: &LoadedModel, prompt: &Prompt) -> Result<Vec<u32>, String> {
    let mut budget = Budget::of(prompt, model.generator.model().max_model_len);
    let most = model.hints.window_tokens + model.hints.context_tokens;
    budget.max_prompt_tokens = budget.max_prompt_tokens.min(most);
    let assembled = model.assembler.assemble(prompt, budget).map_err(|error| error.to_string())?;
    Ok(assembled.tokens)
}

/// When there is enough, by the syntax as far as it is known.
fn policy(place: &Place) -> StopPolicy {
    let policy = StopPolicy::new(&place.caret, place.scope);
    match place.snapshot.known_tree() {
        Some(tree) => policy.with_tree(&place.caret, &place.snapshot.text, tree, TREE_BUDGET),
        None => policy,
    }
}

/// Reads a generation until the policy, the model or a limit ends it.
pub(crate) struct Reader {
    policy: StopPolicy,
    /// Bytes still to come of what was half typed.
    to_skip: usize,
    started: Instant,
    first_line: Option<Duration>,
    /// Sum of the log-probabilities of the tokens of the first line, and their number.
    logprob: (f32, usize),
    pub(crate) stats: SuggestionStats,
}

impl Reader {
    /// The raw text that follows the caret, up to where it should stop. `progress` is told of what is kept
    /// so far after each token.
    ///
    /// # Errors
    /// When the engine failed or gave up the request.
    pub(crate) async fn read(
        &mut self,
        mut generation: Generation,
        mut progress: impl FnMut(&Reader),
    ) -> Result<String, NoSuggestion> {
        let mut reason = None;
        while let Some(event) = generation.next().await {
            match event {
                Event::Started(usage) => {
                    self.stats.prompt_tokens = usage.prompt_tokens;
                    self.stats.cached_tokens = usage.cached_tokens;
                }
                Event::Token(token) => {
                    self.stats.generated_tokens += 1;
                    let verdict = self.take(&token);
                    progress(self);
                    if verdict == Verdict::Stop {
                        break;
                    }
                }
                Event::Finished(finished, _) => reason = Some(finished),
            }
        }
        drop(generation);
        self.stats.first_line = self.first_line.unwrap_or_else(|| self.started.elapsed());
        self.stats.confidence = self.confidence();
        match reason {
            Some(FinishReason::Superseded | FinishReason::Cancelled) => Err(NoSuggestion::Superseded),
            Some(FinishReason::Failed(message)) => Err(NoSuggestion::Failed(message)),
            Some(FinishReason::MaxTokens | FinishReason::ContextFull) => Ok(self.whole_lines().to_owned()),
            _ => Ok(self.policy.accepted().to_owned()),
        }
    }

    /// What is read so far and will be kept.
    pub(crate) fn so_far(&self) -> &str {
        self.policy.accepted()
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
    pub(crate) fn confidence(&self) -> f32 {
        let (sum, count) = self.logprob;
        if count == 0 { 1.0 } else { (sum / count as f32).exp() }
    }
}
