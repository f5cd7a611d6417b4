//! A review from the code action to its end, over stdio, with an instruct checkpoint directory. The weights
//! are the embedded model's with a chat template beside them: what it writes is no review, but every step
//! from the editor through template, plugin, engine and back is the real one.

use std::process::Stdio;

use redstart::client::Client;
use redstart_tests::{redstart_binary, repository};
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

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

async fn start(arguments: &[&str]) -> (Child, Client<ChildStdout, ChildStdin>) {
    let mut child = Command::new(redstart_binary())
        .arg("lsp")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("redstart starts");
    let mut client = Client::new(child.stdout.take().expect("piped"), child.stdin.take().expect("piped"));
    let capabilities = json!({
        "general": {"positionEncodings": ["utf-16"]},
        "textDocument": {"codeAction": {
            "disabledSupport": true,
            "codeActionLiteralSupport": {"codeActionKind": {"valueSet": ["", "quickfix", "source"]}},
        }, "publishDiagnostics": {}},
    });
    let parameters = json!({"processId": null, "rootUri": null, "capabilities": capabilities});
    client.request("initialize", parameters).await.expect("initialized");
    client.notify("initialized", json!({})).await.expect("sent");
    let document = json!({"uri": "file:///mean.py", "languageId": "python", "version": 1, "text": SOURCE});
    client.notify("textDocument/didOpen", json!({"textDocument": document})).await.expect("sent");
    loop {
        let status = client.request("redstart/status", Value::Null).await.expect("a status");
        match status["state"].as_str() {
            Some("ready") => return (child, client),
            Some("loading") => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            _ => panic!("{status}"),
        }
    }
}

async fn review_action(client: &mut Client<ChildStdout, ChildStdin>) -> Value {
    let caret = json!({"line": 6, "character": 4});
    let parameters = json!({
        "textDocument": {"uri": "file:///mean.py"},
        "range": {"start": caret, "end": caret},
        "context": {"diagnostics": [], "triggerKind": 1},
    });
    let actions = client.request("textDocument/codeAction", parameters).await.expect("actions");
    let mut actions = actions.as_array().expect("a list").iter();
    let is_review = |action: &&Value| action["title"].as_str().is_some_and(|title| title.contains("Review"));
    actions.find(is_review).expect("the review is offered").clone()
}

async fn end(mut child: Child, mut client: Client<ChildStdout, ChildStdin>) {
    client.request("shutdown", Value::Null).await.expect("shut down");
    client.notify("exit", Value::Null).await.expect("sent");
    assert!(child.wait().await.expect("it ends").success(), "exit code 0 after shutdown");
}

#[tokio::test]
async fn an_instruct_checkpoint_reviews_a_function() {
    let model = instruct_directory();
    let (child, mut client) = start(&["--model", &model.path().display().to_string()]).await;
    let action = review_action(&mut client).await;
    assert!(action.get("disabled").is_none(), "{action}");
    let command = &action["command"];
    let parameters = json!({"command": command["command"], "arguments": command["arguments"]});
    let outcome = client.request("workspace/executeCommand", parameters).await.expect("an answer");
    // These weights do not write reviews. That must be told, and never be taken for a clean function.
    let told = client.take_notifications().iter().any(|notification| {
        notification["params"]["message"].as_str().is_some_and(|message| message.contains("not a review"))
    });
    assert!(outcome["findings"].as_u64() > Some(0) || told, "{outcome}");
    end(child, client).await;
}

#[tokio::test]
async fn a_base_model_says_why_it_does_not_review() {
    let (child, mut client) = start(&[]).await;
    let action = review_action(&mut client).await;
    let reason = action["disabled"]["reason"].as_str().unwrap_or_default();
    assert!(reason.contains("cannot review") && reason.contains("Instruct"), "{action}");
    end(child, client).await;
}
