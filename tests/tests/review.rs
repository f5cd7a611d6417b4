//! A review from the code action to its end, over stdio, with an instruct checkpoint directory. The weights
//! are the embedded model's with a chat template beside them: what it writes is no review, but every step
//! from the editor through template, plugin, engine and back is the real one.

use redstart_tests::{Session, repository};
use serde_json::{Value, json};

const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

const SOURCE: &str = "def add(a, b):\n    return a + b\n\n\ndef mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)\n";

fn instruct_directory() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "tokenizer.json", "model.safetensors", "redstart.json"] {
        std::fs::copy(repository().join("models/nano").join(name), folder.path().join(name)).expect("a copy");
    }
    let config = json!({"chat_template": CHATML, "eos_token": "<|endoftext|>"});
    std::fs::write(folder.path().join("tokenizer_config.json"), config.to_string()).expect("writable");
    folder
}

async fn review_action(session: &mut Session) -> Value {
    session.open("file:///w/mean.py", SOURCE).await;
    let caret = json!({"line": 6, "character": 4});
    let parameters = json!({
        "textDocument": {"uri": "file:///w/mean.py"},
        "range": {"start": caret, "end": caret},
        "context": {"diagnostics": [], "triggerKind": 1},
    });
    let actions = session.client.request("textDocument/codeAction", parameters).await.expect("actions");
    let mut actions = actions.as_array().expect("a list").iter();
    let is_review = |action: &&Value| action["title"].as_str().is_some_and(|title| title.contains("Review"));
    actions.find(is_review).expect("the review is offered").clone()
}

#[tokio::test]
async fn an_instruct_checkpoint_reviews_a_function() {
    let model = instruct_directory();
    let mut session = Session::start(&["--model", &model.path().display().to_string()]).await;
    let action = review_action(&mut session).await;
    assert!(action.get("disabled").is_none(), "{action}");
    let command = &action["command"];
    let parameters = json!({"command": command["command"], "arguments": command["arguments"]});
    let outcome = session.client.request("workspace/executeCommand", parameters).await.expect("an answer");
    // These weights do not write reviews. That must be told, and never be taken for a clean function.
    let told = session.client.take_notifications().iter().any(|notification| {
        notification["params"]["message"].as_str().is_some_and(|message| message.contains("not a review"))
    });
    assert!(outcome["findings"].as_u64() > Some(0) || told, "{outcome}");
    session.end().await;
}

#[tokio::test]
async fn a_base_model_says_why_it_does_not_review() {
    let mut session = Session::start(&[]).await;
    let action = review_action(&mut session).await;
    let reason = action["disabled"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("cannot review") && reason.contains("Instruct"), "{action}");
    session.end().await;
}

#[tokio::test]
async fn a_second_model_reviews_while_the_first_completes() {
    let model = instruct_directory();
    let mut session = Session::start(&["--review-model", &model.path().display().to_string()]).await;
    // The session waits for the first model only.
    let status = loop {
        let status = session.client.request("redstart/status", Value::Null).await.expect("a status");
        if status.get("reviewModel").is_some() {
            break status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(status["model"], "nano (embedded)");
    assert!(status.get("noReviews").is_none(), "{status}");
    let action = review_action(&mut session).await;
    assert!(action.get("disabled").is_none(), "{action}");
    session.end().await;
}

#[tokio::test]
async fn a_second_model_that_is_missing_takes_the_reviews_alone() {
    let mut session = Session::start(&["--review-model", "/no/such/model"]).await;
    let status = loop {
        let status = session.client.request("redstart/status", Value::Null).await.expect("a status");
        if status["noReviews"].as_str().is_some_and(|why| why.contains("/no/such/model")) {
            break status;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    };
    assert_eq!(status["state"], "ready", "{status}");
    let action = review_action(&mut session).await;
    let reason = action["disabled"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("/no/such/model"), "{action}");
    session.end().await;
}
