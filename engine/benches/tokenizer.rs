//! Encoding a line of code: ours beside the library, one line after the other, and with 48 MB written before each, which
//! leaves nothing of it in the processor's caches, as between two keys. `cargo bench -p redstart-engine --bench tokenizer`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use redstart_engine::tokenizer::Tokenizer;

const OTHER_WORK: usize = 48 << 20;

fn encode(criterion: &mut Criterion) {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/nano/tokenizer.json");
    let bytes = std::fs::read(file).expect("the embedded tokenizer");
    let ours = Tokenizer::from_bytes(&bytes).expect("a tokenizer");
    let library = tokenizers::Tokenizer::from_bytes(&bytes).expect("a tokenizer");
    let code = include_str!("../src/tokenizer.rs");
    let lines: Vec<&str> = code.split_inclusive('\n').filter(|line| line.len() > 30).collect();
    let mut other_work = vec![0u8; OTHER_WORK];

    let mut run = |name: &str, encode: &dyn Fn(&str) -> usize| {
        for cold in [false, true] {
            let name = format!("{name}/{}", if cold { "cold" } else { "warm" });
            criterion.bench_function(&name, |bench| {
                bench.iter_custom(|iterations| {
                    let mut time = Duration::ZERO;
                    for line in lines.iter().cycle().take(iterations as usize) {
                        if cold {
                            other_work.iter_mut().step_by(64).for_each(|byte| *byte = byte.wrapping_add(1));
                        }
                        let started = Instant::now();
                        black_box(encode(black_box(line)));
                        time += started.elapsed();
                    }
                    time
                });
            });
        }
    };
    run("ours", &|line| ours.encode(line).len());
    run("library", &|line| library.encode_fast(line, false).expect("encodes").len());
}

criterion_group!(benches, encode);
criterion_main!(benches);
