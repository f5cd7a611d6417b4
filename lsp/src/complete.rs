//! A suggestion: from what is known already, from a generation under way, or from a new one.

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use redstart_engine::generator::Generation;
use redstart_engine::request::Priority;
use redstart_plugins::GuestThread;
use redstart_syntax::caret::Caret;
use redstart_syntax::scope::{self, Scope};
use redstart_syntax::shape::{self, Shaped};
use redstart_syntax::trigger::{self, Situation, Trigger};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use crate::assistant::{Assistant, NoSuggestion, Source, Suggestion, SuggestionStats};
use crate::generate::{Place, Prepared, Reader};
use crate::model::LoadedModel;
use crate::snapshot::Snapshot;
use crate::typing::anchor::Anchor;
use crate::typing::draft::Draft;
use crate::typing::flight::Flight;
use crate::typing::totals::{Account, Ledger};
use crate::typing::{Rest, Typing};

/// How long the first line of a block waits for the lines after it: an editor shows a suggestion once.
const LINE_PATIENCE: Duration = Duration::from_millis(120);
/// The same for somebody who asked and waits.
const ASKED_PATIENCE: Duration = Duration::from_secs(2);
/// Generations that a request waits for one after the other, when what is typed leaves one behind.
const MAX_TURNS: usize = 3;
/// Temperatures of the candidates besides the likeliest.
const TEMPERATURES: [f32; 4] = [0.5, 0.8, 1.0, 1.2];

/// A request for a suggestion, with what is near its caret read once.
pub struct Asked<'a> {
    pub(crate) typing: &'a Arc<Typing>,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) caret: Caret,
    pub(crate) trigger: Trigger,
    pub(crate) started: Instant,
}

impl<'a> Asked<'a> {
    /// A request at byte offset `caret`.
    pub fn new(typing: &'a Arc<Typing>, snapshot: &'a Snapshot, caret: usize, trigger: Trigger) -> Self {
        let started = Instant::now();
        let caret = Caret::new(&snapshot.text, caret, snapshot.language);
        Self { typing, snapshot, caret, trigger, started }
    }

    /// The same, counted from when the message arrived.
    pub(crate) fn at(self, arrived: Instant) -> Self {
        Self { started: arrived, ..self }
    }

    fn situation(&self) -> Situation<'_> {
        Situation {
            trigger: self.trigger,
            cursors: self.typing.cursors(),
            path: Some(&self.snapshot.path),
            just_accepted_line: self.typing.just_accepted_line(),
        }
    }

    fn is_unasked(&self) -> bool {
        self.trigger == Trigger::Automatic
    }
}

/// When a generation was asked for, and how long the request waited since: because the engine is slower than the
/// typing, or for another generation that turned out not to agree with it.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    pub(crate) asked: Instant,
    pub(crate) held: Duration,
}

/// What became of waiting for a generation.
enum Waited {
    Answer(Suggestion),
    /// What is typed no longer agrees with it.
    LeftBehind,
    Nothing(NoSuggestion),
}

