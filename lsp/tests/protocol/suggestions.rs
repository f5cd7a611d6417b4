//! Inline completions and the completion menu.

use serde_json::{Value, json};

use crate::session::{Editor, URI, inline_params, range_of};
use crate::{helix, vscode};

#[tokio::test]
async fn an_inline_completion_has_a_range_on_one_line_and_an_account() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.say("1 + 2\n");
    session.open("é = \nprint(x)\n").await;
    let items = session.inline(0, 4).await["items"].clone();
    assert_eq!(items.as_array().map(Vec::len), Some(1));
    assert_eq!(items[0]["insertText"], "1 + 2");
    assert_eq!(items[0]["range"], range_of([0, 4, 0, 4]));
    let last = session.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
    assert_eq!((&last["version"], &last["promptTokens"]), (&json!(1), &json!(10)));
    assert!(last["totalMs"].is_f64(), "{last}");
    session.finish().await;
}

#[tokio::test]
async fn nothing_to_suggest_is_null() {
    let mut session = Editor::new(vscode()).start().await;
    session.open("x = ").await;
    assert_eq!(session.inline(0, 4).await, Value::Null);
    let last = session.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
    assert!(last["reason"].is_string() && last["version"] == 1, "{last}");
    session.finish().await;
}

#[tokio::test]
async fn with_a_menu_entry_selected_the_item_begins_with_it() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.say("(1)\n");
    session.open("x = pri\n").await;
    let mut params = inline_params(0, 7);
    params["context"]["selectedCompletionInfo"] = json!({ "range": range_of([0, 4, 0, 7]), "text": "print" });
    let item = session.request("textDocument/inlineCompletion", params).await["items"][0].clone();
    assert_eq!(item["insertText"], "print(1)");
    assert_eq!(item["range"], range_of([0, 4, 0, 7]));
    session.finish().await;
}

#[tokio::test]
async fn the_menu_has_one_incomplete_entry_with_an_explicit_edit() {
    let mut session = Editor::new(helix()).start().await;
    session.generator.say("urn 1\n");
    session.open("def first(items):\n    ret\n").await;
    let params = json!({
        "textDocument": { "uri": URI },
        "position": { "line": 1, "character": 7 },
        "context": { "triggerKind": 1 },
    });
    let list = session.request("textDocument/completion", params).await;
    assert_eq!(list["isIncomplete"], true);
    let item = &list["items"][0];
    assert_eq!(item["textEdit"]["newText"], "return 1");
    assert_eq!(item["textEdit"]["range"], range_of([1, 4, 1, 7]));
    assert_eq!(item["filterText"], "return 1");
    assert_eq!(item["preselect"], true);
    session.finish().await;
}
