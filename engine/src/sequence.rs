//! A request on its way through the engine.

use std::ops::Range;
use std::time::Instant;

use crate::block_pool::BlockPool;
use crate::request::{Priority, Request, SamplingParams, Usage};
use crate::sampling::{log_probability, random_seed};
use crate::step_plan::{BLOCK_SIZE, BlockId};
use crate::token_stream::TokenStream;

/// Names a sequence; grows with every submission, so it also tells who came first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SequenceId(pub(crate) u64);

/// Prompt and output tokens of one request, and the blocks that hold their keys and values.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) priority: Priority,
    pub(crate) supersede_key: Option<u64>,
    pub(crate) params: SamplingParams,
    pub(crate) seed: u64,
    pub(crate) stream: TokenStream,
    pub(crate) usage: Usage,
    pub(crate) submitted: Instant,
    /// Whether it was part of a step yet; until then it waits in the queue.
    pub(crate) started: bool,
    /// Whether it ever gave up its blocks to another.
    pub(crate) preempted: bool,
    /// Sum of the negative log-likelihoods of `prompt[1..=n]`, and `n`.
    prompt_nll: (f64, usize),
    /// How much of [`SamplingParams::begins_with`] is written, in bytes.
    begun: usize,
    /// Prompt and generated tokens.
    tokens: Vec<u32>,
    /// Blocks of positions `0..num_computed` and, within a step, of those being computed.
    block_table: Vec<BlockId>,
    /// Positions whose keys and values are in the blocks.
    num_computed: usize,
    /// Blocks at the front of the table that are in the prefix index.
    num_published: usize,
    read_prefix_cache: bool,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, request: Request, stream: TokenStream, now: Instant) -> Self {
        let Request { prompt, params, priority, supersede_key, read_prefix_cache } = request;
        Self {
            id,
            priority,
            supersede_key,
            seed: params.seed.unwrap_or_else(random_seed),
            // A cached position has no logits, so the prompt's likelihood needs all computed.
            read_prefix_cache: read_prefix_cache && !params.prompt_nll,
            params,
            stream,
            usage: Usage { prompt_tokens: prompt.len(), ..Usage::default() },
            submitted: now,
            started: false,
            preempted: false,
            prompt_nll: (0.0, 0),
            begun: 0,
            tokens: prompt,
            block_table: Vec::new(),
            num_computed: 0,
            num_published: 0,
        }
    }

    /// Prompt and generated tokens.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn num_computed(&self) -> usize {
        self.num_computed
    }

    pub(crate) fn block_table(&self) -> &[BlockId] {
        &self.block_table
    }

    /// Positions to compute before the sequence can go on. A request that generates nothing is after
    /// cached blocks, and only full blocks are cached: its partial tail is left to whoever asks next.
    pub(crate) fn target(&self) -> usize {
        let only_fills_cache = self.params.max_tokens == 0 && !self.params.prompt_nll;
        if only_fills_cache { self.tokens.len() / BLOCK_SIZE * BLOCK_SIZE } else { self.tokens.len() }
    }

    /// Positions still to compute.
    pub(crate) fn remaining(&self) -> usize {
        self.target() - self.num_computed
    }

    /// What the output must go on with; empty once [`SamplingParams::begins_with`] is written.
    pub(crate) fn must_go_on_with(&self) -> &[u8] {
        &self.params.begins_with.as_bytes()[self.begun..]
    }

    /// Notes that a token's bytes were written.
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.begun = self.params.begins_with.len().min(self.begun + bytes.len());
    }

    /// Whether the next token is drawn once all positions are computed.
    pub(crate) fn generates(&self) -> bool {
        self.params.max_tokens > 0
    }

    /// Positions in `computed` whose logits tell the likelihood of a prompt token not yet accounted for.
    /// Those of a sequence that is computed again after a preemption may be.
    pub(crate) fn nll_positions(&self, computed: Range<usize>) -> Range<usize> {
        if !self.params.prompt_nll {
            return 0..0;
        }
        let start = computed.start.max(self.prompt_nll.1);
        let end = computed.end.min(self.usage.prompt_tokens - 1);
        start..end.max(start)
    }

    /// Accounts for the next prompt token, given the logits of the position before it.
    pub(crate) fn add_prompt_nll(&mut self, logits: &[f32]) {
        let (sum, count) = &mut self.prompt_nll;
        *count += 1;
        *sum -= log_probability(logits, self.tokens[*count]);
    }

    /// Mean negative log-likelihood of `prompt[1..]`, if all of it was accounted for.
    pub(crate) fn mean_prompt_nll(&self) -> Option<f64> {
        let (sum, count) = self.prompt_nll;
        (count > 0 && count == self.usage.prompt_tokens - 1).then(|| sum / count as f64)
    }

    /// Blocks needed to hold the first `positions` positions beyond those it has.
    pub(crate) fn missing_blocks(&self, positions: usize) -> usize {
        positions.div_ceil(BLOCK_SIZE).saturating_sub(self.block_table.len())
    }

    pub(crate) fn append_token(&mut self, id: u32) {
        self.tokens.push(id);
        self.usage.generated_tokens += 1;
    }

    /// Takes up cached blocks that continue what is computed, as far as they go. Returns the positions
    /// gained.
    ///
    /// One position at least is always left to compute, for the logits of the next token. Only full
    /// blocks are shared, so a partial last block is computed again by the next request: at most 15
    /// positions beside the one that has to run anyway.
    pub(crate) fn extend_from_cache(&mut self, pool: &mut BlockPool) -> usize {
        let before = self.num_computed;
        let on_boundary = self.num_computed == self.num_published * BLOCK_SIZE;
        if !self.read_prefix_cache || !on_boundary || self.block_table.len() != self.num_published {
            return 0;
        }
        let usable = if self.generates() { self.tokens.len() - 1 } else { self.target() };
        while self.num_computed + BLOCK_SIZE <= usable {
            let next = &self.tokens[self.num_computed..self.num_computed + BLOCK_SIZE];
            let Some(block) = pool.acquire_cached(self.block_table.last().copied(), next) else {
                break;
            };
            self.block_table.push(block);
            self.num_published += 1;
            self.num_computed += BLOCK_SIZE;
        }
        self.num_computed - before
    }

    /// Adds blocks until the first `positions` positions have room.
    ///
    /// # Panics
    /// When the pool has no block left; the caller made sure it has.
    pub(crate) fn allocate(&mut self, positions: usize, pool: &mut BlockPool) {
        for _ in 0..self.missing_blocks(positions) {
            self.block_table.push(pool.allocate().expect("the caller counted the free blocks"));
        }
    }

    /// Notes that `count` more positions are computed and publishes the blocks that became full.
    pub(crate) fn advance(&mut self, count: usize, pool: &mut BlockPool) {
        self.num_computed += count;
        assert!(self.num_computed <= self.tokens.len(), "more positions computed than there are tokens");
        while (self.num_published + 1) * BLOCK_SIZE <= self.num_computed {
            let index = self.num_published;
            let parent = index.checked_sub(1).map(|parent| self.block_table[parent]);
            let tokens = &self.tokens[index * BLOCK_SIZE..(index + 1) * BLOCK_SIZE];
            self.block_table[index] = pool.publish(parent, tokens, self.block_table[index]);
            self.num_published += 1;
        }
    }

    /// Gives all blocks back; what was computed is forgotten here, though the full blocks stay cached.
    pub(crate) fn release(&mut self, pool: &mut BlockPool) {
        pool.release(self.take_blocks());
    }

    /// Takes all blocks from it, for the caller to give back; what was computed is forgotten here.
    pub(crate) fn take_blocks(&mut self) -> Vec<BlockId> {
        self.num_computed = 0;
        self.num_published = 0;
        std::mem::take(&mut self.block_table)
    }
}
