//! Who computes what in the next step.
//!
//! The scheduler is a state machine without threads or clocks: [`submit`](Scheduler::submit),
//! [`schedule`](Scheduler::schedule) a step, run it, [`apply`](Scheduler::apply) what it gave.
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
//! - **Running ahead.** Where the device draws the tokens, the next step can be
//!   [planned](Scheduler::schedule_ahead) and started while their values are unknown. A sequence that turns
//!   out to have ended is told so at once; its row of the step ahead is thrown away and its blocks, which
//!   that row writes to, are given back after it.
//! - **Output** depends on none of this: a sequence draws the same tokens however it was interrupted.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::admission::{Admission, Waiting};
use crate::block_pool::BlockPool;
use crate::generator::GenerationSender;
use crate::prefix_index::{BlockHasher, fnv1a_128};
use crate::request::{FinishReason, Priority, Request, SamplingParams, SubmitError, Usage};
use crate::sampling::{Draw, SamplingError, argmax, top_logprobs};
use crate::sequence::{Sequence, SequenceId};
use crate::step_output::{Row, StepOutput};
use crate::step_plan::{BLOCK_SIZE, BlockId, Carried, PlannedSequence, StepPlan, Wanted};
use crate::token_stream::TokenStream;
use crate::tokenizer::Tokenizer;
use crate::turns;

/// Rows that a warm-up step computes at most. Two blocks: as such a step runs on half of the threads, it is
/// what a keystroke that comes during one waits for.
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

/// The sequences, their blocks and the steps under way.
#[derive(Debug)]
pub struct Scheduler {
    config: SchedulerConfig,
    tokenizer: Option<Arc<Tokenizer>>,
    pool: BlockPool,
    /// In order of arrival.
    sequences: Vec<Sequence>,
    /// The steps under way, oldest first: one, and at most one that was planned ahead.
    steps: VecDeque<Vec<StepEntry>>,
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

/// What [`Scheduler::apply`] must know of a sequence in a step under way.
#[derive(Debug)]
struct StepEntry {
    id: SequenceId,
    /// Positions computed.
    count: usize,
    /// Rows of logits asked for the prompt's likelihood.
    nll_rows: usize,
    /// How a token is drawn from one more row, if it is.
    draw: Option<Draw>,
    standing: Standing,
}

/// Whether a sequence in a step under way goes on.
#[derive(Debug)]
enum Standing {
    Running,
    /// It was ended while the step was under way. What the step computes is still taken in.
    Ending(FinishReason),
    /// It ended with the step before. This step's row is thrown away; these are its blocks.
    Ended(Vec<BlockId>),
}

/// A sequence that takes part in a step planned ahead.
struct Continuation {
    /// Index among the sequences.
    index: usize,
    /// Which of the logits rows of the step under way its token is drawn from.
    drawn_at: u32,
}

/// A token and the log-probabilities to report with it.
struct NextToken {
    id: u32,
    top_logprobs: Vec<(u32, f32)>,
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
            steps: VecDeque::new(),
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
        self.admission().check(&request, self.waiting())?;
        Ok(self.take_over(request, sender, now))
    }

    /// What it demands of requests.
    pub(crate) fn admission(&self) -> Admission {
        Admission::new(&self.config, self.tokenizer.is_some())
    }

