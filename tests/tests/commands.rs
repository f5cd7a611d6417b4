//! The commands as a user runs them: what they print, and what they say to bad input.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use redstart_tests::{redstart_binary, repository};
use serde_json::{Value, json};

fn redstart(arguments: &[&str]) -> Output {
    Command::new(redstart_binary()).args(arguments).stdin(Stdio::null()).output().expect("redstart runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A copy of the embedded model's directory, to be damaged.
fn model_copy() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in
        ["config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "redstart.json"]
    {
        std::fs::copy(repository().join("models/nano").join(name), folder.path().join(name)).expect("a copy");
    }
    folder
}

/// What `doctor` says of a model directory that cannot serve.
fn diagnosis(model: &Path) -> String {
    let output = redstart(&["doctor", "--model", &model.display().to_string()]);
    assert!(!output.status.success(), "doctor must fail: {}", stdout(&output));
    stdout(&output)
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
}

fn edit_config(model: &Path, change: impl FnOnce(&mut Value)) {
    let path = model.join("config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).expect("config")).expect("JSON");
    change(&mut config);
    std::fs::write(&path, config.to_string()).expect("writable");
}

#[test]
fn missing_weights_are_named() {
    let model = model_copy();
    std::fs::remove_file(model.path().join("model.safetensors")).expect("there");
    assert_says(&diagnosis(model.path()), &["FAILED", "safetensors"]);
    assert_says(&diagnosis(Path::new("no/such/model")), &["FAILED", "no/such/model"]);
}

#[test]
fn truncated_weights_are_refused() {
    let model = model_copy();
    let path = model.path().join("model.safetensors");
    let bytes = std::fs::read(&path).expect("weights");
    std::fs::write(&path, &bytes[..bytes.len() / 2]).expect("writable");
    assert_says(&diagnosis(model.path()), &["FAILED", "model.safetensors"]);
}

#[test]
fn a_header_past_the_end_is_refused() {
    let model = model_copy();
    let path = model.path().join("model.safetensors");
    let mut bytes = std::fs::read(&path).expect("weights");
    bytes[..8].copy_from_slice(&(u64::MAX / 2).to_le_bytes());
    std::fs::write(&path, &bytes).expect("writable");
    assert_says(&diagnosis(model.path()), &["FAILED", "model.safetensors", "header"]);
}

#[test]
fn another_architecture_is_refused_and_what_is_supported_is_named() {
    let model = model_copy();
    edit_config(model.path(), |config| {
        config["architectures"] = json!(["MambaForCausalLM"]);
        config["model_type"] = json!("mamba");
    });
    assert_says(&diagnosis(model.path()), &["FAILED", "mamba", "Qwen2ForCausalLM"]);
}

#[test]
fn a_wrong_shape_names_the_tensor() {
    let model = model_copy();
    edit_config(model.path(), |config| config["intermediate_size"] = json!(1024));
    assert_says(&diagnosis(model.path()), &["FAILED", "model.layers.0.mlp"]);
}

#[test]
fn a_missing_tokenizer_is_named() {
    let model = model_copy();
    std::fs::remove_file(model.path().join("tokenizer.json")).expect("there");
    assert_says(&diagnosis(model.path()), &["FAILED", "tokenizer.json"]);
}

#[test]
fn a_model_directory_serves_as_the_embedded_model_does() {
    let model = model_copy();
    let output = redstart(&["doctor", "--model", &model.path().display().to_string()]);
    assert!(output.status.success(), "{}{}", stdout(&output), stderr(&output));
    assert_says(&stdout(&output), &["completion   works", "cannot review"]);
}

#[test]
fn a_plugin_that_is_no_component_costs_a_warning() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("broken.wasm");
    std::fs::write(&file, b"this is not wasm").expect("writable");
    let output = redstart(&["doctor", "--plugin", &file.display().to_string()]);
    assert!(output.status.success(), "{}", stdout(&output));
    assert_says(&stdout(&output), &["warning", "broken.wasm", "component", "completion   works"]);
}

fn file_with(content: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("code.py");
    std::fs::write(&file, content).expect("writable");
    (folder, file)
}

#[test]
fn complete_prints_the_completion_and_a_line_of_timing() {
    let (_folder, file) = file_with(b"def add(a, b):\n    return \n\n\ndef sub(a, b):\n    return a - b\n");
    let output = redstart(&["complete", &format!("{}:2:12", file.display())]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(!stdout(&output).trim().is_empty());
    let timing = stderr(&output);
    assert_eq!(timing.lines().count(), 1, "{timing}");
    assert_says(&timing, &["first line", "ms", "prompt tokens"]);
}

#[test]
fn complete_says_what_is_wrong_with_a_place() {
    let (_folder, file) = file_with(b"x = 1\n");
    let file = file.display();
    for (place, words) in [
        (format!("{file}:9:1"), ["2 lines", "line 9"]),
        (format!("{file}:1:99"), ["5 characters", "column 99"]),
        (format!("{file}:0:1"), ["FILE:LINE:COL", "counted from 1"]),
        ("code.py".to_owned(), ["FILE:LINE:COL", "code.py"]),
        ("no/such/file.py:1:1".to_owned(), ["cannot read", "no/such/file.py"]),
    ] {
        let output = redstart(&["complete", &place]);
        assert!(!output.status.success(), "{place}");
        assert_says(&stderr(&output), &words);
    }
}

#[test]
fn complete_refuses_what_is_not_text() {
    let (_folder, file) = file_with(b"x = 1\n\xff\xfe\n");
    let output = redstart(&["complete", &format!("{}:1:1", file.display())]);
    assert!(!output.status.success());
    assert_says(&stderr(&output), &["not UTF-8"]);

    let (_folder, file) = file_with(b"x = 1\n\0\0\0\n");
    let output = redstart(&["complete", &format!("{}:1:6", file.display())]);
    assert!(!output.status.success());
    assert_says(&stderr(&output), &["no completion"]);
}

#[test]
fn complete_survives_an_empty_file_and_a_very_long_line() {
    let (_folder, file) = file_with(b"");
    let output = redstart(&["complete", &format!("{}:1:1", file.display())]);
    assert!(output.status.success() || stderr(&output).contains("no completion"), "{}", stderr(&output));

    let (_folder, file) = file_with(&b"x".repeat(5 << 20));
    let output = redstart(&["complete", &format!("{}:1:5000", file.display())]);
    assert!(!output.status.success());
    assert_says(&stderr(&output), &["no completion"]);
}

fn inspect(lines: &str, arguments: &[&str]) -> (Vec<Value>, bool) {
    let mut child = Command::new(redstart_binary())
        .arg("inspect")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .expect("redstart runs");
    child.stdin.take().expect("piped").write_all(lines.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let answers =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON lines")).collect();
    (answers, output.status.success())
}

#[test]
fn inspect_answers_line_by_line() {
    let model = repository().join("tests/oracle/tied-hd64").display().to_string();
    let line = json!({"prompt": (0..40).collect::<Vec<u32>>(), "top": 3, "greedy": 5}).to_string();
    let (answers, ok) = inspect(&format!("{line}\n\n{line}\n"), &["--model", &model, "--exact"]);
    assert!(ok);
    assert_eq!(answers.len(), 2);
    assert_eq!(answers[0]["next"].as_array().map(Vec::len), Some(3));
    assert_eq!(answers[0]["greedy"].as_array().map(Vec::len), Some(5));
    assert_eq!(answers[0]["cached"], 0);
    assert_eq!(answers[1]["cached"], 32, "the second time the full blocks come from the cache");
    assert_eq!(answers[0]["greedy"], answers[1]["greedy"]);
    assert_eq!(answers[0]["prompt_nll"], answers[1]["prompt_nll"]);
}

#[test]
fn inspect_shows_what_an_int8_cache_changes() {
    let model = repository().join("tests/oracle/tied-hd64").display().to_string();
    let line = json!({"prompt": (0..40).collect::<Vec<u32>>(), "greedy": 0}).to_string();
    let loss = |kind: &str| {
        let (answers, ok) = inspect(&line, &["--model", &model, "--kv-cache-type", kind]);
        assert!(ok);
        answers[0]["prompt_nll"].as_f64().expect("a number")
    };
    let (f16, int8) = (loss("f16"), loss("int8"));
    assert!(f16 != int8 && (f16 - int8).abs() < 0.05, "{f16}, {int8}");
}

#[test]
fn inspect_goes_on_after_a_bad_line() {
    let model = repository().join("tests/oracle/tied-hd64").display().to_string();
    let long = json!({"prompt": vec![1; 5000], "greedy": 1}).to_string();
    let lines = format!(
        "nonsense\n{{\"prompt\": []}}\n{{\"prompt\": [99999]}}\n{long}\n{{\"prompt\": [1], \"greedy\": 1}}\n"
    );
    let (answers, ok) = inspect(&lines, &["--model", &model]);
    assert!(!ok, "bad lines show in the exit code");
    let errors: Vec<&str> = answers.iter().map(|answer| answer["error"].as_str().unwrap_or("")).collect();
    assert_eq!(answers.len(), 5);
    assert_says(errors[0], &["not a request"]);
    assert_says(errors[1], &["empty"]);
    assert_says(errors[2], &["99999", "vocabulary"]);
    assert_says(errors[3], &["5000", "at most"]);
    assert_eq!(answers[4]["greedy"].as_array().map(Vec::len), Some(1));
}

#[test]
fn the_demo_types_and_accepts() {
    let output = redstart(&["demo", "--json"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let lines: Vec<Value> =
        stdout(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summary = lines.last().expect("a summary");
    assert!(summary["suggestions"].as_u64() > Some(10), "{summary}");
    assert!(summary["accepted"].as_u64() > Some(0), "{summary}");
    assert!(summary["cached_prompt_share"].as_f64() > Some(0.5), "{summary}");

    let plain = redstart(&["demo"]);
    assert!(plain.status.success(), "{}", stderr(&plain));
    assert_says(&stdout(&plain), &["first complete line", "Accepted", "from cache"]);
    assert_says(&stderr(&plain), &["weak", "--model"]);
}

#[test]
fn help_teaches_and_version_is_told() {
    for (command, words) in [
        ("lsp", vec!["editor", "--model", "--kv-cache-type"]),
        ("demo", vec!["typed", "--json"]),
        ("complete", vec!["FILE:LINE:COL", "Example"]),
        ("inspect", vec!["--exact", "prompt_nll"]),
        ("doctor", vec!["machine"]),
    ] {
        let output = redstart(&[command, "--help"]);
        assert!(output.status.success());
        assert_says(&stdout(&output), &words);
    }
    assert!(stdout(&redstart(&["--version"])).starts_with("redstart 0."));
}

/// Whether this machine has a GPU that serves: what is said of a machine without one is not said here.
fn has_gpu() -> bool {
    redstart_engine::cuda::probe().is_ok()
}

#[test]
fn a_gpu_that_is_not_there_is_missed_only_by_who_asks_for_it() {
    if has_gpu() {
        return;
    }
    let output = redstart(&["doctor"]);
    assert!(output.status.success());
    assert_says(&stdout(&output), &["gpu", "none that can serve", "cpu ("]);

    let output = redstart(&["doctor", "--backend", "cuda"]);
    assert!(!output.status.success());
    assert_says(&stdout(&output), &["model", "FAILED", "NVIDIA"]);

    let model = model_copy();
    let model = model.path().display().to_string();
    let output = redstart(&["doctor", "--model", &model, "--kv-cache-type", "fp8"]);
    assert_says(&stdout(&output), &["FAILED", "--kv-cache-type fp8 is for a GPU"]);
    let output = redstart(&["doctor", "--backend", "cpu", "--kv-cache-type", "fp8"]);
    assert_says(&stdout(&output), &["FAILED", "int8"]);
    let output = redstart(&["doctor", "--gpu-memory-utilization", "85"]);
    assert!(!output.status.success());
    assert_says(&stderr(&output), &["--gpu-memory-utilization", "0.1 to 1"]);
}
