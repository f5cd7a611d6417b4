//! Single-stream speed of the CPU backend on a model directory: decode and prefill tokens per second.
//!
//! `cargo run --release -p redstart-engine --example cpu_speed -- models/nano`

#![expect(clippy::print_stdout, reason = "a command-line measurement; stdout is for its figures")]

use std::path::Path;
use std::time::Instant;

use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions, Isa};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};

const PROMPT: usize = 512;
const DECODED: usize = 128;
const REPEATS: usize = 7;

fn plan(first: usize, count: usize, vocabulary: usize, round: usize) -> StepPlan {
    // Other tokens in every round, so that nothing is measured on data that is already warm.
    let token = |position: usize| ((position * 7919 + round * 104_729) % vocabulary) as u32;
    StepPlan {
        tokens: (first..first + count).map(token).collect(),
        positions: (first..first + count).map(|position| position as u32).collect(),
        sequences: vec![PlannedSequence {
            rows: 0..count,
            block_table: (0..(first + count).div_ceil(BLOCK_SIZE) as u32).collect(),
        }],
        logits_rows: vec![count as u32 - 1],
        ..StepPlan::default()
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let directory = std::env::args().nth(1).unwrap_or_else(|| "models/nano".into());
    let checkpoint = Checkpoint::open(Path::new(&directory))?;
    for isa in Isa::ALL.into_iter().filter(|isa| *isa != Isa::Portable && isa.is_available()) {
        for (threads, exact) in [(1, false), (2, false), (2, true)] {
            let started = Instant::now();
            let options =
                CpuOptions { threads: Some(threads), exact, isa: Some(isa), ..CpuOptions::default() };
            let mut backend = CpuBackend::new(&checkpoint, options)?;
            let load = started.elapsed();
            backend.allocate_kv((PROMPT + DECODED).div_ceil(BLOCK_SIZE))?;
            let (mut prefill, mut decode, mut logits) = (Vec::new(), Vec::new(), Vec::new());
            for round in 0..REPEATS {
                let prompt = plan(0, PROMPT, backend.vocab_size(), round);
                let started = Instant::now();
                backend.forward(&prompt, &mut logits)?;
                prefill.push(PROMPT as f64 / started.elapsed().as_secs_f64());
                let steps: Vec<StepPlan> =
                    (0..DECODED).map(|i| plan(PROMPT + i, 1, backend.vocab_size(), round)).collect();
                let started = Instant::now();
                for step in &steps {
                    backend.forward(step, &mut logits)?;
                }
                decode.push(DECODED as f64 / started.elapsed().as_secs_f64());
            }
            prefill.sort_by(f64::total_cmp);
            decode.sort_by(f64::total_cmp);
            println!(
                "{}, {}: load {load:.0?}; prefill {PROMPT}: median {:.0} best {:.0} tok/s; decode at {PROMPT}: median {:.0} best {:.0} tok/s",
                checkpoint.name(),
                backend.name(),
                prefill[REPEATS / 2],
                prefill[REPEATS - 1],
                decode[REPEATS / 2],
                decode[REPEATS - 1],
            );
        }
    }
    Ok(())
}
