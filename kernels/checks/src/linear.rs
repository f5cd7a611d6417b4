//! Matrix products of every format, with every epilogue, and the embedding.
//!
//! Errors are norms of differences over norms of references. What makes them: sums of exact products in
//! fp32, whose error grows slowly with their number ([`SUMS`] leaves room for tensor cores, which cut the bits
//! below their accumulator off); and, wherever something is rounded to fp16 (normed inputs, the scaled
//! weights of the tile kernels, outputs), a relative error spread evenly over ±2⁻¹¹ at the most, 2.8e-4 as a
//! norm ([`ROUNDING`]).

use std::f64::consts::PI;

use fastrand::Rng;
use half::f16;
use redstart_kernels::attention::{BLOCK_TOKENS, KvFormat, kv_block_bytes};
use redstart_kernels::device::{Buffer, Device};
use redstart_kernels::float8;
use redstart_kernels::linear::{
    DenseSource, EmbeddingTable, Epilogue, Format, Fp8Source, INT8_GROUP, Input, Int4Source, Linear,
    LinearSpec, PackError, Pairing, QkvEpilogue, STREAM_ROWS, Scratch, Tokens, embed, pack_dense, pack_fp8,
    pack_int4, run, scratch_size, unpack,
};

use crate::scope::{Scope, half_value, halves, normal, relative_error, worse};
use crate::{Case, CheckError, Measured};

const SUMS: f64 = 2e-5;
const ROUNDING: f64 = 5e-4;
/// A cache of e4m3: half a unit of a three-bit mantissa is 2⁻⁴ at the most, 3.6e-2 as a norm.
const F8_ROUNDING: f64 = 5e-2;
const EPSILON: f32 = 1e-6;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases: Vec<Case> = small().into_iter().map(|shape| shape.case(false)).collect();
    cases.extend(heavy().into_iter().map(|shape| shape.case(true)));
    for (name, format) in
        [("plain", None), ("tied f16", Some(Format::F16)), ("tied int8", Some(Format::Int8))]
    {
        cases.push(Case {
            name: format!("embedding {name} 777x320"),
            heavy: false,
            run: Box::new(move |device, seed| check_embedding(device, seed, format)),
        });
    }
    cases
}

/// What happens to the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Store,
    StoreBias,
    Add,
    Gated,
    Qkv(KvFormat),
}

/// Where the inputs come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum From {
    F16,
    Normed,
    Gathered,
}

#[derive(Clone, Copy, Debug)]
struct Shape {
    format: Format,
    kind: Kind,
    from: From,
    rows: usize,
    input: usize,
    /// Outputs; for queries, keys and values their heads say it.
    output: usize,
    heads: [usize; 3],
}

const FORMATS: [Format; 6] = [
    Format::Int4 { group: 128 },
    Format::Int4 { group: 64 },
    Format::Int4 { group: 32 },
    Format::F16,
    Format::Int8,
    Format::Fp8,
];

