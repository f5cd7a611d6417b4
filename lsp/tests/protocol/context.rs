//! Text from elsewhere in the workspace reaches prompts, and what must not does not.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::session::{Editor, Session, range_of, typing_params};
use crate::vscode;

/// Beyond this a test hangs; nothing is measured by it.
const HANGS: Duration = Duration::from_secs(60);

const MAIN: &str = "from helper import compute_total\n\nresult = ";

async fn in_workspace(folder: &Path, context: Value) -> (Session, String) {
    fs::write(
        folder.join("helper.py"),
        "def compute_total(orders, tax):\n    \"\"\"Sum of all orders.\"\"\"\n    return sum(orders) * tax\n",
    )
    .expect("a file");
    fs::write(folder.join(".env"), "TOKEN=abc123compute_total\n").expect("a file");
    fs::write(folder.join("main.py"), MAIN).expect("a file");
    let mut editor = Editor::new(vscode());
    editor.folder = format!("file://{}", folder.display());
    editor.configuration = json!({ "completion": { "context": context } });
    let mut session = editor.start().await;
    session.generator.say("x\n");
    let uri = format!("file://{}/main.py", folder.display());
    session.open_as(&uri, "python", MAIN).await;
    (session, uri)
}

/// The prompt of another request.
async fn prompt(session: &mut Session, uri: &str) -> String {
    let mut params = typing_params(2, 9);
    params["textDocument"]["uri"] = json!(uri);
    params["context"]["triggerKind"] = json!(1);
    session.request("textDocument/inlineCompletion", params).await;
    session.generator.last_prompt()
}

async fn until(session: &mut Session, uri: &str, fits: impl Fn(&str) -> bool) -> String {
    let started = Instant::now();
    loop {
        let prompt = prompt(session, uri).await;
        if fits(&prompt) {
            return prompt;
        }
        assert!(started.elapsed() < HANGS, "the last prompt was {prompt:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn definitions_behind_imports_are_in_the_prompt_and_secrets_are_not() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, uri) = in_workspace(folder.path(), json!({})).await;
    let prompt = until(&mut session, &uri, |prompt| prompt.contains("def compute_total(orders, tax)")).await;
    let definition = prompt.find("def compute_total").expect("there");
    let import = prompt.find("from helper import").expect("the file itself");
    assert!(definition < import, "what changes least stands first: {prompt}");
    assert!(!prompt.contains("abc123"), "{prompt}");
    session.finish().await;
}

#[tokio::test]
async fn a_source_that_is_switched_off_gives_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, uri) =
        in_workspace(folder.path(), json!({ "definitions": false, "similar": false })).await;
    fs::write(folder.path().join("other.py"), "").expect("a file");
    let other = format!("file://{}/other.py", folder.path().display());
    session.open_as(&other, "python", "def helper_of_other(value):\n    return value\n").await;
    session.open_as(&uri, "python", MAIN).await;
    let prompt = until(&mut session, &uri, |prompt| prompt.contains("helper_of_other")).await;
    assert!(!prompt.contains("def compute_total"), "{prompt}");
    session.finish().await;
}

#[tokio::test]
async fn what_other_servers_say_near_the_caret_is_in_the_prompt_after_a_pause() {
    let folder = tempfile::tempdir().expect("a folder");
    let (mut session, uri) = in_workspace(folder.path(), json!({})).await;
    let diagnostic = json!({
        "range": range_of([2, 0, 2, 6]), "message": "name 'result' is never used", "severity": 2, "source": "lint",
    });
    let params = json!({
        "textDocument": { "uri": uri }, "range": range_of([2, 0, 2, 0]), "context": { "diagnostics": [diagnostic] },
    });
    session.request("textDocument/codeAction", params).await;
    let edit = json!([{ "range": range_of([2, 9, 2, 9]), "text": " " }]);
    let document = json!({ "uri": uri, "version": 2 });
    session
        .notify("textDocument/didChange", json!({ "textDocument": document, "contentChanges": edit }))
        .await;
    until(&mut session, &uri, |prompt| prompt.contains("is never used")).await;
    session.finish().await;
}
