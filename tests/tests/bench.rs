//! `redstart bench` on the embedded model: every figure is there, and bad input is answered in words. How large
//! the figures are is nobody's business here.

use std::process::{Command, Output, Stdio};

use redstart_tests::redstart_binary;
use serde_json::Value;

fn bench(arguments: &[&str]) -> Output {
    let mut command = Command::new(redstart_binary());
    command.arg("bench").args(arguments).stdin(Stdio::null()).output().expect("redstart runs")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", stderr(output));
    assert_eq!(stderr(output), "", "progress is for terminals");
    serde_json::from_str(&stdout(output)).expect("one JSON object")
}

fn assert_positive(report: &Value, keys: &[&str]) {
    for key in keys {
        assert!(report[key].as_f64() > Some(0.0), "{key} in {report}");
    }
}

fn assert_says(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
}

/// What is quick: each figure once, of few tokens.
const QUICK: [&str; 8] = ["--prompt", "64", "--tokens", "8", "--depth", "40", "--repeat", "1"];

#[test]
fn the_json_has_every_figure() {
    let report = json(&bench(&[&["--json", "--batch", "3", "--threads", "2"][..], &QUICK].concat()));
    assert_positive(
        &report,
        &[
            "prefill_tok_s",
            "decode_tok_s",
            "ttft_cold_ms",
            "ttft_warm_ms",
            "load_ms",
            "read_gb_s",
            "bandwidth_share",
            "batch_tok_s",
            "checkpoint_mb",
            "bytes_per_token",
        ],
    );
    if cfg!(target_os = "linux") {
        assert_positive(&report, &["peak_rss_mb", "load_peak_rss_mb"]);
    }
    for (key, expected) in [("prompt", 64), ("tokens", 8), ("depth", 40), ("batch", 3), ("threads", 2)] {
        assert_eq!(report[key], expected, "{key}");
    }
    assert_eq!(report["warm_cached_tokens"], 64, "all but the tail comes from the cache");
    assert_says(report["model"].as_str().unwrap_or_default(), &["embedded"]);
    assert_says(report["backend"].as_str().unwrap_or_default(), &["cpu", "2 threads"]);
    assert!(report.get("weights").is_none(), "these weights are a model's: {report}");
}

#[test]
fn the_table_names_its_rows_and_units() {
    let output = bench(&QUICK);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_says(
        &stdout(&output),
        &[
            "prefill, 64 tokens",
            "first token, warm",
            "decode at depth 40",
            "tok/s",
            "GB/s",
            "load",
            "peak memory",
        ],
    );
}

#[test]
fn the_seed_rows_are_all_there_and_the_page_has_plots() {
    let folder = tempfile::tempdir().expect("a folder");
    let page = folder.path().join("report.html");
    let report = json(&bench(&["seed", "--json", "--html", &page.display().to_string()]));
    let rows = report["generation"].as_array().expect("rows");
    let names: Vec<&str> = rows.iter().filter_map(|row| row["name"].as_str()).collect();
    assert_eq!(names, ["short chat 100 tokens", "medium code 300", "long code 800", "code review 400"]);
    for (row, tokens) in rows.iter().zip([100, 300, 800, 400]) {
        assert_eq!(row["tokens"], tokens);
        assert_positive(row, &["tok_s", "prompt_tokens"]);
    }
    let rows = report["ttft"].as_array().expect("rows");
    assert_eq!(rows.len(), 3);
    for (row, characters) in rows.iter().zip([5, 105, 244]) {
        assert_eq!(row["prompt_characters"], characters);
        assert_positive(row, &["average_ms", "min_ms"]);
        assert!(row["min_ms"].as_f64() <= row["average_ms"].as_f64(), "{row}");
    }
    let rows = report["parallel"].as_array().expect("rows");
    assert_eq!(rows.iter().filter_map(|row| row["requests"].as_u64()).collect::<Vec<_>>(), [2, 3, 4]);
    rows.iter().for_each(|row| assert_positive(row, &["effective_tok_s", "speedup"]));
    assert_positive(&report["kv_cache"], &["tokens", "gib"]);

    let page = std::fs::read_to_string(page).expect("the page");
    assert_eq!(page.matches("<svg").count(), 3);
    assert_says(
        &page,
        &["long code 800", "244 characters", "4 requests", "KV cache", "prefers-color-scheme"],
    );
}

#[test]
fn bad_input_is_answered_in_words() {
    let model = "no/such/model";
    for (arguments, words) in [
        (&["--synthetic", "2b"][..], &["2b", "0.5b, 1.5b, 3b, 7b"][..]),
        (&["--model", model], &["cannot load no/such/model", "no model directory"]),
        (&["seed", "--model", model], &["cannot load no/such/model", "no model directory"]),
        (&["--model", model, "--synthetic", "3b"], &["--model", "--synthetic", "cannot be used with"]),
        (
            &["--depth", "2000", "--tokens", "100"],
            &["--depth 2000", "--tokens 100", "2100 tokens", "at most 2048"],
        ),
        (&["--prompt", "2048"], &["--prompt 2048", "at most 2048"]),
        (&["--tokens", "1"], &["--tokens", "at least 2"]),
        (&["--prompt", "0"], &["--prompt", "at least 1"]),
        (&["--batch", "0"], &["--batch", "at least 1"]),
        (&["--repeat", "0"], &["--repeat", "at least 1"]),
        (&["--threads", "0"], &["--threads", "1 to 256"]),
        (&["--backend", "abacus"], &["abacus", "cpu"]),
        (&["--write", "somewhere"], &["--synthetic"]),
        (&["seed", "--kv-cache-mb", "2"], &["--kv-cache-mb", "context of"]),
        (&["seed", "--html", "no/such/folder/page.html"], &["--html", "no directory no/such/folder"]),
        (&["seed", "--kv-cache-mb", "0"], &["--kv-cache-mb", "at least 1"]),
    ] {
        let output = bench(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert_eq!(stdout(&output), "", "{arguments:?}");
        assert_says(&stderr(&output), words);
    }
}

#[test]
fn help_teaches_by_examples() {
    let help = stdout(&bench(&["--help"]));
    assert_says(&help, &["redstart bench --synthetic 1.5b", "random weights, speed only", "seed", "median"]);
    assert!(!help.contains("read-bandwidth"), "an internal command is shown: {help}");
    assert_says(&stdout(&bench(&["seed", "--help"])), &["--html report.html", "prefix cache"]);
}