/// Every format with every number of rows, and in turn with every epilogue, source of inputs and width.
fn small() -> Vec<Shape> {
    const ROWS: [usize; 13] = [1, 2, 3, 4, 5, 8, 9, 16, 17, 33, 64, 65, 130];
    const KINDS: [Kind; 6] = [
        Kind::Store,
        Kind::Gated,
        Kind::Qkv(KvFormat::F16),
        Kind::Add,
        Kind::StoreBias,
        Kind::Qkv(KvFormat::F8),
    ];
    const HEADS: [[usize; 3]; 4] = [[2, 1, 64], [3, 1, 16], [1, 1, 128], [7, 1, 16]];
    let mut shapes = Vec::new();
    for (f, format) in FORMATS.into_iter().enumerate() {
        let inputs: &[usize] = match format {
            Format::Int4 { group: 128 } => &[256, 128, 896],
            Format::Int4 { group: 64 } => &[320, 832, 64],
            Format::Int4 { .. } => &[96, 320, 544],
            _ => &[320, 72, 264],
        };
        for (r, rows) in ROWS.into_iter().enumerate() {
            // Five kinds of steps so that no two of the cycles run in parallel.
            let kind = KINDS[(f + r) % KINDS.len()];
            let from = [From::F16, From::Normed, From::Gathered][(f + 2 * r + r / 3) % 3];
            let output = match (kind, format) {
                (Kind::Gated, _) => [48, 96, 272][r % 3],
                (_, Format::Int4 { .. }) => [96, 40, 136][r % 3],
                _ => [97, 16, 133][r % 3],
            };
            shapes.push(Shape {
                format,
                kind,
                from: if rows > STREAM_ROWS { From::F16 } else { from },
                rows,
                input: inputs[(r + r / 3) % inputs.len()],
                output,
                heads: HEADS[(f + r / 2) % HEADS.len()],
            });
        }
    }
    let int4 = Format::Int4 { group: 128 };
    let shape = |format, kind, from, rows, input, output| Shape {
        format,
        kind,
        from,
        rows,
        input,
        output,
        heads: [2, 1, 64],
    };
    shapes.extend([
        // A vocabulary that no tile divides.
        shape(Format::F16, Kind::Store, From::Gathered, 1, 256, 777),
        shape(Format::Int8, Kind::Store, From::F16, 4, 320, 777),
        // Tiles cut into parts that several blocks have: in the stream kernels, some with uneven rounds ...
        shape(int4, Kind::Add, From::F16, 1, 2048, 112),
        shape(int4, Kind::Gated, From::Normed, 2, 1664, 176),
        shape(int4, Kind::Qkv(KvFormat::F16), From::Normed, 1, 3584, 0),
        shape(Format::Int4 { group: 32 }, Kind::Store, From::F16, 9, 1184, 80),
        shape(Format::F16, Kind::StoreBias, From::F16, 1, 1096, 60),
        shape(Format::Int8, Kind::Store, From::Normed, 3, 1536, 72),
        shape(Format::Fp8, Kind::Add, From::F16, 1, 1544, 50),
        // ... with inputs that do not fit into shared memory ...
        shape(int4, Kind::Add, From::F16, 16, 4096, 48),
        shape(int4, Kind::StoreBias, From::F16, 8, 9728, 40),
        shape(Format::Fp8, Kind::Store, From::Gathered, 16, 3328, 24),
        // ... and in the tile kernels.
        shape(int4, Kind::Qkv(KvFormat::F8), From::F16, 24, 1536, 0),
        shape(int4, Kind::Gated, From::F16, 17, 1920, 32),
        shape(Format::F16, Kind::Add, From::F16, 70, 712, 144),
        shape(Format::Fp8, Kind::StoreBias, From::F16, 18, 648, 33),
    ]);
    shapes
}

/// A 7B model's products, with the rows of decode, tails and prefill.
fn heavy() -> Vec<Shape> {
    let int4 = Format::Int4 { group: 128 };
    let mut shapes = Vec::new();
    for rows in [1, 2, 4, 8, 16, 32, 64, 128, 512] {
        let from = if rows <= 4 { From::Normed } else { From::F16 };
        let shape = |format, kind, from, input, output| Shape {
            format,
            kind,
            from,
            rows,
            input,
            output,
            heads: [28, 4, 128],
        };
        shapes.extend([
            shape(int4, Kind::Qkv(KvFormat::F16), from, 3584, 0),
            shape(int4, Kind::Add, From::F16, 3584, 3584),
            shape(int4, Kind::Gated, from, 3584, 2 * 18944),
            shape(int4, Kind::Add, From::F16, 18944, 3584),
        ]);
        if rows <= 16 {
            shapes.push(shape(Format::F16, Kind::Store, From::F16, 3584, 38016));
            shapes.push(shape(Format::Int8, Kind::Store, From::F16, 3584, 38016));
        }
    }
    shapes
}

impl Shape {
    fn case(self, heavy: bool) -> Case {
        let spec = self.spec();
        let format = match self.format {
            Format::Int4 { group } => format!("int4 g{group}"),
            other => format!("{other:?}").to_lowercase(),
        };
        let Self { rows, input, .. } = self;
        let name = format!("linear {format} {rows}x{input}x{} {:?} {:?}", spec.output, self.from, self.kind);
        Case { name, heavy, run: Box::new(move |device, seed| self.check(device, seed)) }
    }

