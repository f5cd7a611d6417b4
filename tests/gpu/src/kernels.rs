//! What each kernel reaches of what the card can do, in the shapes of a real model.
//!
//! A kernel is launched once for every layer, each time on that layer's own weights, as in a step of the model, and
//! all of it is one recording: so nothing is served from a cache that a step would not have, and launches overlap
//! as they do in a step.

use std::fmt::Write;

use half::f16;
use redstart_engine::config::ModelConfig;
use redstart_engine::cuda::random_matrix;
use redstart_kernels::attention::{self, Attention, AttentionShape, KvFormat, SequenceRows, Variant};
use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::linear::{
    self, Epilogue, Format, Input, Linear, LinearSpec, Pairing, QkvEpilogue, Scratch, ScratchSize,
};
use redstart_kernels::machine::{self, Rates, median_us};

/// One kernel on one shape.
#[derive(Clone, Debug)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// Bytes that one launch must move at least.
    pub bytes: u64,
    /// Operations that it must do.
    pub operations: u64,
    /// Median time of one launch in microseconds.
    pub us: f64,
}

impl Row {
    /// The time in microseconds that the card takes to copy as many bytes, or to multiply as much, whichever is longer.
    pub fn floor_us(&self, rates: &Rates) -> f64 {
        1e6 * (self.bytes as f64 / rates.copy).max(self.operations as f64 / rates.matrix)
    }
}

/// The card's rates, and the rows as a Markdown table.
pub fn table(rows: &[Row], rates: &Rates) -> String {
    let mut text = format!(
        "The card reads {:.0} GB/s, copies {:.0} GB/s (read and written bytes together) and multiplies {:.0} TFLOP/s\n\
         with mma.sync. A floor is what copying as many bytes or multiplying as much would take, whichever is longer;\n\
         a share is floor over time. Most kernels write next to nothing, and a card may read faster than it copies:\n\
         then a share can be above 100 %.\n\n\
         | kernel | MB | GFLOP | floor | measured | share |\n|---|---|---|---|---|---|\n",
        rates.read / 1e9,
        rates.copy / 1e9,
        rates.matrix / 1e12
    );
    for row in rows {
        let floor = row.floor_us(rates);
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "| {} | {:.2} | {:.2} | {floor:.1} us | {:.1} us | {:.0} % |",
            row.name,
            row.bytes as f64 / 1e6,
            row.operations as f64 / 1e9,
            row.us,
            100.0 * floor / row.us
        );
    }
    text
}

/// Measures the products, the attention and the head of a model of this shape, with int4 weights in groups of
/// 128, at each number of rows, with `context` tokens in the cache before them.
///
/// # Errors
/// When the memory does not suffice or the device failed.
pub fn measure(
    device: &mut dyn Device,
    config: &ModelConfig,
    rows: &[usize],
    context: u32,
) -> Result<Vec<Row>, DeviceError> {
    let mut bench = Bench::new(device, config, rows.iter().copied().max().unwrap_or(1), context)?;
    let mut results = Vec::new();
    for &rows in rows {
        results.extend(bench.products(rows)?);
        results.push(bench.attention(rows)?);
        results.extend(bench.heads(rows.min(linear::STREAM_ROWS))?);
    }
    bench.end();
    Ok(results)
}

struct Bench<'a> {
    device: &'a mut dyn Device,
    config: &'a ModelConfig,
    /// Tokens in the cache.
    context: u32,
    /// Everything that was allocated, to be given back.
    memory: Vec<Buffer>,
    /// fp32 `[rows][widest]`: the residual stream, and anything else that is fp32.
    floats: Buffer,
    /// fp16 `[rows][widest]`, small numbers.
    halves: Buffer,
    /// fp16 outputs.
    out: Buffer,
    /// fp32 ones.
    norm: Buffer,
    /// u32 `[rows]`: positions from the context on; and the slots they are appended at.
    positions: Buffer,
    rotary: Buffer,
    scratch: Scratch,
    attention_scratch: Buffer,
    /// A layer's keys, and its values: the same memory for all layers is measured apart.
    caches: Vec<[Buffer; 2]>,
    block_table: Buffer,
    items: Buffer,
    layers: Vec<[Linear; 4]>,
    heads: Vec<(&'static str, Linear)>,
}

