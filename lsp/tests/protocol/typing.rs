//! Few keystrokes reach the model: typed through, joined, ahead of the request, turned down.

use std::time::{Duration, Instant};

use redstart_engine::request::Priority;
use serde_json::{Value, json};

use crate::session::{Editor, Session, URI, inline_params, range_of, typing_params};
use crate::vscode;

fn text(result: &Value) -> &str {
    result["items"][0]["insertText"].as_str().unwrap_or("nothing")
}

async fn source(session: &mut Session) -> Value {
    session.request("redstart/lastSuggestion", json!({ "uri": URI })).await["source"].clone()
}

/// A session in which `says` is suggested at the end of `before`, with whatever else is in the file.
async fn suggested(before: &str, after: &str, says: &str) -> (Session, Value) {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.say(says);
    session.open(&format!("{before}{after}")).await;
    let line = before.matches('\n').count() as u32;
    let character = before.lines().last().unwrap_or_default().len() as u32;
    let first = session.request("textDocument/inlineCompletion", typing_params(line, character)).await;
    session.generator.say("not this\n");
    (session, first)
}

#[tokio::test]
async fn text_that_agrees_is_answered_without_the_engine() {
    let (mut session, first) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    assert_eq!(text(&first), "compute(1, 2)");
    for (typed, rest) in [("c", "ompute(1, 2)"), ("omp", "ute(1, 2)"), ("ute(", "1, 2)")] {
        let character = 8 + "compute(1, 2)".find(rest).expect("a rest") as u32 - typed.len() as u32;
        let result = session.type_and_ask(0, character, typed).await;
        assert_eq!(text(&result), rest);
        assert_eq!(source(&mut session).await, "typedThrough");
    }
    session.finish().await;
}

#[tokio::test]
async fn a_bracket_that_the_editor_closes_is_replaced() {
    let (mut session, _) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    session.change([0, 8, 0, 8], "compute()").await;
    let result = session.request("textDocument/inlineCompletion", typing_params(0, 16)).await;
    assert_eq!(text(&result), "1, 2)");
    assert_eq!(result["items"][0]["range"], range_of([0, 16, 0, 17]));
    session.finish().await;
}

#[tokio::test]
async fn a_word_accepted_keeps_the_rest_and_an_edit_above_moves_it() {
    let (mut session, _) = suggested("\nvalue = ", "\n", "first second third\n").await;
    session.change([0, 0, 0, 0], "import os\n").await;
    let result = session.type_and_ask(2, 8, "first ").await;
    assert_eq!(text(&result), "second third");
    session.finish().await;
}

#[tokio::test]
async fn what_diverges_is_asked_for_anew_and_not_offered_again() {
    let (mut session, _) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    let other = session.type_and_ask(0, 8, "x").await;
    assert_eq!(text(&other), "not this");
    session.generator.say("compute(1, 2)\n");
    session.change([0, 8, 0, 9], "").await;
    let again = session.request("textDocument/inlineCompletion", typing_params(0, 8)).await;
    assert_eq!(again, Value::Null, "it was turned down");
    let invoked = session.request("textDocument/inlineCompletion", inline_params(0, 8)).await;
    assert_eq!(text(&invoked), "compute(1, 2)", "asked for");
    session.finish().await;
}

#[tokio::test]
async fn erasing_does_not_bring_a_suggestion_back_and_typing_on_does() {
    let (mut session, _) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    assert_eq!(text(&session.type_and_ask(0, 8, "com").await), "pute(1, 2)");
    session.generator.say("mpute(1, 2)\n");
    session.change([0, 10, 0, 11], "").await;
    let back = session.request("textDocument/inlineCompletion", typing_params(0, 10)).await;
    assert_eq!(back, Value::Null);
    session.generator.say("ute(1, 2)\n");
    let on = session.type_and_ask(0, 10, "mp").await;
    assert_eq!(text(&on), "ute(1, 2)", "typed beyond what was erased");
    session.finish().await;
}