    fn spec(&self) -> LinearSpec {
        let [heads, kv_heads, head_dim] = self.heads;
        let (pairing, output) = match self.kind {
            Kind::Store | Kind::StoreBias | Kind::Add => (Pairing::Plain, self.output),
            Kind::Gated => (Pairing::Gated, self.output),
            Kind::Qkv(_) => (Pairing::Qkv { heads, kv_heads, head_dim }, (heads + 2 * kv_heads) * head_dim),
        };
        LinearSpec { format: self.format, input: self.input, output, pairing }
    }

    /// How much of the error comes from roundings to fp16.
    fn tolerance(&self) -> f64 {
        let scaled_in_f16 =
            self.rows > STREAM_ROWS && matches!(self.format, Format::Int4 { .. } | Format::Int8);
        let mut roundings = 0;
        roundings += usize::from(self.from != From::F16);
        roundings += usize::from(scaled_in_f16);
        roundings += match self.kind {
            // The gate's error goes through silu and is multiplied with up, which has its own.
            Kind::Gated => 2,
            Kind::Qkv(_) => 1,
            _ => 0,
        };
        let f8 = if self.kind == Kind::Qkv(KvFormat::F8) { F8_ROUNDING } else { 0.0 };
        SUMS + ROUNDING * roundings as f64 + f8
    }

    fn check(&self, device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
        let random = &mut Rng::with_seed(seed);
        let mut scope = Scope::new(device);
        let spec = self.spec();
        let weights = Weights::draw(random, &spec)?;
        let linear = Linear { spec, weights: scope.upload(&weights.packed)? };
        let inputs = Inputs::draw(random, &mut scope, self)?;
        let size = scratch_size(&spec, self.rows, scope.device.properties());
        let scratch = Scratch {
            partials: scope.poisoned(size.partials)?,
            counters: scope.upload(&vec![0u8; size.counters.max(4)])?,
        };
        let outputs = Outputs::draw(random, &mut scope, self)?;

        let mut results = Vec::new();
        for _ in 0..2 {
            outputs.reset(&mut scope)?;
            run(scope.device, &linear, self.rows, inputs.input, outputs.epilogue, &scratch)?;
            results.push(outputs.bytes(&mut scope)?);
        }
        if results[0] != results[1] {
            return Err(CheckError::Wrong("two runs gave different bits".to_owned()));
        }
        if scope.download::<u8>(scratch.counters)?.iter().any(|&byte| byte != 0) {
            return Err(CheckError::Wrong("a counter was not left at zero".to_owned()));
        }

        let checked = self.rows_to_check(random);
        let sums: Vec<Vec<f64>> = checked
            .iter()
            .map(|&row| inputs.rows[row].as_ref().map_or(Vec::new(), |x| weights.product(x)))
            .collect();
        let error = outputs.compare(self, &results[0], &checked, &sums)?;
        Ok(Measured { error, tolerance: self.tolerance() })
    }

    /// All of a small case's rows; of a large one the first, the last and two more.
    fn rows_to_check(&self, random: &mut Rng) -> Vec<usize> {
        if self.rows * self.input * self.spec().output < 100_000_000 {
            return (0..self.rows).collect();
        }
        let mut rows = vec![0, self.rows - 1, random.usize(..self.rows), random.usize(..self.rows)];
        rows.sort_unstable();
        rows.dedup();
        rows
    }
}

/// A matrix: what it is, and packed.
struct Weights {
    /// `[output][input]`.
    values: Vec<f32>,
    input: usize,
    packed: Vec<u8>,
}

