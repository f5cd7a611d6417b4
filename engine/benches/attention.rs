//! How fast attention is, in the shapes of Qwen2.5-Coder: `cargo bench -p redstart-engine --bench attention`.
//!
//! One layer is measured with its share of the cache; a step of a model takes as many times that as it has
//! layers. Decoding goes through all layers, since one layer's cache would stay near the processor. Prefill and
//! tails are counted in elements of 2 floating-point operations each, so `Gelem/s` is half of GFLOP/s;
//! decoding in bytes of keys and values. Each case is measured with the cache in fp16 and in int8, one after the
//! other.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use redstart_engine::config::ModelConfig;
use redstart_engine::cpu::Isa;
use redstart_engine::cpu::attention::{Attention, AttentionKernels, KvCache, KvFormat};
use redstart_engine::cpu::threads::{ThreadPool, default_threads};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};

/// Heads and layers of a model.
struct Shape {
    name: &'static str,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
    layers: usize,
}

const SHAPES: [Shape; 2] = [
    Shape { name: "0.5B", num_heads: 14, num_kv_heads: 2, head_dim: 64, layers: 24 },
    Shape { name: "1.5B", num_heads: 12, num_kv_heads: 2, head_dim: 128, layers: 28 },
];

/// `(rows, positions before them)`.
const PREFILLS: [(usize, usize); 5] = [(512, 0), (2048, 0), (4096, 0), (16, 512), (16, 4096)];
const DECODES: [usize; 3] = [2048, 4096, 8192];
const FORMATS: [KvFormat; 2] = [KvFormat::F16, KvFormat::Int8];

/// One sequence in a cache of its own.
struct Bench {
    attention: Attention,
    pool: ThreadPool,
    cache: KvCache,
    /// Of all layers.
    block_bytes: usize,
    layers: usize,
    width: usize,
    plan: StepPlan,
    qkv: Vec<f32>,
    output: Vec<f32>,
}

impl Bench {
    /// A step of `rows` rows after `depth` positions, whose keys and values are in the cache.
    fn new(shape: &Shape, format: KvFormat, layers: usize, rows: usize, depth: usize) -> Self {
        let json = serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "hidden_size": shape.num_heads * shape.head_dim, "num_hidden_layers": layers,
            "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads,
            "head_dim": shape.head_dim, "intermediate_size": 64, "vocab_size": 64,
            "rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768,
            "tie_word_embeddings": true
        });
        let config = ModelConfig::parse(json.to_string().as_bytes(), None).expect("a valid configuration");
        let kernels = AttentionKernels::new(Isa::best()).expect("the machine's own instruction set");
        let threads = default_threads();
        let blocks = (depth + rows).div_ceil(BLOCK_SIZE);
        let mut bench = Self {
            attention: Attention::new(kernels, &config, threads),
            pool: ThreadPool::new(threads).expect("threads"),
            cache: KvCache::new(&config, format, blocks).expect("memory for the cache"),
            block_bytes: KvCache::block_bytes(&config, format),
            layers,
            width: (shape.num_heads + 2 * shape.num_kv_heads) * shape.head_dim,
            plan: StepPlan::default(),
            qkv: Vec::new(),
            output: vec![0.0; rows * shape.num_heads * shape.head_dim],
        };
        for start in (0..depth).step_by(512) {
            bench.plan(start, 512.min(depth - start));
            bench.append();
        }
        bench.plan(depth, rows);
        bench
    }

    fn plan(&mut self, start: usize, rows: usize) {
        let blocks = (start + rows).div_ceil(BLOCK_SIZE) as u32;
        self.plan = StepPlan {
            tokens: vec![0; rows],
            positions: (start as u32..(start + rows) as u32).collect(),
            sequences: vec![PlannedSequence { rows: 0..rows, block_table: (0..blocks).collect() }],
            logits_rows: Vec::new(),
            ..StepPlan::default()
        };
        // Without structure, so that no two positions are alike.
        let elements = start * self.width..(start + rows) * self.width;
        self.qkv = elements.map(|i| (i.wrapping_mul(0x9e37_79b9) as u16 as f32) / 32768.0 - 1.0).collect();
    }

    fn append(&mut self) {
        self.attention.prepare(&self.plan);
        for layer in 0..self.layers {
            self.attention.append(&mut self.pool, &self.plan, &mut self.cache, layer, &self.qkv);
        }
    }

    fn step(&mut self) {
        self.attention.prepare(&self.plan);
        for layer in 0..self.layers {
            let Self { attention, pool, plan, cache, qkv, output, .. } = self;
            attention.append(pool, plan, cache, layer, qkv);
            attention.run(pool, plan, cache, layer, qkv, output);
        }
    }
}

fn measure(group: &mut BenchmarkGroup<'_, WallTime>, name: String, throughput: Throughput, mut bench: Bench) {
    group.throughput(throughput);
    group.bench_function(name, |b| b.iter(|| bench.step()));
}

fn attention(criterion: &mut Criterion) {
    for shape in &SHAPES {
        let mut group = criterion.benchmark_group(shape.name);
        group.sample_size(10);
        for (rows, depth) in PREFILLS {
            // A score and its weighted value: one multiplication and addition each per element of a head.
            let pairs: usize = (depth + 1..=depth + rows).sum();
            let work = Throughput::Elements((2 * pairs * shape.num_heads * shape.head_dim) as u64);
            for format in FORMATS {
                let name = format!("{rows} rows after {depth}, one layer, {format:?}");
                measure(&mut group, name, work.clone(), Bench::new(shape, format, 1, rows, depth));
            }
        }
        for depth in DECODES {
            for format in FORMATS {
                let bench = Bench::new(shape, format, shape.layers, 1, depth);
                let bytes = Throughput::Bytes((bench.block_bytes * (depth + 1) / BLOCK_SIZE) as u64);
                let name = format!("decode after {depth}, {} layers, {format:?}", shape.layers);
                measure(&mut group, name, bytes, bench);
            }
        }
    }
}

criterion_group!(benches, attention);
criterion_main!(benches);
