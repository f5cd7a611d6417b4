//! The CPU backend against reference checkpoints whose log-probabilities an independent
//! implementation computed in float64.
//!
//! Tolerances and what was measured against them are at [`EXACT`], [`DEFAULT`] and [`INT8_KV`]. Run with `--nocapture` to
//! see the figures of this machine.

#![expect(
    clippy::print_stdout,
    reason = "the measured maxima are for people to read; a test has no protocol channel"
)]

mod reference;

use std::path::Path;

use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions, Isa, KvFormat};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};
use reference::{
    CHECKPOINTS, Case, Errors, Harness, POOL_BLOCKS, Sequence, Tolerance, argmax, cases, oracle, root,
};

/// Activations in `f32`, KV in fp16. Largest measured over portable, AVX2 and AVX-512:
///
/// | checkpoint | mean | largest | NLL |
/// |---|---|---|---|
/// | tied-hd64 | 0.0017 | 0.0056 | 0.0010 |
/// | untied-hd128 | 0.0010 | 0.0034 | 0.0004 |
/// | group64-fp16head | 0.0007 | 0.0023 | 0.0002 |
/// | qwen3-bf16 | 0.0019 | 0.0075 | 0.0006 |
const EXACT: Tolerance = Tolerance { largest: 0.03, mean: 0.01, nll: 0.01, margin: 0.05 };

/// Activations rounded to two int8 digits, to one for the gate and up layers; the vocabulary's likeliest tiles exact: what
/// serves users. Largest measured over portable, AVX2, AVX-VNNI and AVX-512:
///
/// | checkpoint | mean | largest | NLL |
/// |---|---|---|---|
/// | tied-hd64 | 0.0324 | 0.1156 | 0.0069 |
/// | untied-hd128 | 0.0316 | 0.1141 | 0.0054 |
/// | group64-fp16head | 0.0235 | 0.0838 | 0.0040 |
/// | qwen3-bf16 (no layer is quantized; of two digits, only the head's input) | 0.0016 | 0.0079 | 0.0005 |
///
/// A single digit everywhere measured mean 0.107, 0.083 and 0.063, largest 0.32, 0.30 and 0.17; two everywhere 0.0019,
/// 0.0012 and 0.0010, largest 0.0066.
const DEFAULT: Tolerance = Tolerance { largest: 0.2, mean: 0.05, nll: 0.03, margin: 0.3 };

/// As [`DEFAULT`], with the cache in int8. Largest measured over portable (tied-hd64 only), AVX2 and AVX-512:
///
/// | checkpoint | mean | largest | NLL |
/// |---|---|---|---|
/// | tied-hd64 | 0.0485 | 0.1611 | 0.0226 |
/// | untied-hd128 | 0.0471 | 0.1490 | 0.0050 |
/// | group64-fp16head | 0.0375 | 0.1106 | 0.0126 |
/// | qwen3-bf16 (AVX-512 only) | 0.0482 | 0.1613 | 0.0302 |
///
/// So it stays inside what [`DEFAULT`] allows on each of the first three; in the mean barely on two, where
/// rounding elsewhere could tip it over, hence the room here. With exact activations the cache alone measured
/// mean 0.0327, 0.0355 and 0.0290, NLL 0.0280, 0.0129 and 0.0270.
const INT8_KV: Tolerance = Tolerance { largest: 0.25, mean: 0.06, nll: 0.04, margin: 0.3 };

/// The checkpoint on which the portable path is run with the cache in int8: the smallest.
const INT8_PORTABLE: &str = "tied-hd64";

fn harness(directory: &Path, options: CpuOptions) -> Harness<CpuBackend> {
    let checkpoint = Checkpoint::open(directory).unwrap();
    Harness::new(CpuBackend::new(&checkpoint, options).unwrap())
}

fn greedy(
    harness: &mut Harness<CpuBackend>,
    sequence: &mut Sequence,
    logits: &[f32],
    count: usize,
) -> Vec<u32> {
    let mut tokens = vec![argmax(logits)];
    while tokens.len() < count {
        let last = [tokens[tokens.len() - 1]];
        let logits = harness.step(&mut [(&mut *sequence, &last)], false);
        tokens.push(argmax(&logits[0]));
    }
    tokens
}