    /// The requests that wait for their first step.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = Waiting> {
        let waiting = self.sequences.iter().filter(|sequence| !sequence.started);
        waiting.map(|sequence| Waiting {
            priority: sequence.priority,
            supersede_key: sequence.supersede_key,
            control: sequence.stream.control(),
        })
    }

    /// As [`submit`](Self::submit), for a request that was [admitted](Self::admission).
    pub(crate) fn take_over(
        &mut self,
        request: Request,
        sender: GenerationSender,
        now: Instant,
    ) -> SequenceId {
        let superseded = |sequence: &&Sequence| {
            request.supersede_key.is_some() && sequence.supersede_key == request.supersede_key
        };
        let older: Vec<SequenceId> = self.sequences.iter().filter(superseded).map(|s| s.id).collect();
        for id in older {
            self.end(id, FinishReason::Superseded, now);
        }
        let id = SequenceId(self.next_id);
        self.next_id += 1;
        let stream = TokenStream::new(sender, self.tokenizer.clone(), request.params.stop.clone());
        self.sequences.push(Sequence::new(id, request, stream, now));
        id
    }

    /// Ends a sequence at once, or after the step it is part of. Does nothing when it has ended.
    pub fn cancel(&mut self, id: SequenceId, now: Instant) {
        self.end(id, FinishReason::Cancelled, now);
    }

    /// Whether any sequence is left, or a step under way.
    pub fn has_work(&self) -> bool {
        !self.sequences.is_empty() || !self.steps.is_empty()
    }

    /// Plans the next step into `plan`, which is emptied first. Returns whether there is one; `false`
    /// means that no sequence is left. The step must be run and [`apply`](Self::apply)ed (or
    /// [failed](Self::fail_all)) before the next is scheduled.
    ///
    /// # Panics
    /// When a step is under way.
    pub fn schedule(&mut self, plan: &mut StepPlan, now: Instant) -> bool {
        assert!(self.steps.is_empty(), "the last step was not applied");
        plan.clear();
        self.hear_receivers(now);
        let mut step = Vec::new();
        while let Some(class) = self.sequences.iter().map(|sequence| sequence.priority).max() {
            let shares = self.share_budget(class);
            for share in &shares {
                step.extend(self.plan_share(share, plan, now));
            }
            // A warm-up whose blocks are all cached is done without a step.
            let complete = shares.iter().filter(|share| share.count == 0);
            for share in complete.clone() {
                self.end(share.id, FinishReason::MaxTokens, now);
            }
            if plan.num_rows() > 0 {
                plan.background = class == Priority::WarmUp;
                self.begin(step, plan);
                return true;
            }
            assert!(complete.count() > 0, "there are sequences and none can go on");
        }
        false
    }

    /// Plans the step after the one under way, which draws its tokens on the device, before they are
    /// known to the host: the rows are [carried](StepPlan::carried). Returns whether it did; it does not
    ///
    /// - while other than exactly one step is under way,
    /// - when a sequence in that step does not draw, or its next draw depends on the token's text, or its
    ///   token is drawn by the host,
    /// - when any other sequence of the same or a higher class waits, or blocks would have to be taken,
    /// - when every sequence is sure to end with the step under way.
    ///
    /// What it plans is what [`schedule`](Self::schedule) would plan after that step, but for sequences that
    /// end with it. Running ahead makes whoever comes next wait for two steps instead of one: it is for short
    /// steps.
    pub fn schedule_ahead(&mut self, plan: &mut StepPlan, now: Instant) -> bool {
        plan.clear();
        self.hear_receivers(now);
        let Some(continuations) = self.continuations() else { return false };
        let missing = |continuation: &Continuation| {
            let sequence = &self.sequences[continuation.index];
            sequence.missing_blocks(sequence.tokens().len() + 1)
        };
        if continuations.iter().map(missing).sum::<usize>() > self.pool.num_free() {
            return false;
        }
        let step = continuations.iter().map(|continuation| self.plan_ahead(continuation, plan)).collect();
        self.begin(step, plan);
        true
    }

    /// The sequences of the step under way that go on, if the next one can be planned ahead.
    fn continuations(&self) -> Option<Vec<Continuation>> {
        if self.steps.len() != 1 {
            return None;
        }
        let step = &self.steps[0];
        let mut continuations = Vec::with_capacity(step.len());
        let mut logits_rows = 0;
        for entry in step {
            logits_rows += entry.nll_rows as u32 + u32::from(entry.draw.is_some());
            if !matches!(entry.standing, Standing::Running) {
                continue;
            }
            let draw = entry.draw.as_ref()?;
            let index = self.position(entry.id).expect("a sequence stays until its step is applied");
            let sequence = &self.sequences[index];
            if draw.allowed.is_some() || !device_draws(&sequence.params) {
                return None;
            }
            let is_last = sequence.usage.generated_tokens + 1 >= sequence.params.max_tokens
                || sequence.tokens().len() + 1 >= self.config.max_model_len;
            if !is_last {
                continuations.push(Continuation { index, drawn_at: logits_rows - 1 });
            }
        }
        let class = self.sequences[continuations.first()?.index].priority;
        let waits = |sequence: &Sequence| {
            sequence.priority >= class && step.iter().all(|entry| entry.id != sequence.id)
        };
        (!self.sequences.iter().any(waits)).then_some(continuations)
    }

    /// Gives a sequence the block and the row for the token that the step under way draws for it.
    fn plan_ahead(&mut self, continuation: &Continuation, plan: &mut StepPlan) -> StepEntry {
        let sequence = &mut self.sequences[continuation.index];
        let position = sequence.tokens().len();
        sequence.allocate(position + 1, &mut self.pool);
        let row = plan.num_rows();
        plan.tokens.push(0);
        plan.positions.push(position as u32);
        plan.carried.push(Carried { row: row as u32, drawn_at: continuation.drawn_at });
        plan.sequences
            .push(PlannedSequence { rows: row..row + 1, block_table: sequence.block_table().to_vec() });
        let draw = Draw::new(&sequence.params, sequence.seed, position as u64 + 1);
        plan.logits_rows.push(row as u32);
        plan.wanted.push(Wanted::Token(draw.clone()));
        plan.background = sequence.priority == Priority::WarmUp;
        let id = sequence.id;
        StepEntry { id, count: 1, nll_rows: 0, draw: Some(draw), standing: Standing::Running }
    }

    /// Notes that a step is under way.
    fn begin(&mut self, step: Vec<StepEntry>, plan: &StepPlan) {
        self.steps.push_back(step);
        self.stats.steps += 1;
        self.stats.computed_tokens += plan.num_rows() as u64;
    }

    /// Takes in what receivers said since the last step: some left, some began to wait.
    fn hear_receivers(&mut self, now: Instant) {
        for sequence in self.sequences.iter_mut().filter(|sequence| sequence.stream.is_awaited()) {
            sequence.priority = Priority::Typing;
        }
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
    fn plan_share(&mut self, share: &Share, plan: &mut StepPlan, now: Instant) -> Option<StepEntry> {
        let index = self.position(share.id).expect("nothing ends while a step is planned");
        if self.sequences[index].num_computed() != share.start {
            return None; // Preempted by one before it in this very step.
        }
        let wanted = self.sequences[index].missing_blocks(share.start + share.count);
        while self.pool.num_free() < wanted && self.preempt_one_below(index) {}

        let sequence = &mut self.sequences[index];
        let room = (sequence.block_table().len() + self.pool.num_free()) * BLOCK_SIZE;
        let end = room.min(share.start + share.count);
        if end <= share.start {
            return None;
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
        plan.wanted.extend(std::iter::repeat_n(Wanted::Logits, nll_rows));
        let draw = (sequence.generates() && end == sequence.target())
            .then(|| next_draw(sequence, self.tokenizer.as_deref(), self.config.vocab_size));
        if let Some(draw) = &draw {
            plan.logits_rows.push(row_of(end - 1));
            let by_device = device_draws(&sequence.params);
            plan.wanted.push(if by_device { Wanted::Token(draw.clone()) } else { Wanted::Logits });
        }
        plan.sequences.push(PlannedSequence {
            rows: first_row..plan.tokens.len(),
            block_table: sequence.block_table().to_vec(),
        });
        let count = end - share.start;
        Some(StepEntry { id: share.id, count, nll_rows, draw, standing: Standing::Running })
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

    /// Takes in what the oldest step under way gave: for each of its plan's `logits_rows` the logits or,
    /// where the plan wanted that, a token.
    ///
    /// # Panics
    /// When no step is under way or the output is not its.
    pub fn apply(&mut self, output: &StepOutput, now: Instant) {
        let step = self.steps.pop_front().expect("a step is under way");
        let mut rows = output.iter(self.config.vocab_size);
        for entry in step {
            let nll_rows: Vec<&[f32]> = rows.by_ref().take(entry.nll_rows).map(Row::logits).collect();
            let row = entry.draw.as_ref().map(|_| rows.next().expect("a row is missing"));
            assert_eq!(nll_rows.len(), entry.nll_rows, "logits are missing");
            let ending = match entry.standing {
                Standing::Ended(blocks) => {
                    self.pool.release(blocks);
                    continue;
                }
                Standing::Running => None,
                Standing::Ending(reason) => Some(reason),
            };
            let next = self.take_in(entry.id, entry.count, &nll_rows, entry.draw.zip(row));
            let reason = match (ending, next) {
                (Some(reason), _) => Some(reason),
                (None, Err(error)) => Some(FinishReason::Failed(error.to_string())),
                (None, Ok(Some(token))) => self.append_token(entry.id, token, now),
                (None, Ok(None)) => self.is_computed(entry.id).then_some(FinishReason::MaxTokens),
            };
            if let Some(reason) = reason {
                self.finish(entry.id, reason, now);
            }
        }
        assert!(rows.next().is_none(), "there is more than was asked for");
    }

    /// Notes what a step computed for a sequence, after checking it, since what gave invalid logits must not
    /// be cached. Returns the token drawn, if one was asked for.
    fn take_in(
        &mut self,
        id: SequenceId,
        count: usize,
        nll_rows: &[&[f32]],
        draw: Option<(Draw, Row<'_>)>,
    ) -> Result<Option<NextToken>, SamplingError> {
        let index = self.position(id).expect("a sequence stays until its step is applied");
        let sequence = &mut self.sequences[index];
        for row in nll_rows {
            argmax(row)?;
        }
        let next =
            draw.map(|(draw, row)| next_token(&draw, row, sequence.params.top_logprobs)).transpose()?;
        for row in nll_rows {
            sequence.add_prompt_nll(row);
        }
        sequence.advance(count, &mut self.pool);
        Ok(next)
    }

    fn is_computed(&self, id: SequenceId) -> bool {
        self.position(id).is_some_and(|index| self.sequences[index].remaining() == 0)
    }

    /// Adds a drawn token to its sequence. Returns why the sequence ends with it, if it does.
    fn append_token(&mut self, id: SequenceId, token: NextToken, now: Instant) -> Option<FinishReason> {
        let index = self.position(id).expect("a sequence stays until its step is applied");
        let sequence = &mut self.sequences[index];
        let NextToken { id, top_logprobs } = token;
        let params = &sequence.params;
        let is_eos = self.config.eos_token_ids.contains(&id) && !params.ignore_eos;
        if is_eos || params.stop_token_ids.contains(&id) {
            return Some(FinishReason::StopToken(id));
        }
        let max_tokens = params.max_tokens;
        if sequence.usage.generated_tokens == 0 {
            sequence.usage.first_token = now - sequence.submitted;
        }
        sequence.append_token(id);
        if let Some(tokenizer) = &self.tokenizer {
            sequence.write(tokenizer.token_bytes(id));
        }
        self.stats.generated_tokens += 1;
        if let Some(stop) = sequence.stream.push(id, top_logprobs) {
            return Some(FinishReason::StopText(stop));
        }
        if sequence.usage.generated_tokens >= max_tokens {
            return Some(FinishReason::MaxTokens);
        }
        let full = sequence.tokens().len() >= self.config.max_model_len;
        full.then_some(FinishReason::ContextFull)
    }

    /// Gives up the steps under way and ends every sequence that was ever part of a step. What is cached
    /// stays valid: a step only writes to blocks that are not published yet.
    pub fn fail_running(&mut self, message: &str, now: Instant) {
        self.fail(message, now, |sequence| sequence.started);
    }

    /// Gives up the steps under way and ends every sequence.
    pub fn fail_all(&mut self, message: &str, now: Instant) {
        self.fail(message, now, |_| true);
    }

    fn fail(&mut self, message: &str, now: Instant, which: impl Fn(&Sequence) -> bool) {
        for entry in std::mem::take(&mut self.steps).into_iter().flatten() {
            match entry.standing {
                Standing::Running => {}
                Standing::Ending(reason) => self.finish(entry.id, reason, now),
                Standing::Ended(blocks) => self.pool.release(blocks),
            }
        }
        let ids: Vec<SequenceId> = self.sequences.iter().filter(|s| which(s)).map(|s| s.id).collect();
        for id in ids {
            self.finish(id, FinishReason::Failed(message.to_owned()), now);
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

    /// Ends a sequence: at once, or when the (oldest) step it is part of is applied, so that what that step
    /// computes is cached for the request that takes its place.
    fn end(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        match self.steps.iter_mut().flatten().find(|entry| entry.id == id) {
            Some(entry) if matches!(entry.standing, Standing::Running) => {
                entry.standing = Standing::Ending(reason);
            }
            Some(_) => {}
            None => self.finish(id, reason, now),
        }
    }

    /// Ends a sequence now, if it has not ended. A step that was planned ahead may still write to its blocks:
    /// then they are given back with that step.
    fn finish(&mut self, id: SequenceId, reason: FinishReason, now: Instant) {
        let Some(index) = self.position(id) else {
            return;
        };
        let mut sequence = self.sequences.remove(index);
        match self.steps.iter_mut().flatten().find(|entry| entry.id == id) {
            Some(entry) => entry.standing = Standing::Ended(sequence.take_blocks()),
            None => sequence.release(&mut self.pool),
        }
        let usage = Usage {
            total: now - sequence.submitted,
            prompt_nll: sequence.mean_prompt_nll(),
            ..sequence.usage
        };
        sequence.stream.finish(reason, usage);
    }
}

/// Whether a device can draw the tokens of such a sequence: with a token it reports no more than the
/// likeliest one's log-probability.
fn device_draws(params: &SamplingParams) -> bool {
    params.top_logprobs <= 1
}

/// How the token after all that a sequence has is drawn.
fn next_draw(sequence: &Sequence, tokenizer: Option<&Tokenizer>, vocab_size: usize) -> Draw {
    let mut draw = Draw::new(&sequence.params, sequence.seed, sequence.tokens().len() as u64);
    if let (beginning @ [_, ..], Some(tokenizer)) = (sequence.must_go_on_with(), tokenizer) {
        draw.allowed = Some(beginnings(beginning, tokenizer, vocab_size));
    }
    draw
}

/// The token that the device drew, or one drawn from the logits it gave.
fn next_token(draw: &Draw, row: Row<'_>, num_logprobs: usize) -> Result<NextToken, SamplingError> {
    match row {
        Row::Logits(logits) => {
            let id = draw.choose(logits)?;
            Ok(NextToken { id, top_logprobs: top_logprobs(logits, num_logprobs) })
        }
        Row::Drawn(drawn) => {
            let drawn = drawn.clone()?;
            assert!(num_logprobs <= 1, "a drawn token reports one log-probability at most");
            let best = (drawn.best, drawn.best_logprob);
            Ok(NextToken { id: drawn.token, top_logprobs: [best][..num_logprobs].to_vec() })
        }
    }
}

/// The tokens that agree with `beginning`, as [`Draw::allowed`] wants them. A byte-level vocabulary has every
/// single byte, so one at least is among them.
fn beginnings(beginning: &[u8], tokenizer: &Tokenizer, vocab_size: usize) -> Arc<[u32]> {
    let agrees = |id: usize| {
        let bytes = tokenizer.token_bytes(id as u32);
        !bytes.is_empty() && (bytes.starts_with(beginning) || beginning.starts_with(bytes))
    };
    let word = |first: usize| {
        turns::end_if_over();
        let ids = first..vocab_size.min(first + 32);
        ids.filter(|&id| agrees(id)).fold(0, |word, id| word | 1 << (id - first))
    };
    (0..vocab_size).step_by(32).map(word).collect()
}
