//! Code actions, reviews and findings.

use serde_json::{Value, json};

use crate::session::{Editor, Session, URI, range_of};
use crate::{helix, neovim, vscode};

const TEXT: &str = "import os\n\ndef mean(xs):\n    total = 0\n    return total / len(xs)\n";
const ANSWER: &str = r#"{"first_line": 3, "last_line": 3, "severity": "error", "kind": "bug",
 "message": "divides by zero", "replacement": "    return total / max(len(xs), 1)"}"#;

async fn actions_at(session: &mut Session, line: u32) -> Value {
    let params = json!({
        "textDocument": { "uri": URI },
        "range": range_of([line, 4, line, 4]),
        "context": { "diagnostics": [], "triggerKind": 1 },
    });
    session.request("textDocument/codeAction", params).await
}

async fn execute(session: &mut Session, command: &Value) -> Value {
    let params = json!({ "command": command["command"], "arguments": command["arguments"] });
    session.request("workspace/executeCommand", params).await
}

/// Opens the text and reviews its function.
async fn reviewed(capabilities: Value) -> Session {
    let mut session = Editor::new(capabilities).start().await;
    session.generator.say(ANSWER);
    session.open(TEXT).await;
    let action = actions_at(&mut session, 3).await[0].clone();
    assert_eq!(action["title"], "Review this function");
    let result = execute(&mut session, &action["command"]).await;
    assert_eq!(result, json!({ "findings": 1 }));
    session
}

#[tokio::test]
async fn a_review_is_published_where_the_client_does_not_pull() {
    let mut session = reviewed(neovim()).await;
    let published = session.event("textDocument/publishDiagnostics", |_| true).await;
    assert_eq!(published["version"], 1);
    let diagnostic = &published["diagnostics"][0];
    assert_eq!(diagnostic["source"], "redstart");
    assert_eq!(diagnostic["range"], range_of([4, 4, 4, 26]));
    assert_eq!((&diagnostic["severity"], &diagnostic["code"]), (&json!(1), &json!("bug")));
    assert_eq!(session.events("workspace/diagnostic/refresh").await, Vec::<Value>::new());

    // Moves with edits above, goes with edits on its line.
    session.change([0, 0, 0, 0], "# new\n").await;
    let moved = session.event("textDocument/publishDiagnostics", |_| true).await;
    assert_eq!(moved["diagnostics"][0]["range"]["start"]["line"], 5);
    session.change([5, 0, 5, 1], "").await;
    let gone = session.event("textDocument/publishDiagnostics", |_| true).await;
    assert_eq!(gone["diagnostics"], json!([]));
    session.finish().await;
}

#[tokio::test]
async fn a_review_is_pulled_where_the_client_can() {
    let mut session = reviewed(vscode()).await;
    session.event("workspace/diagnostic/refresh", |_| true).await;
    let pull = json!({ "textDocument": { "uri": URI } });
    let report = session.request("textDocument/diagnostic", pull.clone()).await;
    assert_eq!(report["kind"], "full");
    assert_eq!(report["items"][0]["message"], "divides by zero");
    let mut again = pull;
    again["previousResultId"] = report["resultId"].clone();
    let unchanged = session.request("textDocument/diagnostic", again).await;
    assert_eq!(unchanged["kind"], "unchanged");
    let published = session.events("textDocument/publishDiagnostics").await;
    assert_eq!(published, Vec::<Value>::new(), "never both");
    session.finish().await;
}

#[tokio::test]
async fn closing_a_document_clears_its_findings() {
    let session = reviewed(helix()).await;
    session.notify("textDocument/didClose", json!({ "textDocument": { "uri": URI } })).await;
    session.event("textDocument/publishDiagnostics", |of| of["diagnostics"] == json!([])).await;
    session.finish().await;
}

#[tokio::test]
async fn a_fix_is_made_when_chosen_for_the_text_as_it_is() {
    let mut session = reviewed(vscode()).await;
    session.change([0, 0, 0, 0], "# new\n").await;
    let actions = actions_at(&mut session, 5).await;
    let fix = actions[0].clone();
    assert_eq!((&fix["title"], &fix["kind"]), (&json!("Apply fix: divides by zero"), &json!("quickfix")));
    assert!(fix.get("edit").is_none(), "lazy");
    let resolved = session.request("codeAction/resolve", fix.clone()).await;
    let document = &resolved["edit"]["documentChanges"][0];
    assert_eq!(document["textDocument"], json!({ "uri": URI, "version": 2 }));
    assert_eq!(document["edits"][0]["newText"], "    return total / max(len(xs), 1)");
    assert_eq!(document["edits"][0]["range"], range_of([5, 0, 5, 26]));

    session.change([5, 0, 5, 0], "x").await;
    assert_eq!(session.failing("codeAction/resolve", fix).await["code"], -32801, "stale");
    session.finish().await;
}

