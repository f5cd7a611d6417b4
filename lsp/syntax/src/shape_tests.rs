use proptest::prelude::*;
use ropey::Rope;

use super::*;
use crate::language::Language;
use crate::scope::wants_block;

/// The golden cases: one after another, as
///
/// ```text
/// ## language: what the case is about
/// the document with a caret ¦
/// -- raw
/// what the model wrote
/// -- shaped
/// the document after the suggestion was accepted, or (none)
/// ```
///
/// where `→` stands for a tab, `↵` at a line's end for `\r\n`, and `·` for a space at a line's end.
const GOLDEN: &str = include_str!("shape_golden.txt");

fn plain(lines: &[&str]) -> String {
    lines.join("\n").replace("↵\n", "\r\n").replace('↵', "\r\n").replace('→', "\t").replace('·', " ")
}

/// Accepts `shaped` at `caret` in `text`.
fn apply(text: &str, caret: &Caret, shaped: &Shaped) -> String {
    let at = caret.byte();
    format!("{}{}{}", &text[..at], shaped.text, &text[at + shaped.replace..])
}

#[test]
fn golden_cases() {
    let mut failures = Vec::new();
    let cases: Vec<&str> = GOLDEN.split("## ").skip(1).collect();
    assert!(cases.len() >= 40, "{} cases", cases.len());
    for case in cases {
        let mut lines: Vec<&str> = case.split('\n').collect();
        while lines.last() == Some(&"") {
            lines.pop();
        }
        let title = lines.remove(0);
        let raw_at = lines.iter().position(|&line| line == "-- raw").expect("a raw part");
        let shaped_at = lines.iter().position(|&line| line == "-- shaped").expect("a shaped part");
        let (document, raw) = (plain(&lines[..raw_at]), plain(&lines[raw_at + 1..shaped_at]));
        let expected = plain(&lines[shaped_at + 1..]);

        let language = Language::from_language_id(title.split(':').next().unwrap_or_default());
        let byte = document.find('¦').expect("a caret");
        let text = document.replacen('¦', "", 1);
        let caret = Caret::new(&Rope::from_str(&text), byte, language);
        let shaped = shape(&raw, &caret, wants_block(&caret, None));
        let got = shaped.map_or("(none)".to_owned(), |shaped| apply(&text, &caret, &shaped));
        if got != expected {
            failures.push(format!("{title}\n  expected {expected:?}\n  got      {got:?}"));
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn what_is_replaced_is_reported() {
    let at = |marked: &str, raw: &str| {
        let byte = marked.find('¦').expect("a caret");
        let text = Rope::from_str(&marked.replacen('¦', "", 1));
        shape(raw, &Caret::new(&text, byte, Some(Language::Rust)), Scope::SingleLine)
    };
    let shaped = |text: &str, replace| Some(Shaped { text: text.to_owned(), replace });
    assert_eq!(at("foo(¦)", "a, b)"), shaped("a, b", 0));
    assert_eq!(at("foo(¦)", "a).bar()"), shaped("a).bar()", 1));
    assert_eq!(at("foo(¦);", "a).bar();"), shaped("a).bar();", 2));
    assert_eq!(at("foo(¦)", "bar()"), shaped("bar()", 0));
}

#[test]
fn control_characters_are_not_shown() {
    let caret = Caret::new(&Rope::from_str("let x = "), 8, Some(Language::Rust));
    assert_eq!(shape("a\0b", &caret, Scope::SingleLine), None);
}

fn any_text() -> impl Strategy<Value = String> {
    let parts = [
        "def f():\n",
        "    return x\n",
        "x = 1",
        "\n",
        "\r\n",
        "\r",
        "    ",
        "\t",
        "{",
        "}",
        "(",
        ")",
        "[",
        "]",
        "\"",
        "'",
        "'''",
        "// c",
        "#",
        "a + b",
        "é",
        "\u{1F600}",
        "\u{301}",
        ";",
        ",",
        ":",
        "/*",
        "*/",
        "`",
        "${",
        "\u{2028}",
        "r#\"",
        "\\",
    ];
    let pieces = prop::collection::vec(prop::sample::select(parts.to_vec()), 0..24);
    prop_oneof![pieces.prop_map(|parts| parts.concat()), any::<String>()]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_text_at_any_caret(
        document in any_text(),
        raw in any_text(),
        at in any::<prop::sample::Index>(),
        language in prop::option::of(prop::sample::select(Language::ALL.to_vec())),
        block in any::<bool>(),
    ) {
        let caret = Caret::new(&Rope::from_str(&document), at.index(document.len() + 1), language);
        let scope = if block { Scope::Block } else { Scope::SingleLine };
        let Some(shaped) = shape(&raw, &caret, scope) else { return Ok(()) };

        prop_assert!(!shaped.text.trim().is_empty());
        prop_assert!(!shaped.text.ends_with(char::is_whitespace));
        prop_assert!(shaped.replace <= caret.line_suffix().len());
        prop_assert!(caret.line_suffix().is_char_boundary(shaped.replace));
        let lines: Vec<&str> = shaped.text.split(caret.line_ending().as_str()).collect();
        prop_assert!(lines.iter().all(|line| !line.contains(['\r', '\n'])), "{:?}", shaped.text);
        prop_assert!(lines[1..].iter().all(|line| !line.ends_with([' ', '\t'])));
        if scope == Scope::SingleLine {
            prop_assert_eq!(lines.len(), 1);
        }
        // Every closer that the text adds belongs to a bracket that was open at the caret.
        let unmatched = Brackets::read(&shaped.text, &caret).unmatched;
        let added = if shaped.replace == 0 { &unmatched[..] } else { &[] };
        prop_assert!(added.len() <= caret.open_brackets().len());
        for (closer, open) in added.iter().zip(caret.open_brackets().iter().rev()) {
            prop_assert_eq!(closer.closer, open.closer);
        }
    }
}

/// A model that writes exactly what a person wrote must be left alone: at carets all over this crate's
/// own sources, the rest of the line is taken out, given as raw text, and compared.
#[test]
fn what_people_wrote_is_not_touched() {
    const SOURCES: [&str; 5] = [
        include_str!("caret.rs"),
        include_str!("function.rs"),
        include_str!("lexer.rs"),
        include_str!("shape.rs"),
        include_str!("stop.rs"),
    ];
    let (mut same, mut changed) = (0, Vec::new());
    for source in SOURCES {
        let mut start = 0;
        for line in source.split_inclusive('\n') {
            let end = start + line.trim_end().len();
            let indent = line.len() - line.trim_start().len();
            let middle = start + indent.midpoint(line.trim_end().len());
            for byte in [start + indent, middle] {
                if byte >= end || !source.is_char_boundary(byte) {
                    continue;
                }
                let document = format!("{}{}", &source[..byte], &source[end..]);
                let caret = Caret::new(&Rope::from_str(&document), byte, Some(Language::Rust));
                let wrote = &source[byte..end];
                let shaped = shape(&source[byte..], &caret, Scope::SingleLine);
                match shaped {
                    // Nothing shown is no harm: closing brackets, a line like its neighbour.
                    None => {}
                    Some(shaped) if shaped.text == wrote && shaped.replace == 0 => same += 1,
                    Some(shaped) => changed.push((wrote, shaped.text)),
                }
            }
            start += line.len();
        }
    }
    // A few are undecidable: who can tell which of two calls the one bracket below closes.
    assert!(same > 1000, "{same}");
    assert!(100 * changed.len() < same, "{} of {same}: {changed:#?}", changed.len());
}