impl Assistant {
    /// A suggestion. When the future is dropped and no other request waits for the same
    /// generation, that is ended a moment later; when the text typed does not agree with it, at once.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn complete(&self, asked: &Asked<'_>) -> Result<Suggestion, NoSuggestion> {
        if let Some(known) = self.recall(asked) {
            return Ok(known);
        }
        asked.typing.asked();
        if asked.is_unasked() {
            self.ledger.add(|totals| totals.requests += 1);
        }
        let answer = self.answer(asked).await?;
        if asked.is_unasked() {
            self.ledger.answered(&answer.stats);
        }
        Ok(answer)
    }

    /// The suggestion, if it is the rest of an earlier one. Takes some microseconds.
    fn recall(&self, asked: &Asked<'_>) -> Option<Suggestion> {
        if !self.options.typed_through {
            return None;
        }
        let known = self.known(asked)?;
        asked.typing.asked();
        if asked.is_unasked() {
            self.ledger.add(|totals| totals.requests += 1);
            self.ledger.answered(&known.stats);
        }
        Some(known)
    }

    async fn answer(&self, asked: &Asked<'_>) -> Result<Suggestion, NoSuggestion> {
        trigger::check(&asked.caret, asked.situation())
            .map_err(|reason| NoSuggestion::NotHere(reason.to_string()))?;
        let model = self.ready().map_err(NoSuggestion::NotReady)?;
        let mut held = Duration::ZERO;
        for turn in 0..MAX_TURNS {
            let (flight, source) = match self.joinable(asked) {
                Some(flight) if flight.is_ahead => (flight, Source::Ahead),
                Some(flight) => (flight, Source::Joined),
                None => {
                    if turn == 0 {
                        held = self.hold_back(asked).await;
                    }
                    let Some(flight) = self.take_off(asked, &model, held) else {
                        return Err(NoSuggestion::Superseded);
                    };
                    (flight, Source::Engine)
                }
            };
            let waiting = Instant::now();
            match self.wait_for(&flight, source, asked, &model).await {
                Waited::Answer(suggestion) => return Ok(suggestion),
                Waited::LeftBehind => held += waiting.elapsed(),
                Waited::Nothing(reason) => return Err(reason),
            }
        }
        Err(NoSuggestion::Nothing)
    }

    /// Waits where the engine is slower than the typing. Returns how long that took.
    async fn hold_back(&self, asked: &Asked<'_>) -> Duration {
        if !self.options.pace || !asked.is_unasked() {
            return Duration::ZERO;
        }
        let wait = asked.typing.pace().wait(self.engine_speed());
        // Even no time at all would be a tick of the timer.
        if wait.is_zero() {
            return wait;
        }
        let waiting = Instant::now();
        tokio::time::sleep(wait).await;
        waiting.elapsed()
    }

    /// The rest of an earlier suggestion that agrees with what was typed since.
    fn known(&self, asked: &Asked<'_>) -> Option<Suggestion> {
        let rest = asked.typing.rest(asked.snapshot, &asked.caret, asked.is_unasked())?;
        let least = self.ready().ok()?.hints.min_confidence;
        if asked.is_unasked() && rest.draft.stats.confidence < least {
            return None;
        }
        let ahead = rest.draft.stats.source == Source::Ahead && !rest.draft.is_shown();
        Some(suggestion_of(rest, if ahead { Source::Ahead } else { Source::TypedThrough }, asked))
    }

    fn joinable(&self, asked: &Asked<'_>) -> Option<Arc<Flight>> {
        self.options.join.then(|| asked.typing.join(asked.snapshot, asked.caret.byte())).flatten()
    }

    /// Starts a generation for a request, unless the text has been edited since.
    fn take_off(&self, asked: &Asked<'_>, model: &Arc<LoadedModel>, held: Duration) -> Option<Arc<Flight>> {
        let scope = scope::wants_block(&asked.caret, asked.snapshot.known_tree());
        let anchor = Anchor::new(asked.snapshot, asked.caret.byte(), 0);
        let account = Account::new(&self.ledger);
        let flight = Flight::new(anchor, String::new(), asked.caret.clone(), scope, false, account);
        if !asked.typing.take_off(asked.snapshot, Arc::clone(&flight)) {
            return None;
        }
        let start = Start { asked: asked.started, held };
        self.fly(&flight, asked.typing, asked.snapshot, model, Priority::Typing, start);
        Some(flight)
    }

    /// A place to generate for.
    pub(crate) fn place(&self, typing: &Typing, snapshot: &Snapshot, caret: Caret, scope: Scope) -> Place {
        let windows = if self.options.kept_prefix { typing.windows() } else { Arc::default() };
        Place { snapshot: snapshot.clone(), caret, scope, snippets: typing.snippets(), windows }
    }

    /// Runs a generation on a task of its own, until it lands or is cancelled. Its prompt is built on the way.
    pub(crate) fn fly(
        &self,
        flight: &Arc<Flight>,
        typing: &Arc<Typing>,
        snapshot: &Snapshot,
        model: &Arc<LoadedModel>,
        priority: Priority,
        start: Start,
    ) {
        let pilot = Arc::new(Pilot {
            flight: Arc::clone(flight),
            place: self.place(typing, snapshot, flight.caret.clone(), flight.scope),
            model: Arc::clone(model),
            start,
            ledger: self.ledger.clone(),
        });
        let of_job = Arc::clone(&pilot);
        let taking_off = model.plugins.run(priority, move |thread| of_job.take_off(priority, thread));
        let (typing, speed) = (Arc::downgrade(typing), Arc::clone(&self.speed));
        self.readers.handle().spawn(async move {
            let flight = &pilot.flight;
            let landing = match AssertUnwindSafe(pilot.run(taking_off)).catch_unwind().await {
                Ok(landing) => landing,
                Err(panic) => return flight.crash(panic),
            };
            pilot.ledger.add(|totals| totals.cancelled += usize::from(flight.is_cancelled()));
            if let Ok(landing) = &landing
                && !flight.is_ahead
            {
                let mut speed = speed.lock().unwrap_or_else(PoisonError::into_inner);
                speed.measured(landing.stats.first_line, pilot.start.held);
            }
            let keep = |landing: Landing| {
                let make = |anchor, typed: &str| landing.draft(flight, anchor, typed);
                typing.upgrade()?.land(flight, make)
            };
            if let Err(reason) = &landing {
                tracing::debug!(%reason, ahead = flight.is_ahead, "a generation brought nothing");
            }
            flight.land(landing.and_then(|landing| keep(landing).ok_or(NoSuggestion::Superseded)));
        });
    }

    /// Waits until a generation has enough for an answer.
    async fn wait_for(
        &self,
        flight: &Arc<Flight>,
        source: Source,
        asked: &Asked<'_>,
        model: &Arc<LoadedModel>,
    ) -> Waited {
        let mut waiting = flight.wait(self.options.join);
        let patience = if asked.is_unasked() { LINE_PATIENCE } else { ASKED_PATIENCE };
        let mut first_line: Option<Instant> = None;
        loop {
            let (raw, confidence, outcome) = {
                let progress = waiting.progress.borrow_and_update();
                (progress.raw.clone(), progress.confidence, progress.outcome.clone())
            };
            if let Some(outcome) = outcome {
                let own = source == Source::Engine;
                if let Some(panic) = own.then(|| flight.take_panic()).flatten() {
                    resume_unwind(panic);
                }
                return match outcome {
                    Ok(draft) => self.landed(&draft, source, asked, model),
                    // Ended because of what was typed, which is what this request may be for.
                    Err(NoSuggestion::Superseded) if flight.is_cancelled() => Waited::LeftBehind,
                    // What went wrong is for the one that it was started for to say.
                    Err(NoSuggestion::Failed(_)) if !own => Waited::LeftBehind,
                    Err(reason) => Waited::Nothing(reason),
                };
            }
            if !flight.may_agree(asked.snapshot, asked.caret.byte()) {
                return Waited::LeftBehind;
            }
            if first_line.is_none() && has_whole_line_after(&raw, flight, asked) {
                first_line = Some(Instant::now());
            }
            let deadline = first_line.map(|line| line + patience);
            tokio::select! {
                _ = waiting.progress.changed() => {}
                () = sleep_until(deadline.unwrap_or_else(far_off).into()), if deadline.is_some() => {
                    let is_sure = !asked.is_unasked() || confidence >= model.hints.min_confidence;
                    let stats = SuggestionStats { source, confidence, ..SuggestionStats::default() };
                    if is_sure && let Some(answer) = self.lines_so_far(flight, &raw, stats, asked) {
                        return Waited::Answer(answer);
                    }
                    first_line = None;
                }
            }
        }
    }

    fn landed(&self, draft: &Arc<Draft>, source: Source, asked: &Asked<'_>, model: &LoadedModel) -> Waited {
        let Some(shaped) = draft.rest(asked.snapshot, &asked.caret) else { return Waited::LeftBehind };
        if asked.is_unasked() {
            if draft.stats.confidence < model.hints.min_confidence {
                // Further letters may make it sure.
                let is_new = source == Source::Engine;
                return if is_new { Waited::Nothing(NoSuggestion::Unsure) } else { Waited::LeftBehind };
            }
            if !asked.typing.allows(asked.snapshot, asked.caret.byte(), &shaped.text) {
                return Waited::Nothing(NoSuggestion::Rejected);
            }
        }
        Waited::Answer(suggestion_of(Rest { draft: Arc::clone(draft), shaped }, source, asked))
    }

    /// The whole lines that a generation has so far, as a draft of their own. It goes on meanwhile.
    fn lines_so_far(
        &self,
        flight: &Flight,
        raw: &str,
        stats: SuggestionStats,
        asked: &Asked<'_>,
    ) -> Option<Suggestion> {
        let lines = &raw[..raw.trim_end_matches(|c| c != '\n').len()];
        let shaped = shape::shape(lines, &flight.caret, flight.scope)?;
        let source = stats.source;
        let landing = Landing { shaped, stats };
        let draft = asked.typing.land(flight, |anchor, typed| landing.draft(flight, anchor, typed))?;
        let shaped = draft.rest(asked.snapshot, &asked.caret)?;
        let is_welcome =
            !asked.is_unasked() || asked.typing.allows(asked.snapshot, asked.caret.byte(), &shaped.text);
        is_welcome.then(|| suggestion_of(Rest { draft, shaped }, source, asked))
    }

    /// Up to `count` different suggestions for somebody who asked for them, the likeliest first.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn candidates(&self, asked: &Asked<'_>, count: usize) -> Result<Vec<Suggestion>, NoSuggestion> {
        let (first, others) = futures_util::future::join(self.complete(asked), self.sampled(asked)).await;
        let known = asked.typing.rests(asked.snapshot, &asked.caret).into_iter();
        let known = known.map(|rest| suggestion_of(rest, Source::TypedThrough, asked));
        let mut candidates: Vec<Suggestion> = Vec::new();
        let first = match first {
            Ok(first) => Some(first),
            Err(reason) if others.is_empty() => return Err(reason),
            Err(_) => None,
        };
        for candidate in first.into_iter().chain(others).chain(known) {
            let is_new = |text: &str| candidates.iter().all(|other| other.text.trim() != text.trim());
            if candidates.len() < count && is_new(&candidate.text) {
                candidates.push(candidate);
            }
        }
        Ok(candidates)
    }

    /// Less likely suggestions, drawn at rising temperatures.
    async fn sampled(&self, asked: &Asked<'_>) -> Vec<Suggestion> {
        let Ok(model) = self.ready() else { return Vec::new() };
        let scope = scope::wants_block(&asked.caret, asked.snapshot.known_tree());
        let place = Arc::new(self.place(asked.typing, asked.snapshot, asked.caret.clone(), scope));
        let of_job = (Arc::clone(&model), Arc::clone(&place));
        let prepared =
            model.plugins.run(Priority::Action, move |thread| Prepared::new(of_job.0, &of_job.1, thread));
        let Ok(prepared) = prepared.await.map(Arc::new) else { return Vec::new() };
        // Dropped with the request, and the generations with it.
        let mut drawing = JoinSet::new();
        for (seed, temperature) in (1..).zip(TEMPERATURES) {
            let drawn = Drawn {
                prepared: Arc::clone(&prepared),
                place: Arc::clone(&place),
                ledger: self.ledger.clone(),
            };
            drawing.spawn_on(drawn.draw(seed, temperature, asked.started), &self.readers.handle());
        }
        let mut drawn: Vec<(u64, Draft, Shaped)> = Vec::new();
        while let Some(next) = drawing.join_next().await {
            match next {
                Ok(found) => drawn.extend(found),
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                Err(_) => {}
            }
        }
        drawn.sort_by_key(|(seed, ..)| *seed);
        let keep = |(_, draft, shaped)| {
            let draft = Arc::new(draft);
            asked.typing.keep(asked.snapshot, &draft);
            suggestion_of(Rest { draft, shaped }, Source::Engine, asked)
        };
        drawn.into_iter().map(keep).collect()
    }
}

