//! From a checkpoint to device memory.
//!
//! Matrices are packed into the kernels' layout on the host, by all cores, a few megabytes at a time: while one
//! piece is copied to the card the next is being packed, and what the checkpoint's file took of memory is given
//! back as it is used up. So loading costs little host memory whatever the size of the model.

use std::ops::Range;

use half::f16;
use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::float8;
use redstart_kernels::linear::{
    DenseSource, Format, Fp8Source, Int4Source, Linear, LinearSpec, PackError, Pairing, pack_dense, pack_fp8,
    pack_int4,
};
use safetensors::tensor::Dtype;

use super::error::CudaError;
use super::model::{Model, WeightSource, head_format, layer_format, upload_floats};
use super::options::{CudaOptions, WeightFormat};
use crate::awq::{AwqLinear, COLUMNS_PER_WORD};
use crate::checkpoint::{Checkpoint, CheckpointError, LinearWeights, Tensor};
use crate::config::ModelConfig;

const TABLE: &str = "model.embed_tokens";
const HEAD: &str = "lm_head";

/// Bytes that are packed before they are copied; there are two such buffers.
const STAGING_BYTES: usize = 32 << 20;

/// Loads a model with a rotary table for `positions` positions.
///
/// # Errors
/// When tensors are missing or damaged, an option does not go with them, or memory runs out.
pub(super) fn load(
    checkpoint: &Checkpoint,
    device: &mut dyn Device,
    options: &CudaOptions,
    positions: usize,
) -> Result<Model, CudaError> {
    let mut loader = Loader::new(checkpoint, device, options);
    let model = Model::assemble(checkpoint.config(), &mut loader, positions)?;
    loader.finish()?;
    Ok(model)
}

/// Takes a checkpoint's tensors to the device one after the other.
struct Loader<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a mut dyn Device,
    options: &'a CudaOptions,
    threads: usize,
    /// One is being packed into while the other is copied.
    staging: [Vec<u8>; 2],
    /// Which one is packed into next.
    next: usize,
    /// What of the other one is still to be copied: so many bytes, to there.
    pending: Option<(usize, Buffer)>,
}

impl<'a> Loader<'a> {
    fn new(checkpoint: &'a Checkpoint, device: &'a mut dyn Device, options: &'a CudaOptions) -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            checkpoint,
            device,
            options,
            threads,
            staging: [Vec::new(), Vec::new()],
            next: 0,
            pending: None,
        }
    }

    /// The format of a layer's weights. Parts that are not quantized alike become fp16 together.
    fn format(&self, name: &str, weights: &[LinearWeights<'_>]) -> Result<Format, CudaError> {
        let group = |weights: &LinearWeights<'_>| match weights {
            LinearWeights::Awq(awq) => Some(awq.group_size),
            LinearWeights::Dense(_) => None,
        };
        let alike = weights.iter().all(|part| group(part) == group(&weights[0]));
        match self.options.weights {
            WeightFormat::Checkpoint if !alike => Ok(Format::F16),
            _ => {
                let group = weights.iter().find_map(group);
                layer_format(self.options, group, name, self.checkpoint.name())
            }
        }
    }

    /// Packs matrices into one on the device.
    fn pack(
        &mut self,
        name: &str,
        spec: LinearSpec,
        parts: Vec<LinearWeights<'_>>,
    ) -> Result<Linear, CudaError> {
        let weights = self.device.allocate(spec.packed_bytes(), &format!("the weights {name}"))?;
        let wrong = |error: PackError| {
            CudaError::Checkpoint(CheckpointError::BadQuantization {
                tensor: name.to_owned(),
                detail: error.to_string(),
            })
        };
        let tile = spec.tile_bytes();
        if let Format::Int4 { .. } = spec.format {
            let parts: Vec<AwqLinear<'_>> = parts
                .into_iter()
                .filter_map(|part| match part {
                    LinearWeights::Awq(awq) => Some(awq),
                    LinearWeights::Dense(_) => None,
                })
                .collect();
            self.fill(weights, tile, |tiles, to| {
                pack_int4(&spec, &parts, tiles, to);
                Ok(())
            })?
        } else {
            let parts = parts.into_iter().map(Rows::new).collect::<Result<Vec<_>, _>>()?;
            self.fill(weights, tile, |tiles, to| match spec.format {
                Format::Fp8 => pack_fp8(&spec, &parts, tiles, to),
                _ => pack_dense(&spec, &parts, tiles, to),
            })?
        }
        .map_err(wrong)?;
        Ok(Linear { spec, weights })
    }

    /// Fills `to` with units of `unit` bytes (tiles, rows), which `make` makes some of at a time, on any
    /// thread.
    fn fill(
        &mut self,
        to: Buffer,
        unit: usize,
        make: impl Fn(Range<usize>, &mut [u8]) -> Result<(), PackError> + Sync,
    ) -> Result<Result<(), PackError>, DeviceError> {
        let units = to.bytes() / unit;
        let at_once = (STAGING_BYTES / unit).max(1);
        for first in (0..units).step_by(at_once) {
            let range = first..units.min(first + at_once);
            let bytes = range.len() * unit;
            // Some for each thread, in whole eights: what packs together shares the checkpoint's cache lines.
            let share = range.len().div_ceil(self.threads).next_multiple_of(8);
            let [a, b] = &mut self.staging;
            let (packing, copying) = if self.next == 0 { (a, b) } else { (b, a) };
            packing.resize(packing.len().max(bytes), 0);
            let (device, pending, make) = (&mut *self.device, self.pending.take(), &make);
            let (made, copied) = std::thread::scope(|scope| {
                let workers: Vec<_> = packing[..bytes]
                    .chunks_mut(share * unit)
                    .enumerate()
                    .map(|(i, part)| {
                        let start = range.start + i * share;
                        let units = start..start + part.len() / unit;
                        scope.spawn(move || make(units, part))
                    })
                    .collect();
                let copied = pending.map_or(Ok(()), |(bytes, to)| device.upload(&copying[..bytes], to));
                let made = workers.into_iter().try_for_each(|worker| {
                    worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                });
                (made, copied)
            });
            copied?;
            if made.is_err() {
                return Ok(made);
            }
            self.pending = Some((bytes, to.slice(first * unit, bytes)));
            self.next = 1 - self.next;
        }
        Ok(Ok(()))
    }

    /// Copies what is packed and not copied yet.
    fn finish(&mut self) -> Result<(), DeviceError> {
        match self.pending.take() {
            Some((bytes, to)) => self.device.upload(&self.staging[1 - self.next][..bytes], to),
            None => Ok(()),
        }
    }
}

