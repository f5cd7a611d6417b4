//! Who computes what in the next step.
//!
//! The scheduler is a state machine without threads or clocks: [`submit`](Scheduler::submit),
//! [`schedule`](Scheduler::schedule) a step, run it, [`apply`](Scheduler::apply) its logits.
//!
//! - **Classes.** Only the highest [`Priority`] that has work takes part in a step. A lower class waits,
//!   in mid-prefill too, with its blocks kept as long as nobody above needs them.
//! - **Batching.** Within the class, in order of arrival: sequences that decode take one row each, then
//!   prefills share what is left of the step's token budget (chunked prefill). Warm-ups get a small
//!   budget, so that a keystroke that comes during one waits for a short step only.
//! - **Memory.** When blocks run out, the least deserving sequence (lowest class, then youngest) gives
//!   its blocks up and is computed again later; its full blocks stay cached as long as nobody needs
//!   them. The most deserving sequence can always take what it needs and always fits alone, so there is
//!   progress in every step.
//! - **Output** depends on none of this: a sequence draws the same tokens however it was interrupted.

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::Instant;

use crate::block_pool::BlockPool;
use crate::generator::GenerationSender;
use crate::prefix_index::{BlockHasher, fnv1a_128};
use crate::request::{FinishReason, Priority, Request, SamplingParams, SubmitError, Usage};
use crate::sampling::{Draw, SamplingError, argmax, top_logprobs};
use crate::sequence::{Sequence, SequenceId};
use crate::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};
use crate::token_stream::TokenStream;
use crate::tokenizer::Tokenizer;

/// Rows that a warm-up step computes at most. Two blocks: as such a step runs on half of the threads, it is what a
/// keystroke that comes during one waits for.
pub const WARM_UP_CHUNK: usize = 2 * BLOCK_SIZE;

/// Rows of one sequence whose logits a step computes at most for a prompt's likelihood. A row of
/// logits is as wide as the vocabulary: 32 rows of 152,064 are 19 MB.
const NLL_CHUNK: usize = 32;

/// What a [`Scheduler`] works with.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Blocks in the KV pool.
    pub num_blocks: usize,
    /// Longest prompt plus output in tokens; at most what the pool holds.
    pub max_model_len: usize,
    /// Width of a row of logits.
    pub vocab_size: usize,
    /// Rows in a step at most; more than `max_sequences`.
    pub max_batch_tokens: usize,
    /// Sequences in a step at most.
    pub max_sequences: usize,
    /// Requests that may wait for their first step; a request of a higher class does not count those of
    /// lower ones, so that warm-ups cannot keep a keystroke out.
    pub max_waiting: usize,
    /// The model's end-of-text tokens.
    pub eos_token_ids: Vec<u32>,
}

/// Counters and gauges since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EngineStats {
    /// Blocks in the pool.
    pub blocks_total: usize,
    /// Blocks that sequences hold.
    pub blocks_used: usize,
    /// Blocks in the prefix index, held or not.
    pub blocks_cached: usize,
    /// Sequences that were part of a step and are not finished.
    pub running: usize,
    /// Requests that wait for their first step.
    pub waiting: usize,
    /// Steps run.
    pub steps: u64,
    /// Rows computed, prefill and decode together.
    pub computed_tokens: u64,
    /// Tokens drawn.
    pub generated_tokens: u64,
    /// Positions taken from the prefix cache instead of being computed.
    pub hit_tokens: u64,
    /// Times a sequence gave up its blocks to another.
    pub preemptions: u64,
}

/// The sequences, their blocks and the step under way.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    tokenizer: Option<Arc<Tokenizer>>,
    pool: BlockPool,
    /// In order of arrival.
    sequences: Vec<Sequence>,
    step: Vec<StepEntry>,
    next_id: u64,
    stats: EngineStats,
}

/// A sequence's part of a step's token budget.
#[derive(Debug)]
struct Share {
    id: SequenceId,
    /// Positions computed before the step.
    start: usize,
    /// Positions to compute; 0 when there is nothing left to do.
    count: usize,
}

/// What [`Scheduler::apply`] must know of a sequence in the step under way.
#[derive(Debug)]
struct StepEntry {
    id: SequenceId,
    /// Positions computed.
    count: usize,
    /// Rows of logits asked for the prompt's likelihood.
    nll_rows: usize,
    /// Whether one more row of logits was asked to draw a token from.
    draws: bool,
    /// Set when the sequence ended while the step was running.
    ending: Option<FinishReason>,
}