impl<'a> Bench<'a> {
    fn new(
        device: &'a mut dyn Device,
        config: &'a ModelConfig,
        rows: usize,
        context: u32,
    ) -> Result<Self, DeviceError> {
        let mut memory = Vec::new();
        let specs = specs(config);
        let head_specs = [("head fp16", Format::F16), ("head int8", Format::Int8)].map(|(name, format)| {
            let (input, output) = (config.hidden_size, config.vocab_size);
            (name, LinearSpec { format, input, output, pairing: Pairing::Plain })
        });
        let mut seed = 0;
        let mut random = |device: &mut dyn Device, spec: LinearSpec| {
            seed += 1;
            random_matrix(device, spec, seed)
        };
        let mut layers: Vec<[Linear; 4]> = Vec::new();
        for _ in 0..config.num_layers {
            let [qkv, o, gate_up, down] = specs.map(|spec| random(device, spec));
            layers.push([qkv?, o?, gate_up?, down?]);
        }
        let mut heads = Vec::new();
        for (name, spec) in head_specs {
            heads.push((name, random(device, spec)?));
        }
        memory.extend(
            layers.iter().flatten().chain(heads.iter().map(|(_, head)| head)).map(|linear| linear.weights),
        );
        let mut take = |device: &mut dyn Device, bytes: usize| {
            let buffer = device.allocate(bytes, "measuring kernels")?;
            memory.push(buffer);
            Ok::<Buffer, DeviceError>(buffer)
        };

        let widest = specs.iter().map(|spec| spec.input.max(spec.output)).max().expect("four");
        let mut size = ScratchSize::default();
        for rows in 1..=rows {
            let specs = specs.iter().chain(head_specs.iter().map(|(_, spec)| spec));
            size = specs
                .map(|spec| linear::scratch_size(spec, rows, device.properties()))
                .fold(size, ScratchSize::max);
        }
        let scratch = Scratch {
            partials: take(device, size.partials.max(256))?,
            counters: take(device, size.counters.max(256))?,
        };
        device.fill(scratch.counters, 0)?;

        let blocks = (context as usize + rows).div_ceil(attention::BLOCK_TOKENS);
        let cache_bytes = blocks * config.num_kv_heads * attention::BLOCK_TOKENS * config.head_dim * 2;
        let mut caches = Vec::new();
        for _ in 0..config.num_layers {
            caches.push([take(device, cache_bytes)?, take(device, cache_bytes)?]);
        }
        let mut bench = Self {
            floats: take(
                device,
                4 * rows.min(linear::STREAM_ROWS) * config.vocab_size.max(widest) + 4 * rows * widest,
            )?,
            halves: take(device, 2 * rows * widest)?,
            out: take(device, 2 * rows * widest)?,
            norm: take(device, 4 * config.hidden_size)?,
            positions: take(device, 4 * rows)?,
            rotary: take(device, (context as usize + rows) * config.head_dim * 4)?,
            scratch,
            attention_scratch: take(device, 256 << 20)?,
            caches,
            block_table: take(device, 4 * blocks)?,
            items: take(device, 32 * (rows * config.num_heads).max(1))?,
            layers,
            heads,
            device,
            config,
            context,
            memory,
        };
        bench.fill(rows, blocks)?;
        Ok(bench)
    }

    /// Contents that are neither zero nor too large.
    fn fill(&mut self, rows: usize, blocks: usize) -> Result<(), DeviceError> {
        let mut random = fastrand::Rng::with_seed(7);
        let small: Vec<u16> =
            std::iter::repeat_with(|| f16::from_f32(random.f32() - 0.5).to_bits()).take(1 << 16).collect();
        let from = self.device.allocate(2 * small.len(), "measuring kernels")?;
        self.memory.push(from);
        self.device.upload(bytemuck::cast_slice(&small), from)?;
        machine::repeat(self.device, from, self.halves)?;
        for [keys, values] in &self.caches {
            machine::repeat(self.device, from, *keys)?;
            machine::repeat(self.device, from, *values)?;
        }
        for ones in [self.floats, self.norm, self.rotary] {
            let one = from.slice(0, 4);
            self.device.upload(&1.0f32.to_le_bytes(), one)?;
            machine::repeat(self.device, one, ones)?;
        }
        let positions: Vec<u32> = (self.context..self.context + rows as u32).collect();
        self.device.upload(bytemuck::cast_slice(&positions), self.positions)?;
        let mut table: Vec<u32> = (0..blocks as u32).collect();
        random.shuffle(&mut table);
        self.device.upload(bytemuck::cast_slice(&table), self.block_table)
    }

    /// The four products of a layer, at so many rows.
    fn products(&mut self, rows: usize) -> Result<Vec<Row>, DeviceError> {
        let (hidden, fused) = (self.config.hidden_size, linear::fuses_norm(rows));
        let normed = if fused {
            Input::Normed { residual: self.floats, norm: self.norm, epsilon: 1e-6, gather: None }
        } else {
            Input::F16(self.halves)
        };
        let mut results = Vec::new();
        for (which, name) in ["qkv", "o", "gate+up", "down"].into_iter().enumerate() {
            let input = if which % 2 == 0 { normed } else { Input::F16(self.halves) };
            let layers: Vec<(Linear, Epilogue)> = (0..self.layers.len())
                .map(|layer| (self.layers[layer][which], self.epilogue(which, layer)))
                .collect();
            let scratch = self.scratch;
            let us = median_us(self.device, |device| {
                layers.iter().try_for_each(|(linear, epilogue)| {
                    linear::run(device, linear, rows, input, *epilogue, &scratch)
                })
            })?;
            let spec = self.layers[0][which].spec;
            let traffic = linear::traffic(&spec, rows, [2, 8, 1, 8][which]);
            let norm = if which % 2 == 0 && fused { "norm+" } else { "" };
            results.push(Row {
                name: format!("{norm}{name} {hidden}: {}x{}, {rows} rows", spec.input, spec.output),
                bytes: traffic.bytes(),
                operations: traffic.operations,
                us: us / self.layers.len() as f64,
            });
        }
        Ok(results)
    }

