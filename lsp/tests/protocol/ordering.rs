//! Edits and requests take effect in the order they were sent, however many are under way.

use std::time::Duration;

use serde_json::json;

use crate::session::{Editor, URI, typing_params};
use crate::vscode;

/// 2,000 edits, each followed by a request that must see exactly the edits before it, while a request
/// that never ends is under way. Sent without waiting, so that they queue up in the server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_edits_and_requests_keep_their_order() {
    const EDITS: usize = 2000;
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("\nvalue = ").await;
    let held = session.ask("textDocument/inlineCompletion", typing_params(1, 8)).await;
    session.generator.holding(1).await;
    session.generator.say("");
    let mut asked = Vec::new();
    for _ in 0..EDITS {
        session.change([0, 0, 0, 0], "a").await;
        asked.push(session.ask("redstart/viewFileText", json!({ "uri": URI })).await);
    }
    for (done, id) in (1..).zip(asked) {
        let response = session.response(id).await;
        assert_eq!(response["result"]["version"], done + 1, "{response}");
        let text = response["result"]["text"].as_str().expect("open");
        assert_eq!(text.len(), 9 + done, "version {}", done + 1);
    }
    session.generator.release(0, "1");
    assert_eq!(session.response(held).await["result"]["items"][0]["insertText"], "1");
    session.finish().await;
}

#[tokio::test]
async fn a_cancel_is_seen_behind_requests_that_never_end() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    let mut asked = Vec::new();
    for n in 0..8 {
        let uri = format!("file:///w/{n}.py");
        session.open_as(&uri, "python", "value = ").await;
        let mut params = typing_params(0, 8);
        params["textDocument"]["uri"] = json!(uri);
        asked.push(session.ask("textDocument/inlineCompletion", params).await);
    }
    session.generator.holding(8).await;
    let last = asked.pop().expect("eight");
    session.notify("$/cancelRequest", json!({ "id": last })).await;
    assert_eq!(session.response(last).await["error"]["code"], -32800);
    // A moment later, as another request for the same might have come.
    while !session.generator.cancelled().contains(&true) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(session.generator.cancelled().iter().filter(|cancelled| **cancelled).count(), 1);
    session.finish().await;
}