impl Scheduler {
    /// A scheduler over an empty KV pool. `tokenizer` is for the text of the output and stop texts.
    ///
    /// # Panics
    /// When the configuration contradicts itself.
    pub fn new(config: SchedulerConfig, tokenizer: Option<Arc<Tokenizer>>) -> Self {
        Self::with_block_hasher(config, tokenizer, fnv1a_128)
    }

    /// [`new`](Self::new) with another hash for the prefix index; tests use one that always collides.
    ///
    /// # Panics
    /// When the configuration contradicts itself.
    pub fn with_block_hasher(
        config: SchedulerConfig,
        tokenizer: Option<Arc<Tokenizer>>,
        hasher: BlockHasher,
    ) -> Self {
        assert!(
            config.max_model_len <= config.num_blocks * BLOCK_SIZE,
            "the longest sequence does not fit the pool"
        );
        assert!(config.max_sequences > 0, "no sequence may run");
        assert!(config.max_batch_tokens > config.max_sequences, "decodes must leave room for a prefill");
        let pool = BlockPool::new(config.num_blocks, hasher);
        Self {
            config,
            tokenizer,
            pool,
            sequences: Vec::new(),
            step: Vec::new(),
            next_id: 0,
            stats: EngineStats::default(),
        }
    }

    /// Takes a request in. Its events go to `sender`. A waiting or running request with the same key
    /// is superseded, unless this one is refused.
    ///
    /// # Errors
    /// When the request cannot be served; see [`SubmitError`].
    pub fn submit(
        &mut self,
        request: Request,
        sender: GenerationSender,
        now: Instant,
    ) -> Result<SequenceId, SubmitError> {
        self.check(&request)?;
        let superseded = |sequence: &Sequence| {
            request.supersede_key.is_some() && sequence.supersede_key == request.supersede_key
        };
        let waits_before = |sequence: &&Sequence| {
            !sequence.started
                && sequence.priority >= request.priority
                && !superseded(sequence)
                && !sequence.stream.is_cancelled()
        };
        let waiting = self.sequences.iter().filter(waits_before).count();
        if waiting >= self.config.max_waiting {
            return Err(SubmitError::QueueFull { limit: self.config.max_waiting });
        }
        let older: Vec<SequenceId> = self.sequences.iter().filter(|s| superseded(s)).map(|s| s.id).collect();
        for id in older {
            self.end(id, FinishReason::Superseded, now);
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let stream = TokenStream::new(sender, self.tokenizer.clone(), request.params.stop.clone());
        self.sequences.push(Sequence::new(id, request, stream, now));
        Ok(id)
    }

    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        let limit = self.config.max_model_len - 1;
        if request.prompt.len() > limit {
            return Err(SubmitError::PromptTooLong { tokens: request.prompt.len(), limit });
        }
        let vocab_size = self.config.vocab_size;
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { id, vocab_size });
        }
        check_params(&request.params)?;
        let uses_text = !request.params.stop.is_empty() || !request.params.begins_with.is_empty();
        if uses_text && self.tokenizer.is_none() {
            return Err(SubmitError::NoTokenizer);
        }
        Ok(())
    }

    /// Ends a sequence at once, or after the step it is part of. Does nothing when it has ended.
    pub fn cancel(&mut self, id: SequenceId, now: Instant) {
        self.end(id, FinishReason::Cancelled, now);
    }

    /// Whether any sequence is left.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty()
    }

    /// Plans the next step into `plan`, which is emptied first. Returns whether there is one; `false`
    /// means that no sequence is left. The step must be run and [`apply`](Self::apply)ed (or
    /// [failed](Self::fail_all)) before the next is scheduled.
    ///
    /// # Panics
    /// When the last step was not applied.
    pub fn schedule(&mut self, plan: &mut StepPlan, now: Instant) -> bool {
        assert!(self.step.is_empty(), "the last step was not applied");
        plan.clear();
        self.end_cancelled(now);
        while let Some(class) = self.sequences.iter().map(|sequence| sequence.priority).max() {
            let shares = self.share_budget(class);
            for share in &shares {
                self.plan_share(share, plan, now);
            }
            // A warm-up whose blocks are all cached is done without a step.
            let complete = shares.iter().filter(|share| share.count == 0);
            for share in complete.clone() {
                self.end(share.id, FinishReason::MaxTokens, now);
            }
            if plan.num_rows() > 0 {
                plan.background = class == Priority::WarmUp;
                self.stats.steps += 1;
                self.stats.computed_tokens += plan.num_rows() as u64;
                return true;
            }
            assert!(complete.count() > 0, "there are sequences and none can go on");
        }
        false
    }

    fn end_cancelled(&mut self, now: Instant) {
        let cancelled: Vec<SequenceId> =
            self.sequences.iter().filter(|s| s.stream.is_cancelled()).map(|s| s.id).collect();
        for id in cancelled {
            self.end(id, FinishReason::Cancelled, now);
        }
    }

    /// Divides a step's token budget among the sequences of `class`, in order of arrival. The first one
    /// always gets a share.
    fn share_budget(&mut self, class: Priority) -> Vec<Share> {
        let members: Vec<usize> = (0..self.sequences.len())
            .filter(|&index| self.sequences[index].priority == class)
            .take(self.config.max_sequences)
            .collect();
        let decoding = members.iter().filter(|&&index| self.sequences[index].remaining() == 1).count();
        let mut budget = self.budget(class) - decoding;
        let mut shares = Vec::with_capacity(members.len());
        for &index in &members {
            let decodes = self.sequences[index].remaining() == 1;
            if (budget == 0 && !decodes) || !self.admit(index, index == members[0]) {
                continue;
            }
            let sequence = &self.sequences[index];
            let most = match (decodes, sequence.params.prompt_nll) {
                (true, _) => 1,
                (false, true) => budget.min(NLL_CHUNK),
                (false, false) => budget,
            };
            let count = sequence.remaining().min(most);
            if !decodes {
                budget -= count;
            }
            shares.push(Share { id: sequence.id, start: sequence.num_computed(), count });
        }
        shares
    }

    fn budget(&self, class: Priority) -> usize {
        let most = self.config.max_batch_tokens;
        match class {
            Priority::WarmUp => most.min(WARM_UP_CHUNK.max(self.config.max_sequences + 1)),
            Priority::Action | Priority::Typing => most,
        }
    }

    /// Takes up cached blocks and decides whether the sequence may take part in the step. One that
    /// holds blocks may; one that holds none must have room for all it has to compute, or sequences
    /// would take turns preempting each other. `first` in line need not.
    fn admit(&mut self, index: usize, first: bool) -> bool {
        let sequence = &mut self.sequences[index];
        let newcomer = sequence.block_table().is_empty();
        let gained = sequence.extend_from_cache(&mut self.pool);
        if newcomer && !first && !self.has_room(index) {
            self.sequences[index].release(&mut self.pool);
            return false;
        }
        self.stats.hit_tokens += gained as u64;
        let sequence = &mut self.sequences[index];
        if !sequence.preempted {
            sequence.usage.cached_tokens += gained;
        }
        true
    }

    /// Whether a newcomer's blocks fit beside what those already admitted still need. Blocks of lower
    /// classes count as room.
    fn has_room(&self, index: usize) -> bool {
        let newcomer = &self.sequences[index];
        let (mut promised, mut obtainable) = (0, self.pool.num_free());
        for other in &self.sequences {
            if other.id == newcomer.id || other.block_table().is_empty() {
                continue;
            }
            if other.priority >= newcomer.priority {
                promised += other.missing_blocks(other.target());
            } else {
                obtainable += other.block_table().len();
            }
        }
        newcomer.missing_blocks(newcomer.target()) + promised <= obtainable
    }

    /// Gives a sequence the blocks for its share and its rows in the plan. Blocks are taken from less
    /// deserving sequences if need be; where even that does not suffice, the share shrinks.
    fn plan_share(&mut self, share: &Share, plan: &mut StepPlan, now: Instant) {
        let index = self.position(share.id).expect("nothing ends while a step is planned");
        if self.sequences[index].num_computed() != share.start {
            return; // Preempted by one before it in this very step.
        }
        let wanted = self.sequences[index].missing_blocks(share.start + share.count);
        while self.pool.num_free() < wanted && self.preempt_one_below(index) {}

        let sequence = &mut self.sequences[index];
        let room = (sequence.block_table().len() + self.pool.num_free()) * BLOCK_SIZE;
        let end = room.min(share.start + share.count);
        if end <= share.start {
            return;
        }
        sequence.allocate(end, &mut self.pool);
        if !sequence.started {
            sequence.started = true;
            sequence.usage.queued = now - sequence.submitted;
            sequence.stream.start(sequence.usage.clone());
        }

        let first_row = plan.num_rows();
        let row_of = |position: usize| (first_row + position - share.start) as u32;
        plan.tokens.extend_from_slice(&sequence.tokens()[share.start..end]);
        plan.positions.extend(share.start as u32..end as u32);
        let nll_positions = sequence.nll_positions(share.start..end);
        let nll_rows = nll_positions.len();
        plan.logits_rows.extend(nll_positions.map(row_of));
        let draws = sequence.generates() && end == sequence.target();
        if draws {
            plan.logits_rows.push(row_of(end - 1));
        }
        plan.sequences.push(PlannedSequence {
            rows: first_row..plan.tokens.len(),
            block_table: sequence.block_table().to_vec(),
        });
        self.step.push(StepEntry { id: share.id, count: end - share.start, nll_rows, draws, ending: None });
    }

    /// Takes the blocks of the least deserving sequence that has any and is less deserving than the one
    /// at `index`. Returns whether there was one.
    fn preempt_one_below(&mut self, index: usize) -> bool {
        let rank = |sequence: &Sequence| (sequence.priority, Reverse(sequence.id));
        let own_rank = rank(&self.sequences[index]);
        let holders = self.sequences.iter_mut().filter(|sequence| !sequence.block_table().is_empty());
        let Some(victim) =
            holders.min_by_key(|sequence| rank(sequence)).filter(|victim| rank(victim) < own_rank)
        else {
            return false;
        };
        victim.release(&mut self.pool);
        victim.preempted = true;
        self.stats.preemptions += 1;
        true
    }

    /// Takes in the results of the step: `logits` holds a row for each of the plan's `logits_rows`.
    ///
    /// # Panics
    /// When the logits are not those of the step under way.
    pub fn apply(&mut self, logits: &[f32], now: Instant) {
        let step = std::mem::take(&mut self.step);
        let mut rows = logits.chunks_exact(self.config.vocab_size);
        for entry in step {
            let nll_rows: Vec<&[f32]> = rows.by_ref().take(entry.nll_rows).collect();
            let draw_row = if entry.draws { rows.next() } else { None };
            assert_eq!(nll_rows.len(), entry.nll_rows, "logits are missing");
            assert_eq!(draw_row.is_some(), entry.draws, "logits are missing");
            let ending = self.apply_entry(&entry, &nll_rows, draw_row, now);
            if let Some(reason) = entry.ending.or(ending) {
                self.end(entry.id, reason, now);
            }
        }
        assert!(rows.next().is_none(), "there are more logits than were asked for");
    }

    /// Returns why the sequence ends, if it does.
    fn apply_entry(
        &mut self,
        entry: &StepEntry,
        nll_rows: &[&[f32]],
        draw_row: Option<&[f32]>,
        now: Instant,
    ) -> Option<FinishReason> {
        let index = self.position(entry.id).expect("a sequence stays until its step is applied");
        let sequence = &mut self.sequences[index];
        // Before anything is published: what gave invalid logits must not be cached.
        let drawn = match check_and_draw(sequence, self.tokenizer.as_deref(), nll_rows, draw_row) {
            Ok(drawn) => drawn,
            Err(error) => return Some(FinishReason::Failed(error.to_string())),
        };
        for row in nll_rows {
            sequence.add_prompt_nll(row);
        }
        sequence.advance(entry.count, &mut self.pool);
        if entry.ending.is_some() {
            return None;
        }
        match (drawn, draw_row) {
            (Some(id), Some(row)) => self.append_token(index, id, row, now),
            _ => (sequence.remaining() == 0).then_some(FinishReason::MaxTokens),
        }
    }

    /// Takes in a drawn token. Returns why the sequence ends with it, if it does.
    fn append_token(&mut self, index: usize, id: u32, logits: &[f32], now: Instant) -> Option<FinishReason> {
        let sequence = &mut self.sequences[index];
        let params = &sequence.params;
        let is_eos = self.config.eos_token_ids.contains(&id) && !params.ignore_eos;
        if is_eos || params.stop_token_ids.contains(&id) {
            return Some(FinishReason::StopToken(id));
        }
        let logprobs = top_logprobs(logits, params.top_logprobs);
        let max_tokens = params.max_tokens;
        if sequence.usage.generated_tokens == 0 {
            sequence.usage.first_token = now - sequence.submitted;
        }
        sequence.append_token(id);
        if let Some(tokenizer) = &self.tokenizer {
            sequence.write(tokenizer.token_bytes(id));
        }
        self.stats.generated_tokens += 1;
        if let Some(stop) = sequence.stream.push(id, logprobs) {
            return Some(FinishReason::StopText(stop));
        }
        if sequence.usage.generated_tokens >= max_tokens {
            return Some(FinishReason::MaxTokens);
        }
        let full = sequence.tokens().len() >= self.config.max_model_len;
        full.then_some(FinishReason::ContextFull)
    }

    /// Gives up the step under way and ends every sequence that was ever part of a step. What is cached
    /// stays valid: a step only writes to blocks that are not published yet.
    pub fn fail_running(&mut self, message: &str, now: Instant) {
        self.fail(message, now, |sequence| sequence.started);
    }

    /// Gives up the step under way and ends every sequence.
    pub fn fail_all(&mut self, message: &str, now: Instant) {
        self.fail(message, now, |_| true);
    }

    fn fail(&mut self, message: &str, now: Instant, which: impl Fn(&Sequence) -> bool) {
        let step = std::mem::take(&mut self.step);
        for entry in step {
            if let Some(reason) = entry.ending {
                self.end(entry.id, reason, now);
            }
        }
        let ids: Vec<SequenceId> = self.sequences.iter().filter(|s| which(s)).map(|s| s.id).collect();
        for id in ids {
            self.end(id, FinishReason::Failed(message.to_owned()), now);
        }
    }

    /// A snapshot of the counters.
    pub fn stats(&self) -> EngineStats {
        let running = self.sequences.iter().filter(|sequence| sequence.started).count();
        EngineStats {
            blocks_total: self.pool.num_blocks(),
            blocks_used: self.pool.num_blocks() - self.pool.num_free(),
            blocks_cached: self.pool.num_cached(),
            running,
            waiting: self.sequences.len() - running,
            ..self.stats
        }
    }

    fn position(&self, id: SequenceId) -> Option<usize> {
        self.sequences.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }

    /// Ends a sequence: at once, or when the step it is part of is applied, so that what that step
    /// computes is cached for the request that takes its place.
    fn end(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        if let Some(entry) = self.step.iter_mut().find(|entry| entry.id == id) {
            entry.ending.get_or_insert(reason);
            return;
        }
        let Some(index) = self.position(id) else {
            return;
        };
        let mut sequence = self.sequences.remove(index);
        sequence.release(&mut self.pool);
        let usage = Usage {
            total: now - sequence.submitted,
            prompt_nll: sequence.mean_prompt_nll(),
            ..sequence.usage
        };
        sequence.stream.finish(reason, usage);
    }
}