    fn epilogue(&self, which: usize, layer: usize) -> Epilogue {
        match which {
            0 => Epilogue::Qkv(QkvEpilogue {
                bias: None,
                positions: self.positions,
                // Any place of the cache will do.
                slots: self.positions,
                rotary: self.rotary,
                queries: self.out,
                keys: self.caches[layer][0],
                values: self.caches[layer][1],
                kv: KvFormat::F16,
            }),
            2 => Epilogue::GatedF16 { to: self.out },
            _ => Epilogue::AddF32 { to: self.floats },
        }
    }

    /// Attention of the last `rows` tokens of one sequence, the context's tokens before them.
    fn attention(&mut self, rows: usize) -> Result<Row, DeviceError> {
        let (config, context) = (self.config, self.context);
        let shape = AttentionShape {
            heads: config.num_heads as u32,
            kv_heads: config.num_kv_heads as u32,
            head_dim: config.head_dim as u32,
            kv: KvFormat::F16,
        };
        let sequence =
            SequenceRows { first_row: 0, rows: rows as u32, first_position: context, table_offset: 0 };
        let variant = Variant::choose(rows as u32, shape.group());
        let mut items = Vec::new();
        attention::plan_items(&[sequence], shape.group(), variant, &mut items);
        self.device.upload(bytemuck::cast_slice(&items), self.items)?;
        let multiprocessors = self.device.properties().multiprocessors;
        let count = items.len() as u32;
        let splits =
            attention::choose_splits(variant, count, shape.kv_heads, context + rows as u32, multiprocessors);
        let launches: Vec<Attention> = self
            .caches
            .iter()
            .map(|&[keys, values]| Attention {
                items: self.items,
                item_capacity: count,
                variant,
                splits,
                q: self.halves,
                keys,
                values,
                block_tables: self.block_table,
                out: self.out,
                scratch: self.attention_scratch,
            })
            .collect();
        let us = median_us(self.device, |device| {
            launches.iter().try_for_each(|launch| attention::run(device, &shape, launch))
        })?;
        let traffic = attention::traffic(&shape, &[sequence]);
        Ok(Row {
            name: format!("attention over {context}, {rows} rows, {splits} splits"),
            bytes: traffic.bytes,
            operations: traffic.operations,
            us: us / launches.len() as f64,
        })
    }

    /// The output head in both formats.
    fn heads(&mut self, rows: usize) -> Result<Vec<Row>, DeviceError> {
        let (floats, scratch) = (self.floats, self.scratch);
        let input = Input::Normed { residual: floats, norm: self.norm, epsilon: 1e-6, gather: None };
        let mut results = Vec::new();
        for (name, linear) in self.heads.clone() {
            // The logits lie behind the rows that are read.
            let read = 4 * rows * linear.spec.input;
            let to = floats.slice(read, 4 * rows * linear.spec.output);
            let us = median_us(self.device, |device| {
                linear::run(device, &linear, rows, input, Epilogue::StoreF32 { to, bias: None }, &scratch)
            })?;
            let traffic = linear::traffic(&linear.spec, rows, 4);
            results.push(Row {
                name: format!("norm+{name}, {rows} rows"),
                bytes: traffic.bytes(),
                operations: traffic.operations,
                us,
            });
        }
        Ok(results)
    }

    fn end(self) {
        for buffer in self.memory {
            self.device.free(buffer);
        }
    }
}

/// The products of a layer.
fn specs(config: &ModelConfig) -> [LinearSpec; 4] {
    let format = Format::Int4 { group: 128 };
    let heads = config.num_heads * config.head_dim;
    let qkv =
        Pairing::Qkv { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim: config.head_dim };
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let kv = 2 * config.num_kv_heads * config.head_dim;
    [
        LinearSpec { format, input: hidden, output: heads + kv, pairing: qkv },
        LinearSpec { format, input: heads, output: hidden, pairing: Pairing::Plain },
        LinearSpec { format, input: hidden, output: 2 * inner, pairing: Pairing::Gated },
        LinearSpec { format, input: inner, output: hidden, pairing: Pairing::Plain },
    ]
}