/// Every instruction set, exact and as by default. With the cache in int8, whose kernels are held together by
/// tests of their own, only the best one on all checkpoints, and the portable one on one of them.
fn modes(checkpoint: &str) -> impl Iterator<Item = (CpuOptions, Tolerance, String)> {
    let default = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let float_kv = Isa::ALL.into_iter().filter(|isa| isa.is_available()).flat_map(move |isa| {
        [(true, EXACT), (false, DEFAULT)].map(|(exact, tolerance)| {
            let options = CpuOptions { exact, isa: Some(isa), ..default };
            (options, tolerance, format!("{} {}", isa.name(), if exact { "exact" } else { "default" }))
        })
    });
    let portable = (checkpoint == INT8_PORTABLE).then_some(Isa::Portable);
    let int8_kv = [Isa::best()].into_iter().chain(portable).map(move |isa| {
        let options = CpuOptions { kv: KvFormat::Int8, isa: Some(isa), ..default };
        (options, INT8_KV, format!("{} int8 KV", isa.name()))
    });
    float_kv.chain(int8_kv)
}

#[test]
fn agrees_with_the_float64_reference() {
    for name in CHECKPOINTS {
        for (options, tolerance, mode) in modes(name) {
            let mut harness = harness(&oracle(name), options);
            let mut errors = Errors::default();
            for case in cases(&oracle(name)) {
                let mut sequence = Sequence::default();
                let logits = harness.feed(&mut sequence, &case.prompt, usize::MAX);
                errors.add_prompt(&case, &logits);
                let tokens =
                    greedy(&mut harness, &mut sequence, &logits[logits.len() - 1], case.greedy.len());
                errors.add_greedy(&case, &tokens, tolerance.margin);
                harness.free(sequence);
            }
            errors.check(&format!("{name}, {mode}"), tolerance);
        }
    }
}

/// The embedded model's recorded continuations, in all modes.
#[test]
fn nano_continues_as_recorded() {
    let directory = root().join("models/nano");
    for (options, tolerance, mode) in modes("nano") {
        let mut harness = harness(&directory, options);
        let mut errors = Errors::default();
        for case in cases(&directory) {
            let mut sequence = Sequence::default();
            let logits = harness.step(&mut [(&mut sequence, &case.prompt)], false);
            let tokens = greedy(&mut harness, &mut sequence, &logits[0], case.greedy.len());
            errors.add_greedy(&case, &tokens, tolerance.margin);
            harness.free(sequence);
        }
        println!("nano, {mode}: {} greedy tokens equal", errors.compared_tokens);
    }
}

/// Longest prompt of the bit-for-bit tests on the portable path, which is far slower.
const PORTABLE_PROMPT: usize = 70;

/// Logits after every prompt token, each prompt alone and in one step: what all other ways to run it
/// must reproduce bit for bit.
fn solo(directory: &Path, options: CpuOptions) -> (Harness<CpuBackend>, Vec<Case>, Vec<Vec<Vec<f32>>>) {
    let mut harness = harness(directory, options);
    let mut cases = cases(directory);
    if options.isa == Some(Isa::Portable) {
        cases.retain(|case| case.prompt.len() <= PORTABLE_PROMPT);
    }
    let logits = cases
        .iter()
        .map(|case| {
            let mut sequence = Sequence::default();
            let logits = harness.feed(&mut sequence, &case.prompt, usize::MAX);
            harness.free(sequence);
            logits
        })
        .collect();
    (harness, cases, logits)
}

#[test]
fn batch_changes_no_bit() {
    for name in CHECKPOINTS {
        for (options, _, mode) in modes(name) {
            let (mut harness, cases, expected) = solo(&oracle(name), options);
            let mut sequences = vec![Sequence::default(); cases.len()];
            let mut work: Vec<_> = sequences
                .iter_mut()
                .zip(&cases)
                .map(|(sequence, case)| (sequence, &case.prompt[..]))
                .collect();
            let logits = harness.step(&mut work, true);
            assert!(logits == expected.concat(), "{name}, {mode}: prompts batched together");

            // Each sequence decodes on its own recorded tokens, all in one step.
            let next: Vec<[u32; 1]> = cases.iter().map(|case| [case.greedy[0]]).collect();
            let mut work: Vec<_> =
                sequences.iter_mut().zip(&next).map(|(s, token)| (s, &token[..])).collect();
            let together = harness.step(&mut work, false);
            for ((case, token), together) in cases.iter().zip(&next).zip(&together) {
                let mut sequence = Sequence::default();
                harness.step(&mut [(&mut sequence, &case.prompt)], false);
                let alone = harness.step(&mut [(&mut sequence, token)], false);
                assert!(alone[0] == *together, "{name}, {mode}: decode batched together");
                harness.free(sequence);
            }
        }
    }
}