/// Draws the next token, if a row of logits came for it, after checking all of the sequence's rows.
fn check_and_draw(
    sequence: &Sequence,
    tokenizer: Option<&Tokenizer>,
    nll_rows: &[&[f32]],
    draw_row: Option<&[f32]>,
) -> Result<Option<u32>, SamplingError> {
    for row in nll_rows {
        argmax(row)?;
    }
    let Some(row) = draw_row else { return Ok(None) };
    let mut draw = Draw::new(&sequence.params, sequence.seed, sequence.tokens().len() as u64);
    if let (beginning @ [_, ..], Some(tokenizer)) = (sequence.must_go_on_with(), tokenizer) {
        draw.allowed = Some(beginnings(beginning, tokenizer, row.len()));
    }
    draw.choose(row).map(Some)
}

/// The tokens that agree with `beginning`, as [`Draw::allowed`] wants them. A byte-level vocabulary has every
/// single byte, so one at least is among them.
fn beginnings(beginning: &[u8], tokenizer: &Tokenizer, vocab_size: usize) -> Arc<[u32]> {
    let agrees = |id: usize| {
        let bytes = tokenizer.token_bytes(id as u32);
        !bytes.is_empty() && (bytes.starts_with(beginning) || beginning.starts_with(bytes))
    };
    let word = |first: usize| {
        let ids = first..vocab_size.min(first + 32);
        ids.filter(|&id| agrees(id)).fold(0, |word, id| word | 1 << (id - first))
    };
    (0..vocab_size).step_by(32).map(word).collect()
}

fn check_params(params: &SamplingParams) -> Result<(), SubmitError> {
    let SamplingParams { temperature, top_p, .. } = *params;
    let message = if !(temperature.is_finite() && temperature >= 0.0) {
        format!("temperature must be 0 or more, not {temperature}")
    } else if !(top_p > 0.0 && top_p <= 1.0) {
        format!("top_p must be more than 0 and at most 1, not {top_p}")
    } else if params.stop.iter().any(String::is_empty) {
        "a stop text must not be empty".to_owned()
    } else {
        return Ok(());
    };
    Err(SubmitError::BadParameter(message))
}
