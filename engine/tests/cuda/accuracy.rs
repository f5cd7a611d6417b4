//! Log-probabilities against the float64 reference.

#![expect(
    clippy::print_stdout,
    reason = "the measured maxima are for people to read; a test has no protocol channel"
)]

use redstart_engine::cuda::{CudaOptions, HeadFormat, KvFormat, WeightFormat};
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::inspect::{InspectRequest, inspect_batch};
use redstart_engine::step_plan::BLOCK_SIZE;
use redstart_kernels_shim::Options;

use crate::reference::{
    CHECKPOINTS, Case, Errors, Sequence, Tolerance, argmax, cases, log_probabilities, oracle,
};
use crate::steps::draw_ahead;
use crate::{backend, harness, model_info, options};

/// Weights as the checkpoint has them, activations and KV in fp16, the residual stream in fp32. The bars are the CPU
/// backend's when it serves.
const SERVING: Tolerance = Tolerance { largest: 0.2, mean: 0.05, nll: 0.03, margin: 0.3 };

/// As [`SERVING`], with something in eight bits that is not so in the checkpoint.
const EIGHT_BITS: Tolerance = Tolerance { largest: 0.5, mean: 0.12, nll: 0.06, margin: 1.0 };

/// Tokens that are drawn after a prompt.
const DRAWN: usize = 6;

fn short_cases(checkpoint: &str, longest: usize) -> Vec<Case> {
    let mut cases = cases(&oracle(checkpoint));
    cases.retain(|case| case.prompt.len() <= longest);
    cases
}

/// Each prompt in one step; then tokens, drawn on the device, each step started before the token before is known.
fn check_alone(checkpoint: &str) {
    let mut harness = harness(checkpoint, options());
    let mut errors = Errors::default();
    for case in short_cases(checkpoint, 200) {
        let mut sequence = Sequence::default();
        let logits = harness.feed(&mut sequence, &case.prompt, usize::MAX);
        errors.add_prompt(&case, &logits);
        let first = argmax(&logits[logits.len() - 1]);
        let mut tokens = vec![first];
        tokens.extend(draw_ahead(&mut harness, &mut sequence, first, DRAWN));
        errors.add_greedy(&case, &tokens, SERVING.margin);
        harness.free(sequence);
    }
    errors.check(&format!("{checkpoint}, alone"), SERVING);
}

#[test]
fn tied_hd64_agrees_with_the_reference() {
    check_alone("tied-hd64");
}

#[test]
fn untied_hd128_agrees_with_the_reference() {
    check_alone("untied-hd128");
}

#[test]
fn group64_fp16head_agrees_with_the_reference() {
    check_alone("group64-fp16head");
}

#[test]
fn qwen3_bf16_agrees_with_the_reference() {
    check_alone("qwen3-bf16");
}

/// Several prompts in one step; in chunks; and over blocks that another sequence filled.
#[test]
fn batched_chunked_and_warm_agree_with_the_reference() {
    for checkpoint in CHECKPOINTS {
        let mut harness = harness(checkpoint, options());
        let cases = short_cases(checkpoint, 64);

        let mut errors = Errors::default();
        let mut sequences = vec![Sequence::default(); cases.len()];
        let mut work: Vec<_> =
            sequences.iter_mut().zip(&cases).map(|(sequence, case)| (sequence, &case.prompt[..])).collect();
        let mut logits = harness.step(&mut work, true);
        for case in &cases {
            let rest = logits.split_off(case.prompt.len());
            errors.add_prompt(case, &logits);
            logits = rest;
        }
        errors.check(&format!("{checkpoint}, batched"), SERVING);

        let mut errors = Errors::default();
        for case in &cases {
            let mut sequence = Sequence::default();
            let logits = harness.feed(&mut sequence, &case.prompt, 23);
            errors.add_prompt(case, &logits);
            harness.free(sequence);
        }
        errors.check(&format!("{checkpoint}, in chunks"), SERVING);

        let mut errors = Errors::default();
        for (case, first) in cases.iter().zip(sequences) {
            let cached = (case.prompt.len() - 1) / BLOCK_SIZE;
            let block_table = first.block_table[..cached].to_vec();
            let mut second = Sequence { block_table, len: cached * BLOCK_SIZE };
            let logits = harness.feed(&mut second, &case.prompt[cached * BLOCK_SIZE..], usize::MAX);
            let next = log_probabilities(&logits[logits.len() - 1]);
            errors
                .top8
                .extend(case.next_top8.iter().map(|(id, expected)| (next[*id as usize] - expected).abs()));
        }
        errors.check(&format!("{checkpoint}, over a warm cache"), SERVING);
    }
}