impl WeightSource for Loader<'_> {
    fn device(&mut self) -> &mut dyn Device {
        self.device
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Buffer, CudaError> {
        let values = self.checkpoint.tensor(name, &[length])?.to_f32()?;
        Ok(upload_floats(self.device, &values, name)?)
    }

    fn biases(&mut self, parts: &[(String, usize)]) -> Result<Buffer, CudaError> {
        let mut values = Vec::new();
        for (name, output) in parts {
            values.extend(self.checkpoint.tensor(&format!("{name}.bias"), &[*output])?.to_f32()?);
        }
        Ok(upload_floats(self.device, &values, &parts[0].0)?)
    }

    fn linear(
        &mut self,
        parts: &[(String, usize)],
        input: usize,
        pairing: Pairing,
    ) -> Result<Linear, CudaError> {
        let weights = parts
            .iter()
            .map(|(name, output)| self.checkpoint.linear(name, input, *output))
            .collect::<Result<Vec<_>, _>>()?;
        let format = self.format(&parts[0].0, &weights)?;
        let output = parts.iter().map(|(_, output)| output).sum();
        let linear = self.pack(&parts[0].0, LinearSpec { format, input, output, pairing }, weights)?;
        for (name, _) in parts {
            // SAFETY: the slices into these tensors are gone, and nothing else reads them.
            unsafe { self.checkpoint.release(name) };
        }
        Ok(linear)
    }

    fn table(&mut self) -> Result<Buffer, CudaError> {
        let ModelConfig { vocab_size, hidden_size, .. } = *self.checkpoint.config();
        let name = format!("{TABLE}.weight");
        let tensor = self.checkpoint.tensor(&name, &[vocab_size, hidden_size])?;
        let rows = Rows::new(LinearWeights::Dense(tensor))?;
        let table = self.device.allocate(2 * vocab_size * hidden_size, "the embedding table")?;
        let filled = self.fill(table, 2 * hidden_size, |range, to| {
            let mut row = vec![f16::ZERO; hidden_size];
            for (output, to) in range.zip(to.chunks_exact_mut(2 * hidden_size)) {
                rows.row_f16(output, &mut row);
                if let Some(input) = row.iter().position(|weight| !weight.is_finite()) {
                    return Err(PackError::OutOfRange { output, input, format: "fp16" });
                }
                for (to, weight) in to.as_chunks_mut::<2>().0.iter_mut().zip(&row) {
                    *to = weight.to_le_bytes();
                }
            }
            Ok(())
        })?;
        filled
            .map_err(|error| CheckpointError::BadQuantization { tensor: name, detail: error.to_string() })?;
        // SAFETY: it is copied, and nothing else reads it.
        unsafe { self.checkpoint.release(TABLE) };
        Ok(table)
    }

    fn head(&mut self) -> Result<Linear, CudaError> {
        let ModelConfig { vocab_size, hidden_size, tie_word_embeddings, .. } = *self.checkpoint.config();
        let prefix = if tie_word_embeddings { TABLE } else { HEAD };
        let weights = self.checkpoint.linear(prefix, hidden_size, vocab_size)?;
        let format = match weights {
            // Four bits already.
            LinearWeights::Awq(awq) if !tie_word_embeddings => Format::Int4 { group: awq.group_size },
            _ => head_format(self.options),
        };
        let spec = LinearSpec { format, input: hidden_size, output: vocab_size, pairing: Pairing::Plain };
        self.pack(prefix, spec, vec![weights])
    }
}