impl Weights {
    /// Draws weights in two sources of different widths where that is possible, packs them in two ranges of
    /// tiles and checks that unpacking gives them back.
    fn draw(random: &mut Rng, spec: &LinearSpec) -> Result<Self, CheckError> {
        let first = if spec.output > 24 { 24 } else { 0 };
        let widths: Vec<usize> =
            [first, spec.output - first].into_iter().filter(|&width| width > 0).collect();
        let middle = spec.tiles() / 2;
        let mut packed = vec![0xff; spec.packed_bytes()];
        let (low, high) = packed.split_at_mut(middle * spec.tile_bytes());
        let parts = [(0..middle, low), (middle..spec.tiles(), high)];
        let input = spec.input;
        let values: Vec<f32> = match spec.format {
            Format::Int4 { group } => {
                let sources: Vec<_> =
                    widths.iter().map(|&width| Int4::draw(random, width, input, group)).collect();
                for (tiles, to) in parts {
                    pack_int4(spec, &sources, tiles, to);
                }
                sources.iter().flat_map(Int4::values).collect()
            }
            Format::Fp8 => {
                let sources: Vec<_> = widths.iter().map(|&width| Fp8::draw(random, width, input)).collect();
                for (tiles, to) in parts {
                    pack_fp8(spec, &sources, tiles, to).map_err(wrong)?;
                }
                sources.iter().flat_map(Fp8::values).collect()
            }
            Format::F16 | Format::Int8 => {
                let sources: Vec<_> = widths.iter().map(|&width| Dense::draw(random, width, input)).collect();
                for (tiles, to) in parts {
                    pack_dense(spec, &sources, tiles, to).map_err(wrong)?;
                }
                sources.into_iter().flat_map(|source| source.values).collect()
            }
        };
        let unpacked = unpack(spec, &packed);
        if spec.format == Format::Int8 {
            for (row, quantized) in values.chunks(input).zip(unpacked.chunks(input)) {
                for (group, quantized) in row.chunks(INT8_GROUP).zip(quantized.chunks(INT8_GROUP)) {
                    let largest = group.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
                    // Half a step, and what the scale's rounding to fp16 makes of the largest weight.
                    let allowed = largest * (0.5 / 127.0 + 1e-3);
                    if group.iter().zip(quantized).any(|(weight, q)| (weight - q).abs() > allowed) {
                        return Err(CheckError::Wrong("a weight is too far from its eight bits".to_owned()));
                    }
                }
            }
            return Ok(Self { values: unpacked, input, packed });
        }
        if unpacked != values {
            return Err(CheckError::Wrong("unpacked weights differ from what was packed".to_owned()));
        }
        Ok(Self { values, input, packed })
    }

    fn product(&self, x: &[f64]) -> Vec<f64> {
        let dot = |row: &[f32]| row.iter().zip(x).map(|(&weight, x)| f64::from(weight) * x).sum();
        self.values.chunks(self.input).map(dot).collect()
    }
}

fn wrong(error: PackError) -> CheckError {
    CheckError::Wrong(error.to_string())
}

struct Int4 {
    outputs: usize,
    input: usize,
    group: usize,
    /// `[input][output]`, as AWQ has them.
    q: Vec<u8>,
    /// `[group][output]`.
    z: Vec<u8>,
    s: Vec<f16>,
}

impl Int4 {
    fn draw(random: &mut Rng, outputs: usize, input: usize, group: usize) -> Self {
        let groups = input / group;
        Self {
            outputs,
            input,
            group,
            q: (0..input * outputs).map(|_| random.u8(..16)).collect(),
            z: (0..groups * outputs).map(|_| random.u8(..16)).collect(),
            s: (0..groups * outputs).map(|_| f16::from_f32(0.002 + 0.02 * random.f32())).collect(),
        }
    }

    fn values(&self) -> Vec<f32> {
        let weight = |output: usize, input: usize| {
            let at = input / self.group * self.outputs + output;
            let q = f32::from(self.q[input * self.outputs + output]);
            (q - f32::from(self.z[at])) * self.s[at].to_f32()
        };
        (0..self.outputs).flat_map(|output| (0..self.input).map(move |input| weight(output, input))).collect()
    }
}

impl Int4Source for Int4 {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn q8x8(&self, k: usize, octet: usize) -> [[u8; 4]; 8] {
        let q = |k: usize, output: usize| self.q[k * self.outputs + 8 * octet + output];
        std::array::from_fn(|output| std::array::from_fn(|j| q(k + j, output) | q(k + 4 + j, output) << 4))
    }

