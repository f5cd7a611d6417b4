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
use redstart_kernels::float8;
use redstart_kernels_shim::{HostDevice, Options};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::reference::{
    CHECKPOINTS, Case, Errors, Harness, Sequence, Tolerance, argmax, cases, log_probabilities, oracle,
};
use crate::steps::draw_ahead;
use crate::{backend, harness, model_info, options};

/// Weights as the checkpoint has them, activations and KV in fp16, the residual stream in fp32. Largest
/// measured on the shim, whichever way the prompts were run:
///
/// | checkpoint | mean | largest | NLL |
/// |---|---|---|---|
/// | tied-hd64 | 0.0053 | 0.0229 | 0.0010 |
/// | untied-hd128 | 0.0037 | 0.0170 | 0.0005 |
/// | group64-fp16head | 0.0024 | 0.0117 | 0.0013 |
/// | qwen3-bf16 | 0.0034 | 0.0199 | 0.0018 |
///
/// The CPU backend may be five times as far off when it serves.
const HALF: Tolerance = Tolerance { largest: 0.05, mean: 0.01, nll: 0.005, margin: 0.1 };

/// As [`HALF`], the head rounded to eight-bit integers; measured at
/// [`eight_bit_formats_agree_with_the_reference`].
const INT8_HEAD: Tolerance = Tolerance { largest: 0.4, mean: 0.09, nll: 0.04, margin: 1.0 };

/// As [`HALF`], the layers rounded to eight-bit floats, which is a lot for weights that are random; see also
/// [`fp8_weights_are_the_rounded_weights`].
const FP8_WEIGHTS: Tolerance = Tolerance { largest: 2.5, mean: 0.6, nll: 0.2, margin: 3.0 };

/// As [`HALF`], keys and values rounded to eight-bit floats, three bits of them mantissa.
const FP8_KV: Tolerance = Tolerance { largest: 1.6, mean: 0.32, nll: 0.15, margin: 2.0 };

/// Tokens that are drawn after a prompt.
const DRAWN: usize = 6;

fn short_cases(checkpoint: &str, longest: usize) -> Vec<Case> {
    let mut cases = cases(&oracle(checkpoint));
    cases.retain(|case| case.prompt.len() <= longest);
    cases
}

