//! The beginning and end of a session.

use std::time::Duration;

use redstart::model::ModelState;
use redstart::server::Reason;
use serde_json::{Value, json};

use crate::session::Editor;
use crate::{helix, neovim, vscode};

#[tokio::test]
async fn each_editor_gets_what_it_can_use() {
    let cases = [
        ("vscode", vscode(), "utf-16", false, true),
        ("neovim", neovim(), "utf-8", false, false),
        ("helix", helix(), "utf-8", true, false),
    ];
    for (name, capabilities, encoding, menu, pulls) in cases {
        let session = Editor::new(capabilities).start().await;
        let result = session.initialized.clone();
        assert_eq!(result["serverInfo"]["name"], "redstart");
        assert_eq!(result["serverInfo"]["version"], env!("CARGO_PKG_VERSION"));
        let offered = &result["capabilities"];
        assert_eq!(offered["positionEncoding"], encoding, "{name}");
        assert_eq!(offered["textDocumentSync"]["change"], 2, "{name}");
        assert_eq!(offered["inlineCompletionProvider"], true, "{name}");
        assert_eq!(offered.get("completionProvider").is_some(), menu, "{name}");
        assert_eq!(offered.get("diagnosticProvider").is_some(), pulls, "{name}");
        assert_eq!(offered["codeActionProvider"]["resolveProvider"], true, "{name}");
        session.finish().await;
    }
}

#[tokio::test]
async fn initialize_is_answered_and_requests_are_null_while_the_model_loads() {
    let mut editor = Editor::new(vscode());
    let ready = editor.state.clone();
    editor.state = ModelState::Loading { what: "loading weights".into() };
    let mut session = editor.start().await;
    session.open("x = ").await;
    assert_eq!(session.inline(0, 4).await, Value::Null);
    let begin = session.event("$/progress", |of| of["value"]["kind"] == "begin").await;
    assert_eq!(begin["value"]["message"], "loading weights");
    assert!(begin["token"].is_string());
    let _ = session.state.send(ready);
    let end = session.event("$/progress", |of| of["value"]["kind"] == "end").await;
    assert_eq!(end["token"], begin["token"]);
    session.generator.say("1");
    assert_eq!(session.suggestion(0, 4).await["insertText"], "1");
    session.finish().await;
}

#[tokio::test]
async fn a_client_without_progress_is_told_by_a_message() {
    let mut editor = Editor::new(json!({}));
    editor.state = ModelState::Loading { what: "loading weights".into() };
    let session = editor.start().await;
    let shown = session.event("window/showMessage", |_| true).await;
    assert_eq!(shown["message"], "Redstart: loading weights");
    session.finish().await;
}

#[tokio::test]
async fn a_model_that_failed_is_an_error_message_once() {
    let mut editor = Editor::new(vscode());
    let failed = ModelState::Failed { message: "no config.json in /models/x".into() };
    editor.state = failed.clone();
    let mut session = editor.start().await;
    let shown = session.event("window/showMessage", |of| of["type"] == 1).await;
    assert!(shown["message"].as_str().expect("text").contains("no config.json"), "{shown}");
    let _ = session.state.send(failed);
    assert_eq!(session.request("redstart/status", Value::Null).await["state"], "failed");
    assert_eq!(session.events("window/showMessage").await, Vec::<Value>::new());
    session.finish().await;
}

#[tokio::test]
async fn after_shutdown_requests_are_refused_and_exit_is_clean() {
    let mut session = Editor::new(vscode()).start().await;
    session.request("shutdown", Value::Null).await;
    assert_eq!(session.failing("redstart/status", Value::Null).await["code"], -32600);
    session.notify("exit", Value::Null).await;
    let ended = session.end().await;
    assert_eq!((ended.reason, ended.exit_code()), (Reason::Exit, 0));
}

#[tokio::test]
async fn exit_without_shutdown_and_a_closed_input_end_with_code_one() {
    let session = Editor::new(vscode()).start().await;
    session.notify("exit", Value::Null).await;
    let ended = session.end().await;
    assert_eq!((ended.reason, ended.exit_code()), (Reason::Exit, 1));

    let ended = Editor::new(vscode()).start().await.end().await;
    assert_eq!((ended.reason, ended.exit_code()), (Reason::EndOfInput, 1));
}

#[tokio::test]
#[cfg(target_os = "linux")]
async fn the_server_ends_with_the_editor_s_process() {
    let mut process = std::process::Command::new("sleep").arg("1000").spawn().expect("sleep");
    let mut editor = Editor::new(vscode());
    editor.process_id = json!(process.id());
    editor.options.parent_poll = Duration::from_millis(10);
    let mut session = editor.start().await;
    // Answered after `initialized` was dealt with, and with it the first look at the process.
    session.request("redstart/status", Value::Null).await;
    process.kill().expect("it runs");
    // Not yet waited for: a zombie counts as ended.
    assert_eq!(session.ends_by_itself().await.reason, Reason::ParentEnded);
    process.wait().expect("it ran");
}

#[tokio::test]
async fn work_under_way_stops_with_the_session() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("value = ").await;
    session.ask("textDocument/inlineCompletion", crate::session::typing_params(0, 8)).await;
    session.generator.holding(1).await;
    let generator = std::sync::Arc::clone(&session.generator);
    session.end().await;
    assert_eq!(generator.cancelled(), [true]);
}