    fn z8(&self, group: usize, octet: usize) -> [u8; 8] {
        std::array::from_fn(|output| self.z[group * self.outputs + 8 * octet + output])
    }

    fn scale_bits(&self, group: usize, output: usize) -> u16 {
        self.s[group * self.outputs + output].to_bits()
    }
}

struct Dense {
    outputs: usize,
    input: usize,
    values: Vec<f32>,
}

impl Dense {
    /// Numbers that fp16 has.
    fn draw(random: &mut Rng, outputs: usize, input: usize) -> Self {
        let value = |random: &mut Rng| f16::from_f32(normal(random, 0.05)).to_f32();
        Self { outputs, input, values: (0..outputs * input).map(|_| value(random)).collect() }
    }
}

impl DenseSource for Dense {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row(&self, output: usize, to: &mut [f32]) {
        to.copy_from_slice(&self.values[output * self.input..][..self.input]);
    }
}

struct Fp8 {
    outputs: usize,
    input: usize,
    codes: Vec<u8>,
    scales: Vec<f32>,
}

impl Fp8 {
    /// All codes but the NaNs.
    fn draw(random: &mut Rng, outputs: usize, input: usize) -> Self {
        Self {
            outputs,
            input,
            codes: (0..outputs * input).map(|_| random.u8(..0x7f) | random.u8(..2) << 7).collect(),
            scales: (0..outputs).map(|_| 1e-4 + 1e-3 * random.f32()).collect(),
        }
    }

    fn values(&self) -> Vec<f32> {
        let row = |(codes, &scale): (&[u8], &f32)| {
            codes.iter().map(|&code| float8::to_f32(code) * scale).collect::<Vec<_>>()
        };
        self.codes.chunks(self.input).zip(&self.scales).flat_map(row).collect()
    }
}

impl Fp8Source for Fp8 {
    fn outputs(&self) -> usize {
        self.outputs
    }

    fn row(&self, output: usize, to: &mut [u8]) {
        to.copy_from_slice(&self.codes[output * self.input..][..self.input]);
    }

    fn scale(&self, output: usize) -> f32 {
        self.scales[output]
    }
}

/// Activations on the device, and what the product should take each row for.
struct Inputs {
    input: Input,
    /// None for a row of NaN, whose outputs are nobody's business.
    rows: Vec<Option<Vec<f64>>>,
}

impl Inputs {
    fn draw(random: &mut Rng, scope: &mut Scope<'_>, shape: &Shape) -> Result<Self, CheckError> {
        let (rows, width) = (shape.rows, shape.input);
        let mut residual: Vec<f32> = (0..rows * width).map(|_| normal(random, 1.0)).collect();
        // Padding of a bucket holds what happens to be there.
        let nan = (rows > 2).then(|| random.usize(..rows));
        if let Some(row) = nan {
            residual[row * width..][..width].fill(f32::NAN);
        }
        if shape.from == From::F16 {
            let stored = halves(&residual);
            let row =
                |row: usize| stored[row * width..][..width].iter().map(|&bits| half_value(bits)).collect();
            let rows = (0..rows).map(|i| (Some(i) != nan).then(|| row(i))).collect();
            return Ok(Self { input: Input::F16(scope.upload(&stored)?), rows });
        }
        let norm: Vec<f32> = (0..width).map(|_| 0.5 + random.f32()).collect();
        let gathered: Option<Vec<u32>> = (shape.from == From::Gathered).then(|| {
            let any =
                |random: &mut Rng| if random.u8(..4) == 0 { u32::MAX } else { random.u32(..rows as u32) };
            (0..rows).map(|row| if row == 0 { rows as u32 - 1 } else { any(random) }).collect()
        });
        let input = Input::Normed {
            residual: scope.upload(&residual)?,
            norm: scope.upload(&norm)?,
            epsilon: EPSILON,
            gather: gathered.as_ref().map(|rows| scope.upload(rows)).transpose()?,
        };
        let normed = |row: u32| {
            if row == u32::MAX {
                return Some(vec![0.0; width]);
            }
            if Some(row as usize) == nan {
                return None;
            }
            let x = &residual[row as usize * width..][..width];
            let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
            let factor = (squares / width as f64 + f64::from(EPSILON)).sqrt().recip();
            Some(x.iter().zip(&norm).map(|(&x, &norm)| f64::from(x) * factor * f64::from(norm)).collect())
        };
        let rows =
            (0..rows).map(|row| normed(gathered.as_ref().map_or(row as u32, |rows| rows[row]))).collect();
        Ok(Self { input, rows })
    }
}

