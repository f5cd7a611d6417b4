//! The whole engine on the reference checkpoints, through the code behind `redstart inspect`: alone,
//! batched, chunked and over a warm cache, in exact and in serving mode.
//!
//! The expected values were computed in float64 by an independent implementation. Tolerances, and the
//! largest differences measured when they were set (x86-64 with AVX-512; see the test's output):
//!
//! | mode | quantity | tolerance | measured |
//! |---|---|---|---|
//! | exact | log-probability, largest | 0.03 | 0.0056 |
//! | exact | prompt NLL | 0.01 | 0.0010 |
//! | serving (activations in one or two int8 digits) | log-probability, mean | 0.05 | 0.0324 |
//! | serving | log-probability, largest | 0.2 | 0.1156 |
//! | serving | prompt NLL | 0.03 | 0.0069 |
//!
//! Alone, batched, chunked and warm give the same bits, so the figures are the same for all of them.

#![expect(clippy::print_stderr, reason = "a test prints what it measured")]

use std::path::{Path, PathBuf};

use redstart::model::{ModelSource, RunOptions, load_engine};
use redstart_engine::engine::{Engine, EngineOptions};
use redstart_engine::inspect::{InspectAnswer, InspectRequest, inspect_batch};
use serde::Deserialize;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Vec<u32>,
    next_top8: Vec<(u32, f32)>,
    prompt_nll: Option<f64>,
    greedy: Vec<u32>,
    greedy_margin: Vec<f32>,
}

struct Tolerance {
    mean: f32,
    largest: f32,
    nll: f64,
    /// Greedy tokens are compared up to the first step whose margin is smaller.
    margin: f32,
}

const EXACT: Tolerance = Tolerance { mean: 0.03, largest: 0.03, nll: 0.01, margin: 0.05 };
const SERVING: Tolerance = Tolerance { mean: 0.05, largest: 0.2, nll: 0.03, margin: 0.3 };

fn checkpoints() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("oracle");
    ["tied-hd64", "group64-fp16head", "untied-hd128", "qwen3-bf16"].map(|name| folder.join(name)).to_vec()
}

fn engine(directory: &Path, exact: bool, chunk: usize) -> Engine {
    let options = RunOptions {
        exact,
        threads: Some(2),
        engine: EngineOptions { max_batch_tokens: chunk, ..EngineOptions::default() },
        ..RunOptions::default()
    };
    load_engine(&ModelSource::Directory(directory.to_owned()), &options).expect("a good checkpoint").0
}

fn cases(directory: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(directory.join("expected.json")).expect("expected.json");
    serde_json::from_str::<Expected>(&text).expect("cases").cases
}

fn ask(engine: &Engine, cases: &[Case]) -> Vec<InspectAnswer> {
    let request =
        |case: &Case| InspectRequest { prompt: case.prompt.clone(), top: 1 << 20, greedy: case.greedy.len() };
    let requests = cases.iter().map(|case| Ok(request(case))).collect();
    inspect_batch(engine, requests).into_iter().map(|answer| answer.expect("an answer")).collect()
}

/// Compares answers with what is expected and prints the largest differences.
fn check(what: &str, cases: &[Case], answers: &[InspectAnswer], tolerance: &Tolerance) {
    let (mut differences, mut nll_difference) = (Vec::new(), 0.0f64);
    for (case, answer) in cases.iter().zip(answers) {
        for &(id, expected) in &case.next_top8 {
            let found =
                answer.next.iter().find(|(other, _)| *other == id).expect("all tokens are reported").1;
            differences.push((found - expected).abs());
        }
        match (case.prompt_nll, answer.prompt_nll) {
            (Some(expected), Some(found)) => nll_difference = nll_difference.max((found - expected).abs()),
            (expected, found) => {
                assert_eq!(expected, found, "{what}: a prompt of one token has no likelihood")
            }
        }
        let compared = case.greedy_margin.iter().take_while(|margin| **margin >= tolerance.margin).count();
        assert_eq!(answer.greedy[..compared], case.greedy[..compared], "{what}: greedy tokens");
        assert_eq!(answer.greedy.len(), case.greedy.len(), "{what}: number of greedy tokens");
    }
    let mean = differences.iter().sum::<f32>() / differences.len() as f32;
    let largest = differences.iter().copied().fold(0.0, f32::max);
    eprintln!("{what}: log-probability mean {mean:.5} largest {largest:.5}, prompt NLL {nll_difference:.5}");
    assert!(mean <= tolerance.mean && largest <= tolerance.largest, "{what}: mean {mean}, largest {largest}");
    assert!(nll_difference <= tolerance.nll, "{what}: prompt NLL differs by {nll_difference}");
}

fn check_everywhere(exact: bool, tolerance: &Tolerance) {
    for directory in checkpoints() {
        let name = directory.file_name().expect("a name").to_string_lossy().into_owned();
        let cases = cases(&directory);

        let alone = engine(&directory, exact, 1024);
        let answers: Vec<_> = cases.iter().flat_map(|case| ask(&alone, std::slice::from_ref(case))).collect();
        check(&format!("{name}, alone"), &cases, &answers, tolerance);

        let warm = ask(&alone, &cases);
        check(&format!("{name}, over a warm cache"), &cases, &warm, tolerance);
        for (case, answer) in cases.iter().zip(&warm) {
            assert_eq!(
                answer.cached,
                (case.prompt.len() - 1) / 16 * 16,
                "all full blocks but the last token's"
            );
        }

        check(&format!("{name}, batched"), &cases, &ask(&engine(&directory, exact, 1024), &cases), tolerance);
        for chunk in [9, 50] {
            let answers = ask(&engine(&directory, exact, chunk), &cases);
            check(&format!("{name}, batched in chunks of {chunk}"), &cases, &answers, tolerance);
        }
    }
}

#[test]
fn exact_mode_agrees_with_the_reference() {
    check_everywhere(true, &EXACT);
}

#[test]
fn serving_mode_agrees_with_the_reference() {
    check_everywhere(false, &SERVING);
}

#[derive(Deserialize)]
struct NanoCase {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    greedy_margin: Vec<f32>,
}

#[test]
fn the_embedded_model_writes_what_its_card_says() {
    let card = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/nano/expected.json");
    let cases: Vec<NanoCase> =
        serde_json::from_slice(&std::fs::read(card).expect("the card")).expect("cases");
    for (exact, margin) in [(true, EXACT.margin), (false, SERVING.margin)] {
        let options = RunOptions { exact, ..RunOptions::default() };
        let (engine, _) = load_engine(&ModelSource::Embedded, &options).expect("the embedded model");
        let (mut compared, mut expected) = (0, 0);
        for case in &cases {
            let request =
                InspectRequest { prompt: case.prompt.clone(), top: 1, greedy: case.greedy.len().max(1) };
            let answer = inspect_batch(&engine, vec![Ok(request)]).pop().expect("one").expect("an answer");
            let sure = case.greedy_margin.iter().take_while(|step| **step >= margin).count();
            assert_eq!(
                answer.greedy[..sure],
                case.greedy[..sure],
                "exact: {exact}, prompt {:?}",
                case.prompt
            );
            (compared, expected) = (compared + sure, expected + case.greedy.len());
        }
        eprintln!("exact {exact}: {compared} of {expected} greedy tokens compared");
        assert!(compared * 3 >= expected, "too few steps were sure enough to compare");
    }
}
