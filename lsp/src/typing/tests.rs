//! Whatever is typed, a draft is offered only where it goes on with what stands there.

use std::path::PathBuf;

use proptest::prelude::*;
use ropey::Rope;

use super::*;
use crate::assistant::SuggestionStats;
use crate::document::{Change, Document};
use crate::encoding::{Position, PositionEncoding};
use crate::typing::totals::{Account, Ledger};

fn document(text: &str) -> Document {
    Document::new(Snapshot::new("file:///x", PathBuf::from("x"), "plaintext", 1, Rope::from_str(text)))
}

/// Keeps a draft of `text` at byte `at`.
fn keep(document: &Document, at: usize, text: &str) -> Arc<Draft> {
    let shaped = Shaped { text: text.to_owned(), replace: 0 };
    let anchor = Anchor::new(document.snapshot(), at, 0);
    let account = Account::new(&Ledger::default());
    let draft = Arc::new(Draft::new(anchor, "", "", &shaped, SuggestionStats::default(), account));
    document.typing().keep(document.snapshot(), &draft);
    draft
}

fn position(text: &Rope, byte: usize) -> Position {
    let line = text.byte_to_line(byte);
    Position { line, character: byte - text.line_to_byte(line) }
}

fn replace(document: &mut Document, bytes: Range<usize>, inserted: &str) {
    let text = document.snapshot().text.clone();
    let range = position(&text, bytes.start)..position(&text, bytes.end);
    let version = document.snapshot().version + 1;
    let change = Change { range: Some(range), text: inserted.to_owned() };
    document.apply(version, vec![change], PositionEncoding::Utf8).expect("it fits");
}

fn rest(document: &Document, at: usize, unasked: bool) -> Option<String> {
    let snapshot = document.snapshot();
    let caret = Caret::new(&snapshot.text, at, None);
    document.typing().rest(snapshot, &caret, unasked).map(|rest| rest.shaped.text)
}

#[test]
fn accepting_by_words_and_as_a_whole_is_noticed_once() {
    let mut document = document("x = \n");
    let draft = keep(&document, 4, "one two three");
    assert!(document.typing().shown(draft.id) && !document.typing().shown(draft.id));
    replace(&mut document, 4..4, "one ");
    assert_eq!(document.take_news().reactions, [Reaction::PartiallyAccepted(draft.id, 4)]);
    replace(&mut document, 8..8, "t");
    assert_eq!(document.take_news().reactions, [], "a key");
    replace(&mut document, 4..9, "one two three");
    assert_eq!(document.take_news().reactions, [Reaction::Accepted(draft.id)]);
    assert!(document.typing().just_accepted_line());
    assert!(!document.typing().accept(draft.id), "known already");
    let (text, place) = document.typing().survivor(draft.id).expect("followed");
    assert_eq!((text.as_str(), place), ("one two three", 4..17));
}

#[test]
fn undoing_an_accepted_suggestion_turns_it_down() {
    let mut document = document("x = \n");
    let draft = keep(&document, 4, "one two");
    document.typing().shown(draft.id);
    replace(&mut document, 4..4, "one two");
    replace(&mut document, 4..11, "");
    assert_eq!(rest(&document, 4, true), None);
    keep(&document, 4, "one two");
    assert_eq!(rest(&document, 4, true), None, "nor when it is made again");
    assert_eq!(rest(&document, 4, false).as_deref(), Some("one two"), "unless asked for");
}

#[test]
fn of_several_that_agree_the_longest_is_offered() {
    let mut document = document("x = \n");
    keep(&document, 4, "one");
    keep(&document, 4, "one two");
    keep(&document, 4, "other");
    replace(&mut document, 4..4, "on");
    assert_eq!(rest(&document, 6, true).as_deref(), Some("e two"));
}

#[test]
fn several_cursors_are_counted() {
    let mut document = document("a\nb\n");
    let at = |line| Change {
        range: Some(Position { line, character: 1 }..Position { line, character: 1 }),
        text: "x".to_owned(),
    };
    document.apply(2, vec![at(1), at(0)], PositionEncoding::Utf8).expect("they fit");
    assert_eq!(document.typing().cursors(), 2);
    document.apply(3, vec![at(0)], PositionEncoding::Utf8).expect("it fits");
    assert_eq!(document.typing().cursors(), 1);
}

#[derive(Clone, Debug)]
enum Key {
    /// So many characters of what the draft would have next.
    Agree(usize),
    Type(String),
    Erase(usize),
    /// Text anywhere.
    Elsewhere(prop::sample::Index, String),
}

fn key() -> impl Strategy<Value = Key> {
    prop_oneof![
        4 => (1usize..6).prop_map(Key::Agree),
        2 => "[ab(){é\n ]{1,3}".prop_map(Key::Type),
        2 => (1usize..4).prop_map(Key::Erase),
        1 => (any::<prop::sample::Index>(), "[aé\n]{0,3}").prop_map(|(at, text)| Key::Elsewhere(at, text)),
    ]
}

proptest! {
    #[test]
    fn what_is_offered_goes_on_with_what_is_typed(
        before in "[abé(\n ]{0,12}", after in "(\\)|\n|[ab ]){0,8}", text in "[abé(){}\n ]{1,14}",
        keys in prop::collection::vec(key(), 0..14),
    ) {
        let mut document = document(&format!("{before}{after}"));
        let draft = keep(&document, before.len(), &text);
        document.typing().shown(draft.id);
        let mut caret = before.len();
        for key in keys {
            let now = document.snapshot().text.to_string();
            match key {
                Key::Agree(count) => {
                    let typed = (0..=text.len()).rev().filter(|at| text.is_char_boundary(*at));
                    let typed = typed.clone().find(|at| now[..caret].ends_with(&text[..*at])).unwrap_or(0);
                    let next: String = text[typed..].chars().take(count).collect();
                    replace(&mut document, caret..caret, &next);
                    caret += next.len();
                }
                Key::Type(typed) => {
                    replace(&mut document, caret..caret, &typed);
                    caret += typed.len();
                }
                Key::Erase(count) => {
                    let start = now[..caret].char_indices().rev().nth(count - 1).map_or(0, |(at, _)| at);
                    replace(&mut document, start..caret, "");
                    caret = start;
                }
                Key::Elsewhere(at, typed) => {
                    let places: Vec<usize> = (0..=now.len()).filter(|at| now.is_char_boundary(*at)).collect();
                    let at = *at.get(&places);
                    replace(&mut document, at..at, &typed);
                    caret += if at <= caret { typed.len() } else { 0 };
                }
            }
            let now = document.snapshot().text.to_string();
            for at in (0..=now.len()).filter(|at| now.is_char_boundary(*at)) {
                let Some(rest) = rest(&document, at, false) else { continue };
                let fits = (0..=text.len()).filter(|cut| text.is_char_boundary(*cut)).any(|cut| {
                    now[..at].ends_with(&text[..cut]) && text[cut..].starts_with(&rest)
                });
                prop_assert!(fits, "{rest:?} at {at} of {now:?} is not the rest of {text:?}");
            }
        }
    }
}