/// A less likely suggestion for a prompt.
struct Drawn {
    prepared: Arc<Prepared>,
    place: Arc<Place>,
    ledger: Ledger,
}

impl Drawn {
    async fn draw(self, seed: u64, temperature: f32, started: Instant) -> Option<(u64, Draft, Shaped)> {
        let Self { prepared, place, ledger } = self;
        let generation = prepared
            .submit(&place.snapshot, Priority::Typing, |params| {
                params.temperature = temperature;
                params.top_p = 0.95;
                params.seed = Some(seed);
            })
            .ok()?;
        let mut reader = prepared.reader(&place, started);
        let account = Account::new(&ledger);
        let raw = reader.read(generation, |_| account.token()).await.ok()?;
        let shaped = shape::shape(&prepared.insertion(raw).await, &place.caret, place.scope)?;
        let anchor = Anchor::new(&place.snapshot, place.caret.byte(), shaped.replace);
        let draft = Draft::new(anchor, "", "", &shaped, reader.stats.clone(), account);
        Some((seed, draft, shaped))
    }
}

/// Runs one flight.
struct Pilot {
    flight: Arc<Flight>,
    place: Place,
    model: Arc<LoadedModel>,
    start: Start,
    ledger: Ledger,
}

/// What a flight brought.
struct Landing {
    shaped: Shaped,
    stats: SuggestionStats,
}

