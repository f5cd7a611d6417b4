//! Garbage costs an error message, not the session; so does a defect of our own.

use serde_json::{Value, json};

use crate::session::{Editor, URI};
use crate::vscode;

#[tokio::test]
async fn malformed_messages_are_answered_and_the_session_goes_on() {
    let mut session = Editor::new(vscode()).start().await;
    let framed = |body: &str| format!("Content-Length: {}\r\n\r\n{body}", body.len());
    let cases = [
        (framed("{\"jsonrpc\": \"2.0\", "), -32700, "null"),
        (framed("[]"), -32600, "null"),
        (framed("{\"jsonrpc\":\"2.0\",\"id\":\"a\"}"), -32600, "\"a\""),
        (framed("{\"jsonrpc\":\"1.0\",\"id\":\"b\",\"method\":\"x\"}"), -32600, "\"b\""),
        (framed("{\"jsonrpc\":\"2.0\",\"id\":\"c\",\"method\":\"no/such\"}"), -32601, "\"c\""),
        ("Content-Length: three\r\n\r\n".to_owned(), -32600, "null"),
    ];
    for (bytes, code, id) in cases {
        session.send_raw(bytes.as_bytes()).await;
        let response = session.response(id).await;
        assert_eq!(response["error"]["code"], code, "{bytes}: {response}");
        session.request("redstart/status", Value::Null).await;
    }
    session.finish().await;
}

#[tokio::test]
async fn wrong_parameters_are_named() {
    let mut session = Editor::new(vscode()).start().await;
    let error = session.failing("textDocument/inlineCompletion", json!({ "position": 1 })).await;
    assert_eq!(error["code"], -32602);
    assert!(error["message"].as_str().expect("text").contains("context"), "{error}");
    session.notify("textDocument/didOpen", json!({ "textDocument": { "uri": URI } })).await;
    let log = session.event("window/logMessage", |of| of["type"] == 1).await;
    assert!(log["message"].as_str().expect("text").contains("languageId"), "{log}");
    let error = session.failing("workspace/executeCommand", json!({ "command": "no.such" })).await;
    assert!(error["message"].as_str().expect("text").contains("redstart.review"), "{error}");
    session.finish().await;
}

#[tokio::test]
async fn a_panic_is_reported_once_and_the_session_goes_on() {
    let mut session = Editor::new(vscode()).start().await;
    session.open("x = ").await;
    session.generator.panic();
    assert_eq!(session.inline(0, 4).await, Value::Null);
    assert_eq!(session.inline(0, 4).await, Value::Null);
    let shown = session.events("window/showMessage").await;
    assert_eq!(shown.len(), 1, "{shown:?}");
    session.generator.say("1");
    session.suggestion(0, 4).await;
    session.finish().await;
}