/// Where results go, and what is added to them.
struct Outputs {
    epilogue: Epilogue,
    /// What each buffer has before a run, and the buffer.
    buffers: Vec<(Vec<u8>, Buffer)>,
    bias: Vec<f32>,
    positions: Vec<u32>,
    slots: Vec<u32>,
}

const MAX_POSITION: u32 = 50;

impl Outputs {
    fn draw(random: &mut Rng, scope: &mut Scope<'_>, shape: &Shape) -> Result<Self, CheckError> {
        let (rows, width) = (shape.rows, shape.spec().output);
        let poison = |bytes: usize| vec![0xff; bytes];
        let bias: Vec<f32> = (0..width).map(|_| normal(random, 0.3)).collect();
        let (mut positions, mut slots) = (Vec::new(), Vec::new());
        let mut buffers = Vec::new();
        let mut add = |scope: &mut Scope<'_>, before: Vec<u8>| -> Result<Buffer, CheckError> {
            let buffer = scope.upload(&before)?;
            buffers.push((before, buffer));
            Ok(buffer)
        };
        let epilogue = match shape.kind {
            Kind::Store => Epilogue::StoreF32 { to: add(scope, poison(4 * rows * width))?, bias: None },
            Kind::StoreBias => {
                let to = add(scope, poison(4 * rows * width))?;
                Epilogue::StoreF32 { to, bias: Some(scope.upload(&bias)?) }
            }
            Kind::Add => {
                let before: Vec<f32> = (0..rows * width).map(|_| normal(random, 1.0)).collect();
                Epilogue::AddF32 { to: add(scope, bytemuck::cast_slice(&before).to_vec())? }
            }
            Kind::Gated => Epilogue::GatedF16 { to: add(scope, poison(rows * width))? },
            Kind::Qkv(kv) => {
                let [heads, kv_heads, head_dim] = shape.heads;
                positions = (0..rows).map(|_| random.u32(..MAX_POSITION)).collect();
                let blocks = rows.div_ceil(BLOCK_TOKENS) + 2;
                slots = (0..(blocks * BLOCK_TOKENS) as u32).collect();
                random.shuffle(&mut slots);
                slots.truncate(rows);
                if rows > 3 {
                    slots[random.usize(..rows)] = u32::MAX;
                }
                let turn = |position: u32, i: usize| {
                    let angle = f64::from(position) * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64);
                    [angle.cos() as f32, angle.sin() as f32]
                };
                let rotary: Vec<[f32; 2]> = (0..MAX_POSITION)
                    .flat_map(|position| (0..head_dim / 2).map(move |i| turn(position, i)))
                    .collect();
                Epilogue::Qkv(QkvEpilogue {
                    bias: Some(scope.upload(&bias)?),
                    positions: scope.upload(&positions)?,
                    slots: scope.upload(&slots)?,
                    rotary: scope.upload(&rotary)?,
                    queries: add(scope, poison(2 * rows * heads * head_dim))?,
                    keys: add(scope, poison(blocks * kv_block_bytes(kv, kv_heads, head_dim)))?,
                    values: add(scope, poison(blocks * kv_block_bytes(kv, kv_heads, head_dim)))?,
                    kv,
                })
            }
        };
        Ok(Self { epilogue, buffers, bias, positions, slots })
    }

    fn reset(&self, scope: &mut Scope<'_>) -> Result<(), CheckError> {
        for (before, buffer) in &self.buffers {
            scope.device.upload(before, *buffer)?;
        }
        Ok(())
    }

    fn bytes(&self, scope: &mut Scope<'_>) -> Result<Vec<Vec<u8>>, CheckError> {
        self.buffers.iter().map(|(_, buffer)| Ok(scope.download(*buffer)?)).collect()
    }

    /// The error of the rows that were checked; `sums` has for each what the product should be, or nothing.
    fn compare(
        &self,
        shape: &Shape,
        got: &[Vec<u8>],
        checked: &[usize],
        sums: &[Vec<f64>],
    ) -> Result<f64, CheckError> {
        let width = shape.spec().output;
        let rows = checked.iter().zip(sums).filter(|(_, sums)| !sums.is_empty());
        let f32_at = |i: usize| f64::from(bytemuck::pod_read_unaligned::<f32>(&got[0][4 * i..4 * i + 4]));
        let f16_at = |i: usize| half_value(bytemuck::pod_read_unaligned(&got[0][2 * i..2 * i + 2]));
        let (mut values, mut wanted) = (Vec::new(), Vec::new());
        for (&row, sums) in rows.clone() {
            match shape.kind {
                Kind::Store | Kind::StoreBias | Kind::Add => {
                    values.extend((0..width).map(|i| f32_at(row * width + i)));
                    wanted.extend(sums.iter().enumerate().map(|(i, sum)| {
                        let at = 4 * (row * width + i);
                        sum + match shape.kind {
                            Kind::StoreBias => f64::from(self.bias[i]),
                            Kind::Add => {
                                f64::from(bytemuck::pod_read_unaligned::<f32>(&self.buffers[0].0[at..at + 4]))
                            }
                            _ => 0.0,
                        }
                    }));
                }
                Kind::Gated => {
                    let half = width / 2;
                    values.extend((0..half).map(|i| f16_at(row * half + i)));
                    wanted.extend((0..half).map(|i| sums[i] / (1.0 + (-sums[i]).exp()) * sums[half + i]));
                }
                Kind::Qkv(_) => {
                    let queries = shape.heads[0] * shape.heads[2];
                    values.extend((0..queries).map(|i| f16_at(row * queries + i)));
                    wanted.extend(&self.rotated(shape, row, sums)[..queries]);
                }
            }
        }
        let mut error = relative_error(values, &wanted);
        if let Kind::Qkv(kv) = shape.kind {
            for (row, sums) in rows {
                error = worse(error, self.compare_cached(shape, kv, got, *row, sums));
            }
            self.check_untouched(shape, kv, got)?;
        }
        Ok(error)
    }

    /// A row's queries, keys and values: biased, and the first two rotated.
    fn rotated(&self, shape: &Shape, row: usize, sums: &[f64]) -> Vec<f64> {
        let [heads, kv_heads, head_dim] = shape.heads;
        let mut biased: Vec<f64> =
            sums.iter().zip(&self.bias).map(|(sum, &bias)| sum + f64::from(bias)).collect();
        for head in biased.chunks_mut(head_dim).take(heads + kv_heads) {
            let (low, high) = head.split_at_mut(head_dim / 2);
            for (i, (low, high)) in low.iter_mut().zip(high).enumerate() {
                let angle = f64::from(self.positions[row]) * 1e4f64.powf(-2.0 * i as f64 / head_dim as f64);
                let (sin, cos) = (angle % (2.0 * PI)).sin_cos();
                (*low, *high) = (*low * cos - *high * sin, *high * cos + *low * sin);
            }
        }
        biased
    }

    /// The error of a row's keys and values in the cache.
    fn compare_cached(&self, shape: &Shape, kv: KvFormat, got: &[Vec<u8>], row: usize, sums: &[f64]) -> f64 {
        if self.slots[row] == u32::MAX {
            return 0.0;
        }
        let [heads, kv_heads, head_dim] = shape.heads;
        let rotated = self.rotated(shape, row, sums);
        let mut error = 0.0;
        for (cache, first_head) in [(&got[1], heads), (&got[2], heads + kv_heads)] {
            let cached = (0..kv_heads).flat_map(|head| {
                (0..head_dim).map(move |i| {
                    let at = cached_at(shape, self.slots[row], head) + i;
                    match kv {
                        KvFormat::F16 => half_value(bytemuck::pod_read_unaligned(&cache[2 * at..2 * at + 2])),
                        KvFormat::F8 => f64::from(float8::to_f32(cache[at])),
                    }
                })
            });
            error = worse(
                error,
                relative_error(cached, &rotated[first_head * head_dim..][..kv_heads * head_dim]),
            );
        }
        error
    }

    /// Slots that are no row's still have what was there.
    fn check_untouched(&self, shape: &Shape, kv: KvFormat, got: &[Vec<u8>]) -> Result<(), CheckError> {
        let [_, kv_heads, head_dim] = shape.heads;
        let vector = head_dim * kv.bytes();
        for cache in &got[1..] {
            let mut free = vec![true; cache.len() / vector];
            for &slot in self.slots.iter().filter(|&&slot| slot != u32::MAX) {
                for head in 0..kv_heads {
                    free[cached_at(shape, slot, head) / head_dim] = false;
                }
            }
            for (bytes, free) in cache.chunks(vector).zip(free) {
                if free && bytes.iter().any(|&byte| byte != 0xff) {
                    return Err(CheckError::Wrong(
                        "a slot of the cache that is no row's was written".to_owned(),
                    ));
                }
            }
        }
        Ok(())
    }
}