/// Each prompt in steps of at most 256 rows; then tokens, drawn on the device, each step started before the
/// token before is known.
fn check_alone(checkpoint: &str) {
    let mut harness = harness(checkpoint, options());
    let mut errors = Errors::default();
    for case in cases(&oracle(checkpoint)) {
        let mut sequence = Sequence::default();
        let logits = harness.feed(&mut sequence, &case.prompt, 256);
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
/// | int8 head, also the table | tied-hd64 | 0.0510 | 0.2088 | 0.0166 |
/// | int8 head, also the table | qwen3-bf16 | 0.0567 | 0.2404 | 0.0217 |
/// | int8 head | group64-fp16head | 0.0157 | 0.0535 | 0.0076 |
/// | fp8 weights | qwen3-bf16 | 0.4489 | 1.7736 | 0.1186 |
/// | fp8 KV | tied-hd64 | 0.1403 | 0.8362 | 0.0641 |
/// | fp8 KV | qwen3-bf16 | 0.2317 | 1.1417 | 0.0998 |
///
/// Random weights forgive less than trained ones: nothing in them is redundant. The CPU's int8 cache measures
/// a mean of
/// 0.03 to 0.05 here; it has a scale for every vector and seven bits where e4m3 has four.
#[test]
fn eight_bit_formats_agree_with_the_reference() {
    let head = CudaOptions { head: HeadFormat::Int8, ..options() };
    let kv = CudaOptions { kv: KvFormat::F8, ..options() };
    let weights = CudaOptions { weights: WeightFormat::Fp8, ..options() };
    for (what, checkpoint, options, tolerance) in [
        ("int8 head, tied", "tied-hd64", head.clone(), INT8_HEAD),
        ("int8 head", "group64-fp16head", head.clone(), INT8_HEAD),
        ("int8 head, tied", "qwen3-bf16", head, INT8_HEAD),
        ("fp8 weights", "qwen3-bf16", weights, FP8_WEIGHTS),
        ("fp8 KV", "tied-hd64", kv.clone(), FP8_KV),
        ("fp8 KV", "qwen3-bf16", kv, FP8_KV),
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

/// A head in int8 that is also the table gives the residual stream it gives the logits from: a check that the
/// table is read right, which small errors elsewhere would hide.
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

/// A matrix of a checkpoint: its name, outputs and inputs, and its weights.
type PlainMatrix = (String, [usize; 2], Vec<f32>);

/// A copy of a reference checkpoint in which some matrices are plain, of these weights.
fn with_plain(name: &str, matrices: &[PlainMatrix]) -> (tempfile::TempDir, Checkpoint) {
    let files: Vec<Vec<u8>> = std::fs::read_dir(oracle(name))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let files: Vec<SafeTensors<'_>> =
        files.iter().map(|file| SafeTensors::deserialize(file).unwrap()).collect();
    let is_replaced = |tensor: &str| {
        matrices.iter().any(|(matrix, ..)| tensor.starts_with(matrix)) && !tensor.ends_with(".bias")
    };
    let kept = files.iter().flat_map(SafeTensors::tensors).filter(|(tensor, _)| !is_replaced(tensor));
    let plain = matrices.iter().map(|(matrix, shape, weights)| {
        let bytes = bytemuck::cast_slice(weights);
        (format!("{matrix}.weight"), TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    });
    let directory = tempfile::tempdir().unwrap();
    std::fs::copy(oracle(name).join("config.json"), directory.path().join("config.json")).unwrap();
    let all: Vec<_> = kept.chain(plain).collect();
    safetensors::serialize_to_file(all, None, &directory.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    (directory, checkpoint)
}

/// The mean difference in log-probability, over all tokens, after a prompt of `name` between two ways to run
/// it.
fn difference(name: &str, ways: [(&Checkpoint, CudaOptions); 2]) -> f64 {
    let prompt = &cases(&oracle(name))[2].prompt;
    let [a, b] = ways.map(|(checkpoint, options)| {
        let device = Box::new(HostDevice::new(Options::default()));
        let mut harness = Harness::new(CudaBackend::new(checkpoint, device, options).unwrap());
        log_probabilities(&harness.step(&mut [(&mut Sequence::default(), prompt)], false)[0])
    });
    a.iter().zip(&b).map(|(a, b)| (a - b).abs()).sum::<f64>() / a.len() as f64
}

/// A layer of which the checkpoint has quantized only a part is kept in fp16, with the same weights.
#[test]
fn a_layer_quantized_in_part_is_the_same_layer() {
    const NAME: &str = "tied-hd64";
    let original = Checkpoint::open(&oracle(NAME)).unwrap();
    let config = original.config();
    let matrices = [
        ("model.layers.0.mlp.up_proj", config.intermediate_size),
        ("model.layers.1.self_attn.k_proj", config.kv_width()),
    ];
    let plain = matrices.map(|(matrix, output)| {
        let LinearWeights::Awq(awq) = original.linear(matrix, config.hidden_size, output).unwrap() else {
            panic!("{matrix} is quantized")
        };
        let at = |i: usize| awq.weight(i % config.hidden_size, i / config.hidden_size);
        let weights = (0..output * config.hidden_size).map(at).collect();
        (matrix.to_owned(), [output, config.hidden_size], weights)
    });
    let (_directory, mixed) = with_plain(NAME, &plain);
    let mean = difference(NAME, [(&original, options()), (&mixed, options())]);
    println!("quantized in part: {mean:.5}");
    assert!(mean < 0.005, "{mean}");
}

/// Layers that are rounded to eight-bit floats at load are those of a checkpoint that was rounded before:
/// what is left is fp16's rounding of them.
#[test]
fn fp8_weights_are_the_rounded_weights() {
    const NAME: &str = "qwen3-bf16";
    let original = Checkpoint::open(&oracle(NAME)).unwrap();
    let config = original.config();
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let rounded: Vec<PlainMatrix> = (0..config.num_layers)
        .flat_map(|layer| {
            [
                ("self_attn.q_proj", [config.q_width(), hidden]),
                ("self_attn.k_proj", [config.kv_width(), hidden]),
                ("self_attn.v_proj", [config.kv_width(), hidden]),
                ("self_attn.o_proj", [hidden, config.q_width()]),
                ("mlp.gate_proj", [inner, hidden]),
                ("mlp.up_proj", [inner, hidden]),
                ("mlp.down_proj", [hidden, inner]),
            ]
            .map(|(part, shape)| (format!("model.layers.{layer}.{part}"), shape))
        })
        .map(|(matrix, shape)| {
            let tensor = original.tensor(&format!("{matrix}.weight"), &shape).unwrap();
            let mut weights = tensor.to_f32().unwrap();
            for output in weights.chunks_mut(shape[1]) {
                let largest = output.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
                let scale = largest / 448.0;
                // As the loader computes it: weights of few bits are often exactly between two codes.
                let inverse = scale.recip();
                for weight in output {
                    *weight = float8::to_f32(float8::from_f32(*weight * inverse)) * scale;
                }
            }
            (matrix, shape, weights)
        })
        .collect();
    let (_directory, before) = with_plain(NAME, &rounded);
    let at_load = CudaOptions { weights: WeightFormat::Fp8, ..options() };
    let rounded = difference(NAME, [(&before, options()), (&original, at_load.clone())]);
    let not_rounded = difference(NAME, [(&original, options()), (&original, at_load)]);
    println!("rounded to fp8 before and at load: {rounded:.5}; not rounded: {not_rounded:.5}");
    assert!(rounded < 0.015 && not_rounded > 20.0 * rounded, "{rounded}, {not_rounded}");
}
