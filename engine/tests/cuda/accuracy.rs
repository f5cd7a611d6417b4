//! Log-probabilities against the float64 reference.

#![expect(
    clippy::print_stdout,
    reason = "the measured maxima are for people to read; a test has no protocol channel"
)]

use redstart_engine::checkpoint::{Checkpoint, LinearWeights};
use redstart_engine::cuda::{CudaBackend, CudaOptions, HeadFormat, KvFormat, WeightFormat};
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::inspect::{InspectRequest, inspect_batch};
use redstart_engine::step_plan::BLOCK_SIZE;
use redstart_kernels_shim::{HostDevice, Options};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::reference::{
    CHECKPOINTS, Case, Errors, Harness, Sequence, Tolerance, argmax, cases, log_probabilities, oracle,
};
use crate::steps::draw_ahead;
use crate::{backend, harness, model_info, options};

/// Weights as the checkpoint has them, activations and KV in fp16, the residual stream in fp32. Largest measured on the
/// shim, whichever way the prompts were run:
///
/// | checkpoint | mean | largest | NLL |
/// |---|---|---|---|
/// | tied-hd64 | 0.0053 | 0.0229 | 0.0010 |
/// | untied-hd128 | 0.0037 | 0.0170 | 0.0003 |
/// | group64-fp16head | 0.0024 | 0.0117 | 0.0013 |
/// | qwen3-bf16 | 0.0034 | 0.0199 | 0.0018 |
///
/// The CPU backend may be five times as far off when it serves.
const HALF: Tolerance = Tolerance { largest: 0.05, mean: 0.01, nll: 0.005, margin: 0.1 };

/// As [`HALF`], the head or the layers rounded to eight bits; see [`eight_bit_formats_agree_with_the_reference`].
const EIGHT_BIT_WEIGHTS: Tolerance = Tolerance { largest: 0.4, mean: 0.09, nll: 0.04, margin: 1.0 };

/// As [`HALF`], keys and values rounded to eight-bit floats, three bits of them mantissa.
const EIGHT_BIT_KV: Tolerance = Tolerance { largest: 1.3, mean: 0.2, nll: 0.1, margin: 2.0 };

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
        errors.add_greedy(&case, &tokens, HALF.margin);
        harness.free(sequence);
    }
    errors.check(&format!("{checkpoint}, alone"), HALF);
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
        errors.check(&format!("{checkpoint}, batched"), HALF);

        let mut errors = Errors::default();
        for case in &cases {
            let mut sequence = Sequence::default();
            let logits = harness.feed(&mut sequence, &case.prompt, 23);
            errors.add_prompt(case, &logits);
            harness.free(sequence);
        }
        errors.check(&format!("{checkpoint}, in chunks"), HALF);

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
        errors.check(&format!("{checkpoint}, over a warm cache"), HALF);
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
    for (what, checkpoint, options, tolerance) in [
        ("int8 head, tied", "tied-hd64", head.clone(), EIGHT_BIT_WEIGHTS),
        ("int8 head", "group64-fp16head", head.clone(), EIGHT_BIT_WEIGHTS),
        ("int8 head, tied", "qwen3-bf16", head, EIGHT_BIT_WEIGHTS),
        ("fp8 weights", "qwen3-bf16", weights, EIGHT_BIT_WEIGHTS),
        ("fp8 KV", "tied-hd64", kv.clone(), EIGHT_BIT_KV),
        ("fp8 KV", "qwen3-bf16", kv, EIGHT_BIT_KV),
    ] {
        let mut harness = harness(checkpoint, options);
        let mut errors = Errors::default();
        for case in short_cases(checkpoint, 64) {
            let mut sequence = Sequence::default();
            let logits = harness.feed(&mut sequence, &case.prompt, 48);
            errors.add_prompt(&case, &logits);
            let first = argmax(&logits[logits.len() - 1]);
            let tokens = draw_ahead(&mut harness, &mut sequence, first, 1);
            errors.add_greedy(&case, &[first, tokens[0]], tolerance.margin);
            harness.free(sequence);
        }
        errors.check(&format!("{what}, {checkpoint}"), tolerance);
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
                errors.add_greedy(case, &answer.greedy, HALF.margin);
                errors.check(&format!("{checkpoint} in the engine, {round}"), HALF);
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

/// A layer of which the checkpoint has quantized only a part is kept in fp16, with the same weights.
#[test]
fn a_layer_quantized_in_part_is_the_same_layer() {
    const NAME: &str = "tied-hd64";
    const PLAIN: [&str; 2] = ["model.layers.0.mlp.up_proj", "model.layers.1.self_attn.k_proj"];
    let original = Checkpoint::open(&oracle(NAME)).unwrap();
    let file = std::fs::read(oracle(NAME).join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&file).unwrap();
    let config = original.config();
    let dense = PLAIN.map(|name| {
        let output = if name.ends_with("k_proj") { config.kv_width() } else { config.intermediate_size };
        let LinearWeights::Awq(awq) = original.linear(name, config.hidden_size, output).unwrap() else {
            panic!("{name} is quantized")
        };
        let weight = |at: usize| awq.weight(at % config.hidden_size, at / config.hidden_size);
        let bytes: Vec<u8> = (0..output * config.hidden_size)
            .flat_map(|at| half::f16::from_f32(weight(at)).to_le_bytes())
            .collect();
        (format!("{name}.weight"), [output, config.hidden_size], bytes)
    });
    let kept = tensors
        .iter()
        .filter(|(name, _)| !PLAIN.iter().any(|plain| name.starts_with(plain) && !name.ends_with(".bias")));
    let mut all: Vec<(String, TensorView<'_>)> = kept.map(|(name, view)| (name.to_owned(), view)).collect();
    for (name, shape, bytes) in &dense {
        all.push((name.clone(), TensorView::new(Dtype::F16, shape.to_vec(), bytes).unwrap()));
    }
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(oracle(NAME).join("config.json"), directory.path().join("config.json")).unwrap();
    safetensors::serialize_to_file(all, None, &directory.path().join("model.safetensors")).unwrap();
    let mixed = Checkpoint::open(directory.path()).unwrap();

    let prompt = &cases(&oracle(NAME))[1].prompt;
    let logits = [&original, &mixed].map(|checkpoint| {
        let device = Box::new(HostDevice::new(Options::default()));
        let mut harness = Harness::new(CudaBackend::new(checkpoint, device, options()).unwrap());
        harness.step(&mut [(&mut Sequence::default(), prompt)], false).remove(0)
    });
    let [a, b] = logits.map(|logits| log_probabilities(&logits));
    let largest = a.iter().zip(&b).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    println!("quantized in part: {largest:.5}");
    assert!(largest < 0.05, "{largest}");
}