#[tokio::test]
async fn a_finding_can_be_dismissed() {
    let mut session = reviewed(neovim()).await;
    let actions = actions_at(&mut session, 4).await;
    let dismiss = &actions[1];
    assert_eq!(dismiss["title"], "Dismiss: divides by zero");
    execute(&mut session, &dismiss["command"]).await;
    session.event("textDocument/publishDiagnostics", |of| of["diagnostics"] == json!([])).await;
    session.finish().await;
}

#[tokio::test]
async fn a_model_that_cannot_review_says_why() {
    let mut session = Editor::new(vscode()).with_base_model().start().await;
    session.open(TEXT).await;
    let action = actions_at(&mut session, 3).await[0].clone();
    let reason = action["disabled"]["reason"].as_str().expect("disabled");
    assert!(reason.contains("chat template"), "{reason}");
    assert!(action.get("command").is_none());
    session.finish().await;

    // A client that cannot show a disabled action gets one that shows the reason.
    let mut session = Editor::new(json!({})).with_base_model().start().await;
    session.open(TEXT).await;
    let action = actions_at(&mut session, 3).await[0].clone();
    execute(&mut session, &action["command"]).await;
    let shown = session.event("window/showMessage", |of| of["type"] == 3).await;
    assert!(shown["message"].as_str().expect("text").contains("chat template"), "{shown}");
    session.finish().await;
}

#[tokio::test]
async fn no_function_no_review_and_no_lamp_uninvited() {
    let mut session = Editor::new(vscode()).start().await;
    session.open(TEXT).await;
    assert_eq!(actions_at(&mut session, 0).await, json!([]));
    let params = json!({
        "textDocument": { "uri": URI },
        "range": range_of([3, 4, 3, 4]),
        "context": { "diagnostics": [], "triggerKind": 2 },
    });
    assert_eq!(session.request("textDocument/codeAction", params).await, json!([]));
    session.finish().await;
}

#[tokio::test]
async fn a_review_shows_progress_and_can_be_cancelled() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open(TEXT).await;
    let params = json!({ "command": "redstart.review", "arguments": [URI, 3] });
    let id = session.ask("workspace/executeCommand", params).await;
    let created = session.event("window/workDoneProgress/create", |_| true).await;
    let begin = session.event("$/progress", |of| of["value"]["kind"] == "begin").await;
    assert_eq!(begin["token"], created["token"]);
    assert_eq!(begin["value"]["title"], "Reviewing mean");
    assert_eq!(begin["value"]["cancellable"], true);
    session.generator.holding(1).await;
    let cancel = json!({ "token": begin["token"] });
    session.notify("window/workDoneProgress/cancel", cancel).await;
    assert_eq!(session.response(id).await["error"]["code"], -32800);
    assert_eq!(session.generator.cancelled(), [true]);
    session.event("$/progress", |of| of["value"]["kind"] == "end").await;
    session.finish().await;
}

#[tokio::test]
async fn a_client_s_own_token_is_used() {
    let mut session = Editor::new(json!({})).start().await;
    session.generator.say("no findings");
    session.open(TEXT).await;
    let params = json!({ "command": "redstart.review", "arguments": [URI, 3], "workDoneToken": "mine" });
    assert_eq!(session.request("workspace/executeCommand", params).await, json!({ "findings": 0 }));
    session.event("$/progress", |of| of["token"] == "mine" && of["value"]["kind"] == "begin").await;
    session.event("$/progress", |of| of["token"] == "mine" && of["value"]["kind"] == "end").await;
    let shown = session.event("window/showMessage", |_| true).await;
    assert!(shown["message"].as_str().expect("text").contains("mean"), "{shown}");
    session.finish().await;
}

#[tokio::test]
async fn edits_during_a_review_move_its_findings() {
    let mut session = Editor::new(neovim()).start().await;
    session.generator.hold();
    session.open(TEXT).await;
    let params = json!({ "command": "redstart.review", "arguments": [URI, 3] });
    let id = session.ask("workspace/executeCommand", params).await;
    session.generator.holding(1).await;
    session.change([0, 0, 0, 0], "# one\n# two\n").await;
    session.text().await;
    session.generator.release(0, ANSWER);
    assert_eq!(session.response(id).await["result"], json!({ "findings": 1 }));
    let published = session.event("textDocument/publishDiagnostics", |_| true).await;
    assert_eq!(published["version"], 2);
    assert_eq!(published["diagnostics"][0]["range"]["start"]["line"], 6);
    session.finish().await;
}