#[tokio::test]
async fn a_line_that_is_undone_is_begun_anew() {
    let (mut session, _) = suggested("a\n    value = ", "\nb\n", "compute(1, 2)\n").await;
    session.type_and_ask(1, 12, "compute(1, 2)").await;
    // As Neovim undoes it: what was accepted, what was typed, and the line, in one message.
    session
        .change_all(json!([
            { "range": range_of([1, 12, 1, 25]), "text": "" },
            { "range": range_of([1, 4, 1, 12]), "text": "" },
            { "range": range_of([1, 0, 2, 0]), "text": "" },
        ]))
        .await;
    assert_eq!(session.text().await.0, "a\nb\n");
    session.change([0, 1, 0, 1], "\n    ").await;
    session.generator.say("compute(1, 2)\n");
    let again = session.type_and_ask(1, 4, "value = ").await;
    assert_eq!(text(&again), "compute(1, 2)");
    session.finish().await;
}

#[tokio::test]
async fn a_keystroke_that_agrees_joins_the_generation_and_one_that_does_not_ends_it() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("value = \n").await;
    let first = session.ask("textDocument/inlineCompletion", typing_params(0, 8)).await;
    session.generator.holding(1).await;
    session.notify("$/cancelRequest", json!({ "id": first })).await;
    session.change([0, 8, 0, 8], "c").await;
    let second = session.ask("textDocument/inlineCompletion", typing_params(0, 9)).await;
    session.generator.release_some(0, "comp");
    session.change([0, 9, 0, 9], "o").await;
    let third = session.ask("textDocument/inlineCompletion", typing_params(0, 10)).await;
    assert_eq!(session.response(second).await["result"], Value::Null, "the third takes over");
    assert_eq!(session.generator.cancelled(), [false]);
    session.generator.release(0, "ute()\n");
    assert_eq!(text(&session.response(third).await["result"]), "mpute()");
    assert_eq!(source(&mut session).await, "joined");

    session.generator.hold();
    session.open_as(URI, "python", "total = \n").await;
    session.ask("textDocument/inlineCompletion", typing_params(0, 8)).await;
    session.generator.holding(2).await;
    session.generator.release_some(1, "sum");
    while session.generator.cancelled() == [false, false] {
        // The edit alone ends it; until the text is there everything agrees.
        session.change([0, 8, 0, 8], "x").await;
        session.request("redstart/status", Value::Null).await;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    session.finish().await;
}

#[tokio::test]
async fn a_request_that_joined_a_generation_that_fails_asks_for_itself() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("value = \n").await;
    session.ask("textDocument/inlineCompletion", typing_params(0, 8)).await;
    session.generator.holding(1).await;
    session.change([0, 8, 0, 8], "c").await;
    let second = session.ask("textDocument/inlineCompletion", typing_params(0, 9)).await;
    session.text().await;
    let waiting = Instant::now();
    tokio::time::sleep(Duration::from_millis(20)).await;
    session.generator.say("ompute()\n");
    let waited = waiting.elapsed();
    session.generator.fail(0);
    assert_eq!(text(&session.response(second).await["result"]), "ompute()");
    let last = session.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
    assert_eq!(last["source"], "engine");
    let before_the_engine =
        last["totalMs"].as_f64().expect("a time") - last["submitMs"].as_f64().expect("a time");
    assert!(
        before_the_engine >= waited.as_secs_f64() * 1e3,
        "waiting for the other is no part of submitting: {last}"
    );
    session.finish().await;
}

#[tokio::test]
async fn the_first_lines_of_a_block_that_takes_long_are_shown_only_if_the_model_is_sure() {
    for (probability, expected) in [(0.9, "while n:"), (0.1, "nothing")] {
        let mut session = Editor::new(vscode()).with_min_confidence(0.3).start().await;
        session.generator.be_sure(probability);
        session.generator.hold();
        session.open("def f(n):\n    \n").await;
        let asked = session.ask("textDocument/inlineCompletion", typing_params(1, 4)).await;
        session.generator.holding(1).await;
        session.generator.release_some(0, "while n:\n        n");
        // Longer than a line waits for the lines after it.
        tokio::time::sleep(Duration::from_millis(400)).await;
        session.generator.release(0, " -= 1\n");
        let result = session.response(asked).await["result"].clone();
        assert_eq!(text(&result), expected);
        session.finish().await;
    }
}

