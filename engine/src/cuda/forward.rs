//! The kernels of one step, in order.
//!
//! ```text
//! embed                        tokens (or what the step before drew) -> residual
//! for each layer:
//!     norm, qkv, rotate, append    residual -> queries; keys and values to their slots
//!     attention (, merge)          queries over the cache -> attended
//!     o                            residual += o(attended)
//!     norm, gate, up, silu         residual -> gated
//!     down                         residual += down(gated)
//! norm, head                   the rows that are asked for -> logits
//! scan, draw                   logits -> drawn
//! ```
//!
//! With few rows the norm is part of the product after it; with more it is a kernel of its own. Where heads
//! are normed (Qwen3) the products of queries, keys and values come as fp32, and one more kernel norms,
//! rotates and appends them. Nothing here waits for anything, so the same calls run a step or record it.

use redstart_kernels::attention::{self, Attention, AttentionShape};
use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::elementwise::{QkNormRopeAppend, RmsNorm, qk_norm_rope_append, rms_norm};
use redstart_kernels::linear::{
    self, EmbeddingTable, Epilogue, Input, QkvEpilogue, Tokens, embed, fuses_norm,
};
use redstart_kernels::sampling::{self, Sampling};

use super::buckets::StepShape;
use super::model::{Embedding, Layer, Model};
use super::scratch::{KvPool, Scratch};
use super::step::StepArrays;
use crate::config::ModelConfig;

/// What every step of a model works with.
pub(super) struct Forward<'a> {
    pub(super) device: &'a mut dyn Device,
    pub(super) config: &'a ModelConfig,
    pub(super) attention: &'a AttentionShape,
    pub(super) model: &'a Model,
    pub(super) scratch: &'a Scratch,
    pub(super) pool: &'a KvPool,
}

/// Some of the rows that logits are wanted of.
#[derive(Clone, Copy, Debug)]
pub(super) struct HeadRows {
    /// The first, counted among those rows.
    pub(super) first: u32,
    /// How many; at most [`HEAD_ROWS`](super::scratch::HEAD_ROWS).
    pub(super) count: u32,
    /// Whether tokens are drawn, and not only logits computed.
    pub(super) draw: bool,
}

