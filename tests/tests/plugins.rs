//! A plugin that misbehaves costs its prompt, never the session: typing goes on with the built-in one.

use redstart_tests::{Session, repository};
use serde_json::{Value, json};

const SOURCE: &str = "def add(a, b):\n    return \n\n\ndef sub(a, b):\n    return a - b\n";

/// Asks for a suggestion in `SOURCE`, open under `uri`.
async fn suggest(session: &mut Session, uri: &str) -> (Value, Value) {
    let parameters = json!({
        "textDocument": {"uri": uri},
        "position": {"line": 1, "character": 11},
        "context": {"triggerKind": 1},
    });
    let answer =
        session.client.request("textDocument/inlineCompletion", parameters).await.expect("an answer");
    let account =
        session.client.request("redstart/lastSuggestion", json!({"uri": uri})).await.expect("an account");
    (answer, account)
}

fn told(session: &mut Session) -> Vec<String> {
    let notifications = session.client.take_notifications();
    let shown = notifications.iter().filter(|of| of["method"] == "window/showMessage");
    shown.filter_map(|of| of["params"]["message"].as_str().map(str::to_owned)).collect()
}

#[tokio::test]
async fn typing_goes_on_when_the_plugin_does_not() {
    let hostile = repository().join("plugins/guests/built/hostile.wasm").display().to_string();
    for misdeed in ["trap", "spin", "grow", "recurse", "flood", "control", "refuse"] {
        let mut session = Session::start(&["--plugin", &hostile]).await;
        // The document's name tells the hostile plugin what to do.
        let uri = format!("file:///w/{misdeed}");
        session.open(&uri, SOURCE).await;
        let (answer, account) = suggest(&mut session, &uri).await;
        assert!(answer["items"][0]["insertText"].is_string(), "{misdeed}: {answer}");
        assert_eq!(account["fallbackPrompt"], true, "{misdeed}: {account}");
        suggest(&mut session, &uri).await;
        let told = told(&mut session);
        assert_eq!(told.len(), 1, "{misdeed}: the user is told once: {told:?}");
        assert!(told[0].contains("hostile"), "{misdeed}: {told:?}");
        session.end().await;
    }
}
