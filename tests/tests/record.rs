//! The local record, from a suggestion in an editor's session to the table of `redstart stats`.

use std::process::Stdio;
use std::time::{Duration, Instant};

use redstart::client::Client;
use redstart_tests::redstart_binary;
use serde_json::{Value, json};

/// Beyond this a test hangs; nothing is measured by it.
const HANGS: Duration = Duration::from_secs(60);

#[tokio::test]
async fn what_is_shown_and_accepted_is_recorded_without_its_text_and_can_be_looked_at() {
    let home = tempfile::tempdir().expect("a folder");
    let mut server = tokio::process::Command::new(redstart_binary())
        .arg("lsp")
        .env("XDG_DATA_HOME", home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("redstart starts");
    let (input, output) = (server.stdout.take().expect("piped"), server.stdin.take().expect("piped"));
    let mut client = Client::new(input, output);
    let options = json!({"completion": {"record": true}});
    let capabilities =
        json!({"general": {"positionEncodings": ["utf-8"]}, "textDocument": {"inlineCompletion": {}}});
    let initialize = json!({
        "processId": null, "capabilities": capabilities, "initializationOptions": options,
    });
    client.request("initialize", initialize).await.expect("an answer");
    client.notify("initialized", json!({})).await.expect("sent");
    let uri = "file:///w/secret_name.py";
    let text = "class Account:\n    def __init__(self, owner, balance):\n        self.owner = owner\n        self.bal";
    let document = json!({"uri": uri, "languageId": "python", "version": 1, "text": text});
    client.notify("textDocument/didOpen", json!({"textDocument": document})).await.expect("sent");

    let at = json!({"line": 3, "character": 16});
    let asked = json!({"textDocument": {"uri": uri}, "position": at, "context": {"triggerKind": 2}});
    let started = Instant::now();
    let item = loop {
        let answer = client.request("textDocument/inlineCompletion", asked.clone()).await.expect("an answer");
        if !answer.is_null() {
            break answer["items"][0].clone();
        }
        assert!(started.elapsed() < HANGS, "no suggestion");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let suggested = item["insertText"].as_str().expect("a text");
    let change = json!({"range": item["range"], "text": suggested});
    let changed = json!({"textDocument": {"uri": uri, "version": 2}, "contentChanges": [change]});
    client.notify("textDocument/didChange", changed).await.expect("sent");
    let command = json!({"command": item["command"]["command"], "arguments": item["command"]["arguments"]});
    client.request("workspace/executeCommand", command).await.expect("an answer");
    client.request("shutdown", Value::Null).await.expect("an answer");
    client.notify("exit", Value::Null).await.expect("sent");
    assert!(server.wait().await.expect("it ends").success());

    let file = home.path().join("redstart/record.jsonl");
    let record = std::fs::read_to_string(&file).expect("a record");
    let events: Vec<Value> =
        record.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["event"].as_str()).collect();
    assert_eq!(kinds, ["shown", "accepted"], "{record}");
    assert_eq!(events[0]["language"], "python");
    assert!(!record.contains(suggested) && !record.contains("secret_name"), "{record}");

    let stats = std::process::Command::new(redstart_binary())
        .args(["stats", "--file"])
        .arg(&file)
        .output()
        .expect("redstart runs");
    let table = String::from_utf8_lossy(&stats.stdout);
    assert!(stats.status.success() && table.contains("python") && table.contains("100"), "{table}");
}
