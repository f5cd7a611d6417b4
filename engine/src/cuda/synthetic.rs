//! Random weights made on the card, to measure speed with: no checkpoint, no gigabytes of host memory.
//!
//! Some tiles of each matrix, and some rows of the embedding's table, are drawn and packed on the host; the card
//! repeats them until the matrix is full. Every matrix has memory of its own and the layout of a loaded one, so
//! it takes as long to read; and the weights of an output are all different, so activations are the size of
//! [`synthetic`](crate::synthetic) checkpoints'. What tiles share is their outputs: the same logits come back
//! every few hundred tokens.

use half::f16;
use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::linear::{
    DenseSource, Format, Fp8Source, Int4Source, Linear, LinearSpec, Pairing, pack_dense, pack_fp8, pack_int4,
};
use redstart_kernels::machine;

use super::error::CudaError;
use super::model::{Model, WeightSource, head_format, layer_format, upload_floats};
use super::options::CudaOptions;
use super::weights::{fp8_scale, round_to_fp8};
use crate::config::ModelConfig;
use crate::synthetic::Values;

/// Tiles of a matrix that differ. A prime, so that they do not come back in step with heads or groups.
const TILES: usize = 61;

/// Rows of the embedding's table that differ.
const TABLE_ROWS: usize = 1021;

/// Makes a model of this shape, the same for the same seed, with a rotary table for `positions` positions.
///
/// # Errors
/// When an option does not go with the model, memory runs out or the device failed.
pub(super) fn make(
    config: &ModelConfig,
    seed: u64,
    device: &mut dyn Device,
    options: &CudaOptions,
    positions: usize,
) -> Result<Model, CudaError> {
    let mut source = MadeUp { config, device, options, seeds: fastrand::Rng::with_seed(seed) };
    Model::assemble(config, &mut source, positions)
}

/// A matrix of this shape with random weights, the same for the same seed.
///
/// # Errors
/// When memory runs out or the device failed.
pub fn random_matrix(device: &mut dyn Device, spec: LinearSpec, seed: u64) -> Result<Linear, DeviceError> {
    matrix(device, spec, &RandomWeights::of_layer(&spec, seed))
}

/// As [`random_matrix`], with an output head's weights.
fn random_head(device: &mut dyn Device, spec: LinearSpec, seed: u64) -> Result<Linear, DeviceError> {
    let weights = RandomWeights { dense: Values::head(spec.input), ..RandomWeights::of_layer(&spec, seed) };
    matrix(device, spec, &weights)
}

fn matrix(device: &mut dyn Device, spec: LinearSpec, source: &RandomWeights) -> Result<Linear, DeviceError> {
    let tiles = TILES.min(spec.tiles());
    let mut packed = vec![0; tiles * spec.tile_bytes()];
    let sources = std::slice::from_ref(source);
    match spec.format {
        Format::Int4 { .. } => {
            pack_int4(&spec, sources, 0..tiles, &mut packed);
            Ok(())
        }
        Format::Fp8 => pack_fp8(&spec, sources, 0..tiles, &mut packed),
        Format::F16 | Format::Int8 => pack_dense(&spec, sources, 0..tiles, &mut packed),
    }
    .expect("all formats have numbers this small");
    let weights = device.allocate(spec.packed_bytes(), "random weights")?;
    repeat(device, &packed, weights)?;
    Ok(Linear { spec, weights })
}

/// Fills `to` with `bytes`, over and over.
fn repeat(device: &mut dyn Device, bytes: &[u8], to: Buffer) -> Result<(), DeviceError> {
    let from = device.allocate(bytes.len(), "random weights")?;
    let repeated = device.upload(bytes, from).and_then(|()| machine::repeat(device, from, to));
    device.free(from);
    repeated
}

/// Makes weights up as they are asked for.
struct MadeUp<'a> {
    config: &'a ModelConfig,
    device: &'a mut dyn Device,
    options: &'a CudaOptions,
    /// Of the next matrix.
    seeds: fastrand::Rng,
}