#[tokio::test]
async fn what_follows_a_suggestion_is_there_when_it_is_accepted() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open_as(URI, "javascript", "function f() \n").await;
    let first = session.ask("textDocument/inlineCompletion", typing_params(0, 13)).await;
    session.generator.holding(1).await;
    session.generator.release(0, "{\n");
    assert_eq!(text(&session.response(first).await["result"]), "{");
    session.generator.holding(2).await;
    let requests = session.generator.requests();
    assert_eq!(requests[1].priority, Priority::WarmUp, "it gives way to every keystroke");
    session.generator.release(1, "\n  return 1;\n}\n");
    // Accepted before the second is there, as may be: then it is waited for.
    let second = session.type_and_ask(0, 13, "{").await;
    assert_eq!(text(&second), "\n  return 1;\n}");
    assert_eq!(source(&mut session).await, "ahead");
    let typing = session.generator.requests().iter().filter(|r| r.priority == Priority::Typing).count();
    assert_eq!(typing, 1, "nothing was asked for anew");
    session.finish().await;
}

#[tokio::test]
async fn the_line_after_an_accepted_statement_is_there_after_enter() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("def f():\n    total = \n").await;
    let first = session.ask("textDocument/inlineCompletion", typing_params(1, 12)).await;
    session.generator.holding(1).await;
    session.generator.release(0, "add(1, 2)\n");
    assert_eq!(text(&session.response(first).await["result"]), "add(1, 2)");
    session.generator.holding(2).await;
    session.generator.release(1, "return total\n");
    session.change([1, 12, 1, 12], "add(1, 2)").await;
    session.change([1, 21, 1, 21], "\n    ").await;
    let second = session.request("textDocument/inlineCompletion", typing_params(2, 4)).await;
    assert_eq!(text(&second), "return total");
    assert_eq!(source(&mut session).await, "ahead");
    session.finish().await;
}

#[tokio::test]
async fn three_different_candidates_when_invoked() {
    let mut session = Editor::new(vscode()).start().await;
    session.generator.hold();
    session.open("value = \n").await;
    let asked = session.ask("textDocument/inlineCompletion", inline_params(0, 8)).await;
    session.generator.holding(5).await;
    for (index, text) in ["a()\n", "a()\n", "b()\n", "c()\n", "d()\n"].iter().enumerate() {
        session.generator.release(index, text);
    }
    let items = session.response(asked).await["result"]["items"].clone();
    let texts: Vec<&str> =
        items.as_array().expect("a list").iter().filter_map(|i| i["insertText"].as_str()).collect();
    assert_eq!(texts.len(), 3, "{texts:?}");
    assert!(texts.iter().collect::<std::collections::BTreeSet<_>>().len() == 3, "{texts:?}");
    session.finish().await;
}

#[tokio::test]
async fn the_totals_say_where_answers_came_from() {
    let (mut session, _) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    session.type_and_ask(0, 8, "c").await;
    session.type_and_ask(0, 9, "o").await;
    let totals = session.request("redstart/typingStats", Value::Null).await;
    assert_eq!(totals["requests"], 3);
    assert_eq!(totals["answered"], 3);
    assert_eq!((&totals["engine"], &totals["typedThrough"]), (&json!(1), &json!(2)));
    assert_eq!(totals["promptTokens"], 10);
    session.finish().await;
}

#[tokio::test]
async fn copilots_dialect_and_the_accept_command_are_understood() {
    let (mut session, first) = suggested("value = ", "\n", "compute(1, 2)\n").await;
    let item = first["items"][0].clone();
    session.notify("textDocument/didShowCompletion", json!({ "item": item })).await;
    session.notify("textDocument/didFocus", json!({ "textDocument": { "uri": URI } })).await;
    let partially = json!({ "item": item, "acceptedLength": 3 });
    session.notify("textDocument/didPartiallyAcceptCompletion", partially).await;
    session.notify("textDocument/didPartiallyAcceptCompletion", json!({ "item": 7 })).await;
    session.change([0, 8, 0, 8], "compute(1, 2)").await;
    let command = &item["command"];
    let params = json!({ "command": command["command"], "arguments": command["arguments"] });
    assert_eq!(session.request("workspace/executeCommand", params).await, Value::Null);
    session.finish().await;
}