#[test]
fn chunked_prefill_changes_no_bit() {
    for name in CHECKPOINTS {
        for (options, _, mode) in modes(name) {
            let (mut harness, cases, expected) = solo(&oracle(name), options);
            for chunk in [1, 16, 37] {
                for (case, expected) in cases.iter().zip(&expected) {
                    let mut sequence = Sequence::default();
                    let logits = harness.feed(&mut sequence, &case.prompt, chunk);
                    assert!(logits == *expected, "{name}, {mode}, chunks of {chunk}");
                    harness.free(sequence);
                }
            }
        }
    }
}

/// A sequence that starts on blocks another one filled, and writes on into blocks full of old data.
#[test]
fn warm_cache_changes_no_bit() {
    for name in CHECKPOINTS {
        for (options, _, mode) in modes(name) {
            let (mut harness, cases, expected) = solo(&oracle(name), options);
            for (case, expected) in cases.iter().zip(&expected) {
                let mut first = Sequence::default();
                harness.feed(&mut first, &case.prompt, usize::MAX);
                // Everything but the last token is cached, in full blocks only.
                let cached_blocks = (case.prompt.len() - 1) / BLOCK_SIZE;
                let cached = cached_blocks * BLOCK_SIZE;
                let mut second =
                    Sequence { block_table: first.block_table[..cached_blocks].to_vec(), len: cached };
                // The first sequence's tail block is given back, so the second writes over it.
                harness.free.extend(first.block_table.drain(cached_blocks..));
                let logits = harness.feed(&mut second, &case.prompt[cached..], usize::MAX);
                assert!(logits == expected[cached..], "{name}, {mode}: {cached} tokens cached");
                harness.free(second);
            }
        }
    }
}

#[test]
fn threads_change_no_bit() {
    for name in CHECKPOINTS {
        for (options, _, mode) in modes(name) {
            let (_, _, expected) = solo(&oracle(name), CpuOptions { threads: Some(1), ..options });
            for threads in [2, 3] {
                let (_, _, logits) = solo(&oracle(name), CpuOptions { threads: Some(threads), ..options });
                assert!(logits == expected, "{name}, {mode}, {threads} threads");
            }
        }
    }
}

/// A step that nobody waits for runs on fewer threads, and the next one on all of them again.
#[test]
fn a_step_in_the_background_changes_no_bit() {
    let options = CpuOptions { threads: Some(4), ..CpuOptions::default() };
    let mut harness = harness(&oracle("tied-hd64"), options);
    let rows = 2 * BLOCK_SIZE as u32;
    let mut plan = StepPlan {
        tokens: (1..=rows).collect(),
        positions: (0..rows).collect(),
        sequences: vec![PlannedSequence { rows: 0..rows as usize, block_table: vec![0, 1] }],
        logits_rows: (0..rows).collect(),
        ..StepPlan::default()
    };
    let [foreground, background, again] = [false, true, false].map(|background| {
        plan.background = background;
        let mut logits = Vec::new();
        harness.backend.forward(&plan, &mut logits).unwrap();
        logits
    });
    assert!(foreground == background && foreground == again);
}

/// A plan that reaches outside what it owns is an error, and the backend goes on.
#[test]
fn malformed_plans_are_refused() {
    let mut harness = harness(&oracle("tied-hd64"), CpuOptions::default());
    let good = StepPlan {
        tokens: vec![1, 2],
        positions: vec![0, 1],
        sequences: vec![PlannedSequence { rows: 0..2, block_table: vec![0] }],
        logits_rows: vec![1],
        ..StepPlan::default()
    };
    type Damage = fn(&mut StepPlan);
    let damages: [(&str, Damage); 9] = [
        ("vocabulary", |plan| plan.tokens[0] = u32::MAX),
        ("positions", |plan| plan.positions.truncate(1)),
        ("ascend", |plan| plan.positions[1] = 5),
        ("do not reach position 16", |plan| plan.positions = vec![15, 16]),
        ("is beyond", |plan| plan.positions = vec![1_000_000, 1_000_001]),
        ("outside the pool", |plan| plan.sequences[0].block_table[0] = POOL_BLOCKS as u32),
        ("do not follow", |plan| plan.sequences[0].rows = 1..2),
        ("belong to no sequence", |plan| plan.sequences[0].rows = 0..1),
        ("logits of row 2", |plan| plan.logits_rows = vec![2]),
    ];
    let mut logits = Vec::new();
    for (words, damage) in damages {
        let mut plan = good.clone();
        damage(&mut plan);
        let message = harness.backend.forward(&plan, &mut logits).unwrap_err().to_string();
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
    harness.backend.forward(&good, &mut logits).unwrap();
}