/// Measured on the shim, mean / largest log-probability error and NLL error:
///
/// | what | checkpoint | mean | largest | NLL |
/// |---|---|---|---|---|
/// MEASURED
#[test]
fn eight_bit_formats_agree_with_the_reference() {
    let head = CudaOptions { head: HeadFormat::Int8, ..options() };
    let kv = CudaOptions { kv: KvFormat::F8, ..options() };
    let weights = CudaOptions { weights: WeightFormat::Fp8, ..options() };
    for (what, checkpoint, options) in [
        ("int8 head, tied", "tied-hd64", head.clone()),
        ("int8 head", "group64-fp16head", head.clone()),
        ("int8 head, tied", "qwen3-bf16", head),
        ("fp8 KV", "tied-hd64", kv.clone()),
        ("fp8 KV", "qwen3-bf16", kv),
        ("fp8 weights", "qwen3-bf16", weights),
    ] {
        let mut harness = harness(checkpoint, options);
        let mut errors = Errors::default();
        for case in short_cases(checkpoint, 64) {
            let mut sequence = Sequence::default();
            let logits = harness.feed(&mut sequence, &case.prompt, 48);
            errors.add_prompt(&case, &logits);
            let first = argmax(&logits[logits.len() - 1]);
            let tokens = draw_ahead(&mut harness, &mut sequence, first, 1);
            errors.add_greedy(&case, &[first, tokens[0]], EIGHT_BITS.margin);
            harness.free(sequence);
        }
        errors.check(&format!("{what}, {checkpoint}"), EIGHT_BITS);
    }
}

/// The engine with its scheduler: all prompts at once, in chunks, then again over the cache that they left.
#[test]
fn the_engine_agrees_with_the_reference() {
    for checkpoint in ["tied-hd64", "qwen3-bf16"] {
        let cases = short_cases(checkpoint, 64);
        let backend = backend(checkpoint, options(), Options::default());
        let info = model_info(checkpoint);
        let engine_options = EngineOptions {
            kv_cache: KvCacheSize::Blocks(64),
            max_batch_tokens: 40,
            ..EngineOptions::default()
        };
        let engine = Engine::start(Box::new(backend), info, vec![2], engine_options).unwrap();
        for (round, top) in [("cold", 8), ("warm", 0)] {
            let requests = cases
                .iter()
                .map(|case| Ok(InspectRequest { prompt: case.prompt.clone(), top, greedy: 3 }))
                .collect();
            for (case, answer) in cases.iter().zip(inspect_batch(&engine, requests)) {
                let answer = answer.unwrap();
                let mut errors = Errors::default();
                for (id, found) in &answer.next {
                    let expected = case.next_top8.iter().find(|(other, _)| other == id);
                    errors.top8.extend(expected.map(|(_, expected)| (f64::from(*found) - expected).abs()));
                }
                if let (Some(expected), Some(found)) = (case.prompt_nll, answer.prompt_nll) {
                    errors.nll = (expected - found).abs();
                }
                errors.add_greedy(case, &answer.greedy, SERVING.margin);
                errors.check(&format!("{checkpoint} in the engine, {round}"), SERVING);
                assert_eq!(answer.greedy.len(), 3);
                if round == "warm" {
                    assert_eq!(answer.cached, (case.prompt.len() - 1) / BLOCK_SIZE * BLOCK_SIZE);
                }
            }
        }
    }
}

/// A head in int8 that is also the table gives the residual stream it gives the logits from: a check that the table is
/// read right, which small errors elsewhere would hide.
#[test]
fn a_tied_int8_head_embeds_what_it_says() {
    let mut exact = harness("tied-hd64", options());
    let mut rounded = harness("tied-hd64", CudaOptions { head: HeadFormat::Int8, ..options() });
    let mut worst = 0f64;
    for token in [0, 15, 16, 500, 1023] {
        let [a, b] = [&mut exact, &mut rounded].map(|harness| {
            let mut sequence = Sequence::default();
            let logits = harness.step(&mut [(&mut sequence, &[token])], false);
            harness.free(sequence);
            log_probabilities(&logits[0])
        });
        let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        worst = worst.max(largest);
    }
    println!("log-probabilities after one token, int8 against fp16: {worst:.4}");
    assert!(worst > 0.0 && worst < 0.3, "{worst}");
}