impl Pilot {
    /// Builds the prompt and asks the engine.
    fn take_off(
        &self,
        priority: Priority,
        thread: Option<&GuestThread<'_>>,
    ) -> Result<(Prepared, Generation), NoSuggestion> {
        let still_wanted = || if self.flight.is_cancelled() { Err(NoSuggestion::Superseded) } else { Ok(()) };
        still_wanted()?;
        let prepared =
            Prepared::new(Arc::clone(&self.model), &self.place, thread).map_err(NoSuggestion::Failed)?;
        still_wanted()?;
        let generation = prepared.submit(&self.place.snapshot, priority, |_| {})?;
        self.flight.submitted(generation.control());
        Ok((prepared, generation))
    }

    /// Reads what the engine generates.
    async fn run(
        &self,
        taking_off: impl Future<Output = Result<(Prepared, Generation), NoSuggestion>>,
    ) -> Result<Landing, NoSuggestion> {
        let (prepared, generation) = taking_off.await?;
        let submit = (generation.submitted() - self.start.asked).saturating_sub(self.start.held);
        let mut reader = prepared.reader(&self.place, self.start.asked);
        let read = reader
            .read(generation, |reader: &Reader| {
                self.flight.account.token();
                self.flight.generated(reader.so_far(), reader.confidence());
            })
            .await;
        let is_ahead = self.flight.is_ahead;
        if !is_ahead {
            self.ledger.add(|totals| {
                totals.prompt_tokens += reader.stats.prompt_tokens;
                totals.cached_tokens += reader.stats.cached_tokens;
            });
        }
        let text = prepared.insertion(read?).await;
        let shaped = shape::shape(&text, &self.place.caret, self.place.scope).ok_or(NoSuggestion::Nothing)?;
        if is_ahead && shaped.replace > 0 {
            return Err(NoSuggestion::Nothing);
        }
        let source = if is_ahead { Source::Ahead } else { Source::Engine };
        Ok(Landing { shaped, stats: SuggestionStats { submit, source, ..reader.stats } })
    }
}

