//! The debugging tool's lines.

use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::inspect::{InspectAnswer, InspectRequest, InspectSummary, inspect_lines};
use serde_json::Value;

use crate::toy_backend::{EOS, ToyBackend, model_info, prompt, request, solo, solo_nll};

fn engine() -> Engine {
    let options = EngineOptions { kv_cache: KvCacheSize::Blocks(64), ..EngineOptions::default() };
    Engine::start(Box::new(ToyBackend::default()), model_info(), vec![EOS], options).expect("starts")
}

fn line(prompt: &[u32], top: usize, greedy: usize) -> String {
    serde_json::to_string(&InspectRequest { prompt: prompt.to_vec(), top, greedy }).expect("serializes")
}

fn run(input: &str, batch: usize) -> (Vec<Value>, InspectSummary) {
    let mut output = Vec::new();
    let summary = inspect_lines(&engine(), input.as_bytes(), &mut output, batch).expect("no i/o error");
    let lines = output.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    (lines.map(|line| serde_json::from_slice(line).expect("JSON")).collect(), summary)
}

#[test]
fn answers_come_in_order_with_every_field() {
    let prompts = [prompt(1, 40), prompt(2, 1), prompt(1, 50), prompt(3, 17)];
    let input: String = prompts.iter().map(|prompt| line(prompt, 3, 6) + "\n").collect();
    for batch in [1, 3, 10] {
        let (lines, summary) = run(&input, batch);
        assert_eq!(summary, InspectSummary { answered: 4, failed: 0 });
        for (value, prompt) in lines.into_iter().zip(&prompts) {
            assert!(value["next"][0][0].is_u64() && value["next"][0][1].is_f64(), "{value}");
            let answer: InspectAnswer = serde_json::from_value(value).expect("an answer");
            assert_eq!(answer.greedy, solo(&request(prompt.clone(), 6), 1024).0);
            assert_eq!(answer.next.len(), 3);
            assert_eq!(answer.next[0].0, answer.greedy[0]);
            match (answer.prompt_nll, solo_nll(prompt)) {
                (Some(seen), Some(expected)) => assert!((seen - expected).abs() < 1e-9),
                (seen, expected) => assert_eq!(seen, expected),
            }
        }
    }
}

#[test]
fn a_repeated_prompt_shows_what_was_cached() {
    let input = [line(&prompt(1, 40), 1, 1), line(&prompt(1, 40), 1, 1)].join("\n");
    let (lines, _) = run(&input, 1);
    assert_eq!((lines[0]["cached"].as_u64(), lines[1]["cached"].as_u64()), (Some(0), Some(32)));
}

#[test]
fn asking_for_no_tokens_gives_none() {
    let (lines, _) = run(&line(&prompt(1, 20), 2, 0), 1);
    assert_eq!(lines[0]["greedy"], serde_json::json!([]));
    assert_eq!(lines[0]["next"].as_array().map(Vec::len), Some(2));
}

#[test]
fn a_bad_line_is_named_and_the_next_is_answered() {
    let good = line(&prompt(1, 5), 1, 1);
    let input = format!(
        "{good}\n{{\"prompt\": [1,\n\n{{\"prompt\":[9999]}}\n{{\"prompt\":[],\"topp\":1}}\n\u{0}\n{good}\n"
    );
    for batch in [1, 4] {
        let (lines, summary) = run(&input, batch);
        assert_eq!(summary, InspectSummary { answered: 2, failed: 4 });
        let errors: Vec<_> =
            lines[1..5].iter().map(|line| (line["line"].as_u64(), line["error"].as_str())).collect();
        let [malformed, unknown_token, unknown_field, garbage] = errors[..] else { panic!("{errors:?}") };
        assert!(
            malformed.0 == Some(2) && malformed.1.is_some_and(|e| e.starts_with("not a request")),
            "{malformed:?}"
        );
        assert!(
            unknown_token.0 == Some(4) && unknown_token.1.is_some_and(|e| e.contains("9999")),
            "{unknown_token:?}"
        );
        assert!(
            unknown_field.0 == Some(5) && unknown_field.1.is_some_and(|e| e.contains("topp")),
            "{unknown_field:?}"
        );
        assert_eq!(garbage.0, Some(6));
        assert_eq!(lines[0]["greedy"], lines[5]["greedy"]);
    }
}