/// Where a head's vector of a slot begins, in numbers.
fn cached_at(shape: &Shape, slot: u32, head: usize) -> usize {
    let [_, kv_heads, head_dim] = shape.heads;
    let slot = slot as usize;
    ((slot / BLOCK_TOKENS * kv_heads + head) * BLOCK_TOKENS + slot % BLOCK_TOKENS) * head_dim
}

/// Tokens of all kinds, against the table itself: nothing is rounded, so nothing may differ.
fn check_embedding(
    device: &mut dyn Device,
    seed: u64,
    format: Option<Format>,
) -> Result<Measured, CheckError> {
    const STRIDE: usize = 32;
    let (tokens, hidden, rows) = (777, 320, 12);
    let random = &mut Rng::with_seed(seed);
    let mut scope = Scope::new(device);
    let spec = LinearSpec {
        format: format.unwrap_or(Format::F16),
        input: hidden,
        output: tokens,
        pairing: Pairing::Plain,
    };
    let weights = Weights::draw(random, &spec)?;
    let linear = Linear { spec, weights: scope.upload(&weights.packed)? };
    let plain = scope.upload(&halves(&weights.values))?;
    let table = if format.is_some() { EmbeddingTable::Tied(&linear) } else { EmbeddingTable::Plain(plain) };

    let drawn: Vec<u32> = (0..5).map(|_| random.u32(..tokens as u32)).collect();
    let mut records = vec![0xffu8; drawn.len() * STRIDE];
    for (record, token) in records.chunks_mut(STRIDE).zip(&drawn) {
        record[..4].copy_from_slice(&token.to_le_bytes());
    }
    let mut asked: Vec<u32> = (0..rows).map(|_| random.u32(..tokens as u32)).collect();
    asked[..4].copy_from_slice(&[0, tokens as u32 - 1, u32::MAX, tokens as u32]);
    let mut wanted: Vec<Option<u32>> =
        asked.iter().map(|&token| Some(token).filter(|&t| t < tokens as u32)).collect();
    for row in [5, 9] {
        let record = random.usize(..drawn.len());
        asked[row] = 1 << 31 | record as u32;
        wanted[row] = Some(drawn[record]);
    }
    let to = scope.poisoned(4 * rows * hidden)?;
    let asked =
        Tokens { tokens: scope.upload(&asked)?, drawn: scope.upload(&records)?, drawn_stride: STRIDE };
    embed(scope.device, table, asked, rows, hidden, to)?;
    for (row, (got, token)) in scope.download::<f32>(to)?.chunks(hidden).zip(wanted).enumerate() {
        let zeros = vec![0.0; hidden];
        let want = token.map_or(&zeros[..], |token| &weights.values[token as usize * hidden..][..hidden]);
        if got != want {
            return Err(CheckError::Wrong(format!("row {row} is not that of token {token:?}")));
        }
    }
    Ok(Measured { error: 0.0, tolerance: 0.0 })
}