impl Landing {
    fn draft(&self, flight: &Flight, anchor: Anchor, typed: &str) -> Draft {
        // What a suggestion ahead replaces is what the one before it does.
        let anchor = if flight.is_ahead { anchor } else { anchor.replacing(self.shaped.replace) };
        let account = Arc::clone(&flight.account);
        Draft::new(anchor, flight.lead(), typed, &self.shaped, self.stats.clone(), account)
    }
}

/// Whether a block that is being generated has a whole line beyond what is typed.
fn has_whole_line_after(raw: &str, flight: &Flight, asked: &Asked<'_>) -> bool {
    if flight.scope != Scope::Block {
        return false;
    }
    let (_, typed) = flight.place();
    let typed = typed.len().max(asked.caret.byte().saturating_sub(flight.caret.byte()));
    let rest = raw.get(typed.saturating_sub(flight.lead().len())..).unwrap_or_default();
    rest.trim_start().contains('\n')
}

fn far_off() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

/// The answer that the rest of a draft is.
fn suggestion_of(rest: Rest, source: Source, asked: &Asked<'_>) -> Suggestion {
    let at = asked.caret.byte();
    let total = asked.started.elapsed();
    let of_draft = &rest.draft.stats;
    let stats = match source {
        Source::Engine => SuggestionStats { total, source, ..of_draft.clone() },
        Source::Joined => SuggestionStats { first_line: total, total, source, ..of_draft.clone() },
        // Nobody waited for a prompt.
        Source::TypedThrough | Source::Ahead => SuggestionStats {
            first_line: total,
            total,
            source,
            confidence: of_draft.confidence,
            ..SuggestionStats::default()
        },
    };
    Suggestion { id: rest.draft.id, range: at..at + rest.shaped.replace, text: rest.shaped.text, stats }
}
