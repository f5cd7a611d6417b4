//! The server's text is the editor's text, or it says so.

use serde_json::{Value, json};

use crate::session::{Editor, URI, range_of};
use crate::{helix, neovim, vscode};

#[tokio::test]
async fn edits_in_each_encoding_reach_the_same_text() {
    // After the emoji, and the width of the letter there.
    for (capabilities, after_emoji, letter) in [(vscode(), 7, 1), (neovim(), 9, 2)] {
        let mut session = Editor::new(capabilities).start().await;
        session.open("a = '😀é'\r\nb = 1\r\n").await;
        session.change([0, after_emoji, 0, after_emoji + letter], "ü").await;
        session.change([0, 99, 1, 0], "\r\n\r\n").await;
        assert_eq!(session.text().await, ("a = '😀ü'\r\n\r\nb = 1\r\n".to_owned(), 3));
        session.finish().await;
    }
}

#[tokio::test]
async fn several_changes_of_one_message_apply_one_after_another() {
    let mut session = Editor::new(helix()).start().await;
    session.open("one\ntwo\n").await;
    let changes = json!([
        { "range": range_of([0, 0, 1, 0]), "text": "" },
        { "range": range_of([0, 3, 0, 3]), "text": "!" },
        { "text": "whole" },
        { "range": range_of([0, 5, 0, 5]), "text": "\n" },
    ]);
    session.change_all(changes).await;
    assert_eq!(session.text().await.0, "whole\n");
    session.finish().await;
}

#[tokio::test]
async fn an_impossible_edit_sets_the_document_aside_until_its_whole_text_comes() {
    let impossible = [
        json!({ "range": range_of([1, 0, 0, 0]), "text": "x" }),
        json!({ "range": range_of([7, 0, 7, 0]), "text": "x" }),
        json!({ "range": { "start": { "line": -1, "character": 0 },
            "end": { "line": 0, "character": 0 } }, "text": "x" }),
    ];
    for change in impossible {
        let mut session = Editor::new(vscode()).start().await;
        session.generator.say("1");
        session.open("x = \n").await;
        session.suggestion(0, 4).await;
        session.change_all(json!([change])).await;
        let log = session.event("window/showMessage", |of| of["type"] == 1).await;
        assert!(log["message"].as_str().expect("text").contains(URI), "{log}");
        assert_eq!(session.inline(0, 4).await, Value::Null, "{change}");
        let last = session.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
        assert!(last["reason"].as_str().expect("why").contains("out of step"), "{last}");
        session.change([0, 0, 0, 0], "ignored").await;
        assert_eq!(session.text().await.0, "x = \n");

        session.change_all(json!([{ "text": "y = " }])).await;
        assert_eq!(session.text().await.0, "y = ");
        session.suggestion(0, 4).await;
        session.finish().await;
    }
}

#[tokio::test]
async fn a_save_puts_a_document_right() {
    let mut session = Editor::new(vscode()).start().await;
    session.open("a").await;
    session.change([9, 0, 9, 0], "x").await;
    let saved = json!({ "textDocument": { "uri": URI }, "text": "saved\n" });
    session.notify("textDocument/didSave", saved).await;
    assert_eq!(session.text().await.0, "saved\n");
    session.change([0, 0, 0, 0], "is ").await;
    assert_eq!(session.text().await.0, "is saved\n");
    session.finish().await;
}

#[tokio::test]
async fn changes_of_documents_that_are_not_open_are_ignored() {
    let mut session = Editor::new(vscode()).start().await;
    session.change([0, 0, 0, 0], "x").await;
    let view = session.request("redstart/viewFileText", json!({ "uri": URI })).await;
    assert_eq!(view, Value::Null);
    session.open("a").await;
    session.notify("textDocument/didClose", json!({ "textDocument": { "uri": URI } })).await;
    assert_eq!(session.inline(0, 0).await, Value::Null);
    session.finish().await;
}

#[tokio::test]
async fn long_lines_and_binary_files_stay_open_without_suggestions() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.say("1");
    let long = format!("{}\nx = \n", "a".repeat(5 << 20));
    for (text, line, reason) in [(long.as_str(), 0, "bytes long"), ("x\0y = ", 0, "binary")] {
        session.open(text).await;
        assert_eq!(session.inline(line, 3).await, Value::Null);
        let last = session.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
        assert!(last["reason"].as_str().expect("why").contains(reason), "{last}");
        session.change([0, 0, 0, 1], "b").await;
        assert_eq!(session.text().await.1, 2);
    }
    session.open(&format!("{}\nx = \n", "a".repeat(1 << 20))).await;
    assert_eq!(session.inline(0, 3).await, Value::Null);
    session.suggestion(1, 4).await;
    session.finish().await;
}

#[tokio::test]
async fn positions_past_the_end() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.say("1");
    session.open("x = ").await;
    let item = session.suggestion(0, 999).await;
    assert_eq!(item["range"], range_of([0, 4, 0, 4]), "the end of the line");
    assert_eq!(session.inline(77, 0).await, Value::Null);
    session.open("").await;
    session.inline(0, 0).await;
    session.finish().await;
}
