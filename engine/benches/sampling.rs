//! How long it takes to draw a token and to tell its log-probability, from the vocabularies of the embedded model and of Qwen2.5:
//! `cargo bench -p redstart-engine --bench sampling`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use redstart_engine::request::SamplingParams;
use redstart_engine::sampling::{Draw, top_logprobs};

const VOCABULARIES: [usize; 2] = [8_192, 151_936];

/// Logits as a model that is not sure gives them: roughly normal, with a standard deviation of 2.
fn logits(vocab: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    (0..vocab).map(|_| ((0..12).map(|_| uniform()).sum::<f32>() - 6.0) * 2.0).collect()
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("sampling");
    for vocab in VOCABULARIES {
        let logits = logits(vocab);
        group.throughput(Throughput::Elements(vocab as u64));
        for (name, temperature, top_p) in [("greedy", 0.0, 1.0), ("all", 1.0, 1.0), ("top-p", 1.0, 0.95)] {
            let params = SamplingParams { temperature, top_p, ..SamplingParams::default() };
            let mut position = 0;
            group.bench_function(BenchmarkId::new(name, vocab), |bencher| {
                bencher.iter(|| {
                    position += 1;
                    Draw::new(&params, 7, position).choose(&logits)
                });
            });
        }
        group.bench_function(BenchmarkId::new("log-probability", vocab), |bencher| {
            bencher.iter(|| top_logprobs(&logits, 1));
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