impl Int4Source for AwqLinear<'_> {
    fn outputs(&self) -> usize {
        self.output
    }

    fn q8x8(&self, k: usize, octet: usize) -> [[u8; 4]; COLUMNS_PER_WORD] {
        AwqLinear::q8x8(self, k, octet)
    }

    fn awq_words(&self, k: usize, octet: usize) -> [u32; COLUMNS_PER_WORD] {
        self.packed8(k, octet)
    }

    fn z8(&self, group: usize, octet: usize) -> [u8; COLUMNS_PER_WORD] {
        AwqLinear::z8(self, group, octet)
    }

    fn scale_bits(&self, group: usize, output: usize) -> u16 {
        AwqLinear::scale_bits(self, group, output)
    }
}

/// A matrix's weights output by output, whatever they are in the checkpoint.
struct Rows<'a> {
    weights: LinearWeights<'a>,
    output: usize,
    input: usize,
}

impl<'a> Rows<'a> {
    fn new(weights: LinearWeights<'a>) -> Result<Self, CheckpointError> {
        let (output, input) = match &weights {
            LinearWeights::Awq(awq) => (awq.output, awq.input),
            LinearWeights::Dense(tensor) => match (tensor.dtype, tensor.shape) {
                (Dtype::F16 | Dtype::BF16 | Dtype::F32, &[output, input]) => (output, input),
                _ => return Err(tensor.unsupported_dtype("F16, BF16, F32")),
            },
        };
        Ok(Self { weights, output, input })
    }

    /// The bytes of an output of a tensor whose elements have `size` bytes.
    fn bytes<'t>(&self, tensor: &Tensor<'t>, output: usize, size: usize) -> &'t [u8] {
        &tensor.bytes[output * self.input * size..][..self.input * size]
    }
}

impl DenseSource for Rows<'_> {
    fn outputs(&self) -> usize {
        self.output
    }

    fn row(&self, output: usize, to: &mut [f32]) {
        match &self.weights {
            LinearWeights::Awq(awq) => {
                for (input, to) in to.iter_mut().enumerate() {
                    *to = awq.weight(input, output);
                }
            }
            LinearWeights::Dense(tensor) if tensor.dtype == Dtype::F32 => {
                let bytes = self.bytes(tensor, output, 4);
                for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<4>().0) {
                    *to = f32::from_le_bytes(*bytes);
                }
            }
            LinearWeights::Dense(tensor) => {
                let is_bf16 = tensor.dtype == Dtype::BF16;
                let bytes = self.bytes(tensor, output, 2);
                for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    let bits = u16::from_le_bytes(*bytes);
                    *to = if is_bf16 {
                        half::bf16::from_bits(bits).to_f32()
                    } else {
                        f16::from_bits(bits).to_f32()
                    };
                }
            }
        }
    }

    fn row_f16(&self, output: usize, to: &mut [f16]) {
        match &self.weights {
            LinearWeights::Dense(tensor) if tensor.dtype == Dtype::F16 => {
                let bytes = self.bytes(tensor, output, 2);
                for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
                    *to = f16::from_le_bytes(*bytes);
                }
            }
            _ => {
                let mut row = vec![0.0; to.len()];
                DenseSource::row(self, output, &mut row);
                for (to, weight) in to.iter_mut().zip(row) {
                    *to = f16::from_f32(weight);
                }
            }
        }
    }
}

impl Fp8Source for Rows<'_> {
    fn outputs(&self) -> usize {
        self.output
    }

    fn row(&self, output: usize, to: &mut [u8]) {
        round_to_fp8(self, output, to);
    }

    fn scale(&self, output: usize) -> f32 {
        let mut row = vec![0.0; self.input];
        DenseSource::row(self, output, &mut row);
        fp8_scale(&row)
    }
}

/// The scale with which an output's largest weight is e4m3's largest number.
pub(super) fn fp8_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    if largest > 0.0 { largest / float8::MAX } else { 1.0 }
}

/// An output's weights as e4m3 of its scale.
pub(super) fn round_to_fp8(source: &impl DenseSource, output: usize, to: &mut [u8]) {
    let mut row = vec![0.0; to.len()];
    source.row(output, &mut row);
    let inverse = fp8_scale(&row).recip();
    for (to, weight) in to.iter_mut().zip(row) {
        *to = float8::from_f32(weight * inverse);
    }
}