impl Forward<'_> {
    /// Embeds the tokens and runs all layers.
    pub(super) fn layers(&mut self, shape: &StepShape, arrays: &StepArrays) -> Result<(), DeviceError> {
        let (scratch, rows) = (self.scratch, shape.rows as usize);
        let table = match &self.model.embedding {
            Embedding::Table(table) => EmbeddingTable::Plain(*table),
            Embedding::Head => EmbeddingTable::Tied(&self.model.head),
        };
        let tokens = Tokens {
            tokens: arrays.tokens,
            drawn: scratch.drawn,
            drawn_stride: size_of::<sampling::Drawn>(),
        };
        embed(self.device, table, tokens, rows, self.config.hidden_size, scratch.residual)?;
        for (layer, cache) in self.model.layers.iter().zip(&self.pool.layers) {
            self.attend(layer, *cache, shape, arrays)?;
            self.feed_forward(layer, rows)?;
        }
        Ok(())
    }

    /// `residual += o(attention(norm(residual)))`.
    fn attend(
        &mut self,
        layer: &Layer,
        (keys, values): (Buffer, Buffer),
        shape: &StepShape,
        arrays: &StepArrays,
    ) -> Result<(), DeviceError> {
        let (scratch, rows) = (self.scratch, shape.rows as usize);
        let input = self.norm(rows, layer.attention_norm, None)?;
        match (layer.qk_norms, scratch.qkv) {
            (Some(norms), Some(qkv)) => {
                let store = Epilogue::StoreF32 { to: qkv, bias: layer.qkv_bias };
                linear::run(self.device, &layer.qkv, rows, input, store, &scratch.linear)?;
                let step = QkNormRopeAppend {
                    qkv,
                    norms: Some(norms),
                    eps: self.config.rms_norm_eps,
                    rows: shape.rows,
                    positions: arrays.positions,
                    slots: arrays.slots,
                    rotary: self.model.rotary,
                    q: scratch.queries,
                    keys,
                    values,
                };
                qk_norm_rope_append(self.device, self.attention, &step)?;
            }
            _ => {
                let rotate_and_append = Epilogue::Qkv(QkvEpilogue {
                    bias: layer.qkv_bias,
                    positions: arrays.positions,
                    slots: arrays.slots,
                    rotary: self.model.rotary,
                    queries: scratch.queries,
                    keys,
                    values,
                    kv: self.attention.kv,
                });
                linear::run(self.device, &layer.qkv, rows, input, rotate_and_append, &scratch.linear)?;
            }
        }
        let launch = Attention {
            items: arrays.items,
            item_capacity: shape.items,
            variant: shape.variant,
            splits: shape.splits,
            q: scratch.queries,
            keys,
            values,
            block_tables: arrays.tables,
            out: scratch.attended,
            scratch: scratch.attention,
        };
        attention::run(self.device, self.attention, &launch)?;
        self.add(&layer.o, rows, scratch.attended)
    }

    /// `residual += down(silu(gate(x)) * up(x))` with `x = norm(residual)`.
    fn feed_forward(&mut self, layer: &Layer, rows: usize) -> Result<(), DeviceError> {
        let scratch = self.scratch;
        let input = self.norm(rows, layer.feed_forward_norm, None)?;
        let gated = Epilogue::GatedF16 { to: scratch.gated };
        linear::run(self.device, &layer.gate_up, rows, input, gated, &scratch.linear)?;
        self.add(&layer.down, rows, scratch.gated)
    }

    /// Logits of some of the rows that are asked for, and what is drawn from them.
    pub(super) fn head(&mut self, some: HeadRows, arrays: &StepArrays) -> Result<(), DeviceError> {
        let (scratch, count) = (self.scratch, some.count as usize);
        let part = |of: Buffer, size: usize| of.slice(some.first as usize * size, count * size);
        let input = self.norm(count, self.model.final_norm, Some(part(arrays.gather, 4)))?;
        let store = Epilogue::StoreF32 { to: scratch.logits, bias: None };
        linear::run(self.device, &self.model.head, count, input, store, &scratch.linear)?;
        if !some.draw {
            return Ok(());
        }
        let sampling = Sampling {
            logits: scratch.logits,
            vocab: self.config.vocab_size as u32,
            slots: some.count,
            params: part(arrays.draws, size_of::<sampling::SampleParams>()),
            masks: arrays.masks,
            drawn: part(scratch.drawn, size_of::<sampling::Drawn>()),
            scratch: scratch.sampling,
        };
        sampling::sample(self.device, &sampling)
    }

    /// The residual stream, normed, as a product's input; all rows or those of a list.
    fn norm(&mut self, rows: usize, weight: Buffer, gather: Option<Buffer>) -> Result<Input, DeviceError> {
        let (residual, epsilon) = (self.scratch.residual, self.config.rms_norm_eps);
        if fuses_norm(rows) {
            return Ok(Input::Normed { residual, norm: weight, epsilon, gather });
        }
        let out = self.scratch.normed;
        let (rows, hidden) = (rows as u32, self.config.hidden_size as u32);
        rms_norm(self.device, &RmsNorm { residual, weight, eps: epsilon, gather, rows, hidden, out })?;
        Ok(Input::F16(out))
    }

    /// Adds a product to the residual stream.
    fn add(&mut self, linear: &linear::Linear, rows: usize, input: Buffer) -> Result<(), DeviceError> {
        let add = Epilogue::AddF32 { to: self.scratch.residual };
        linear::run(self.device, linear, rows, Input::F16(input), add, &self.scratch.linear)
    }
}