impl WeightSource for MadeUp<'_> {
    fn device(&mut self) -> &mut dyn Device {
        self.device
    }

    fn vector(&mut self, name: &str, length: usize) -> Result<Buffer, CudaError> {
        Ok(upload_floats(self.device, &vec![1.0; length], name)?)
    }

    fn biases(&mut self, parts: &[(String, usize)]) -> Result<Buffer, CudaError> {
        let mut values = vec![f16::ZERO; parts.iter().map(|(_, output)| output).sum()];
        fill_halves(Values::biases(), self.seeds.u64(..), &mut values);
        let values: Vec<f32> = values.into_iter().map(f16::to_f32).collect();
        Ok(upload_floats(self.device, &values, &parts[0].0)?)
    }

    fn linear(
        &mut self,
        parts: &[(String, usize)],
        input: usize,
        pairing: Pairing,
    ) -> Result<Linear, CudaError> {
        let format = layer_format(self.options, self.config.awq_group_size, &parts[0].0, "random weights")?;
        let output = parts.iter().map(|(_, output)| output).sum();
        let spec = LinearSpec { format, input, output, pairing };
        Ok(random_matrix(self.device, spec, self.seeds.u64(..))?)
    }

    fn table(&mut self) -> Result<Buffer, CudaError> {
        let ModelConfig { vocab_size, hidden_size, .. } = *self.config;
        let mut rows = vec![0; 2 * hidden_size * TABLE_ROWS.min(vocab_size)];
        Values::head(hidden_size).fill(self.seeds.u64(..), &mut rows);
        let table = self.device.allocate(2 * vocab_size * hidden_size, "the embedding table")?;
        repeat(self.device, &rows, table)?;
        Ok(table)
    }

    fn head(&mut self) -> Result<Linear, CudaError> {
        let (input, output) = (self.config.hidden_size, self.config.vocab_size);
        let spec = LinearSpec { format: head_format(self.options), input, output, pairing: Pairing::Plain };
        Ok(random_head(self.device, spec, self.seeds.u64(..))?)
    }
}

/// A matrix of random weights, in whichever form it is asked for.
struct RandomWeights {
    outputs: usize,
    inputs: usize,
    seed: u64,
    scales: Values,
    dense: Values,
}

impl RandomWeights {
    fn of_layer(spec: &LinearSpec, seed: u64) -> Self {
        Self {
            outputs: spec.output,
            inputs: spec.input,
            seed,
            scales: Values::scales(spec.input),
            dense: Values::weights(spec.input),
        }
    }

    /// Fills `bytes` with values that depend on what they are and where in the matrix they stand.
    fn fill(&self, values: Values, what: u64, row: usize, column: usize, bytes: &mut [u8]) {
        let place = what << 62 | (row as u64) << 31 | column as u64;
        values.fill(self.seed ^ place, bytes);
    }
}

impl Int4Source for RandomWeights {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn q8x8(&self, k: usize, octet: usize) -> [[u8; 4]; 8] {
        let mut weights = [[0; 4]; 8];
        self.fill(Values::QUANTIZED, 0, k, octet, weights.as_flattened_mut());
        weights
    }

    fn z8(&self, group: usize, octet: usize) -> [u8; 8] {
        let mut zeros = [0; 8];
        self.fill(Values::ZERO_POINTS, 1, group, octet, &mut zeros);
        zeros.map(|pair| pair & 15)
    }

    fn scale_bits(&self, group: usize, output: usize) -> u16 {
        let mut scale = [0; 2];
        self.fill(self.scales, 2, group, output, &mut scale);
        u16::from_le_bytes(scale)
    }
}

impl DenseSource for RandomWeights {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row(&self, output: usize, to: &mut [f32]) {
        let mut row = vec![f16::ZERO; to.len()];
        self.row_f16(output, &mut row);
        for (to, weight) in to.iter_mut().zip(row) {
            *to = weight.to_f32();
        }
    }

    fn row_f16(&self, output: usize, to: &mut [f16]) {
        fill_halves(self.dense, self.seed ^ output as u64, to);
    }
}

impl Fp8Source for RandomWeights {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row(&self, output: usize, to: &mut [u8]) {
        round_to_fp8(self, output, to);
    }

    fn scale(&self, output: usize) -> f32 {
        let mut row = vec![0.0; self.inputs];
        DenseSource::row(self, output, &mut row);
        fp8_scale(&row)
    }
}

fn fill_halves(values: Values, seed: u64, to: &mut [f16]) {
    let mut bytes = vec![0; 2 * to.len()];
    values.fill(seed, &mut bytes);
    for (to, bytes) in to.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *to = f16::from_le_bytes(*bytes);
    }
}
