use proptest::prelude::*;

use super::*;

fn at(marked: &str, language: Option<Language>) -> Caret {
    let byte = marked.find('|').expect("a caret");
    Caret::new(&Rope::from_str(&marked.replacen('|', "", 1)), byte, language)
}

#[test]
fn the_line_and_its_neighbours() {
    let caret = at("a\n\n  b|c\nd\n\ne", None);
    assert_eq!((caret.line_prefix(), caret.line_suffix(), caret.indent()), ("  b", "c", "  "));
    assert_eq!(caret.preceding_lines().collect::<Vec<_>>(), ["", "a"]);
    assert_eq!(caret.following_lines().collect::<Vec<_>>(), ["d", "", "e"]);
    assert_eq!((caret.line(), caret.byte()), (2, 6));
    assert_eq!(caret.preceding_text_line(), Some("a"));
    assert_eq!(caret.following_text_line(), Some("d"));
    assert!(!caret.is_line_blank());
}

#[test]
fn edges() {
    let caret = at("|", None);
    assert!(caret.is_line_blank());
    assert_eq!(caret.preceding_lines().count(), 0);
    assert_eq!(caret.following_lines().count(), 0);
    let caret = at("x\r\n|\r\n", None);
    assert_eq!((caret.line_prefix(), caret.line_suffix()), ("", ""));
    assert_eq!(caret.preceding_lines().collect::<Vec<_>>(), ["x"]);
    assert_eq!(caret.following_lines().collect::<Vec<_>>(), [""]);
}

#[test]
fn offsets_are_clamped() {
    let text = Rope::from_str("é\r\nx");
    let byte = |byte| Caret::new(&text, byte, None).byte();
    assert_eq!([0, 1, 2, 3, 4, 5, 99].map(byte), [0, 0, 2, 2, 4, 5, 5]);
    let inside = Caret::new(&text, 3, None);
    assert_eq!((inside.line_prefix(), inside.line_suffix()), ("é", ""));
}

#[test]
fn a_window_holds_whole_lines() {
    let text = format!("{}x = |1\n{}", "é = 2\n".repeat(5000), "ü = 3\n".repeat(5000));
    let caret = at(&text, None);
    assert!(caret.before().len() <= WINDOW_BYTES && caret.before().len() > WINDOW_BYTES - 10);
    assert!(caret.preceding_lines().all(|line| line == "é = 2"));
    assert_eq!(caret.line(), 5000);
    assert!(caret.after().len() <= WINDOW_BYTES);
}

#[test]
fn a_huge_line_costs_a_window() {
    let text = "é".repeat(2_500_000);
    let rope = Rope::from_str(&text);
    let caret = Caret::new(&rope, 2_500_001, None);
    assert_eq!(caret.line_bytes(), 5_000_000);
    assert!(caret.line_prefix().len() <= WINDOW_BYTES && caret.line_suffix().len() <= WINDOW_BYTES);
    assert_eq!(caret.preceding_lines().count(), 0);
}

#[test]
fn line_ends() {
    assert_eq!(at("a\r\nb|", None).line_ending(), LineEnding::CrLf);
    assert_eq!(at("a\nb|\r\nc\n", None).line_ending(), LineEnding::Lf);
    assert_eq!(at("a|", None).line_ending(), LineEnding::Lf);
    let far = format!("x\r\n{}|", "y".repeat(2 * WINDOW_BYTES));
    assert_eq!(at(&far, None).line_ending(), LineEnding::CrLf);
}

#[test]
fn indent_units() {
    let unit = |marked, language| at(marked, language).indent_unit();
    assert_eq!(unit("if a:\n  b\n  if c:\n    |", None), IndentUnit::Spaces(2));
    assert_eq!(unit("if a:\n    b\n    c\n|", None), IndentUnit::Spaces(4));
    assert_eq!(unit("a {\n\tb|\n}", None), IndentUnit::Tab);
    assert_eq!(unit("|", Some(Language::Go)), IndentUnit::Tab);
    assert_eq!(unit("|", Some(Language::JavaScript)), IndentUnit::Spaces(2));
    assert_eq!(unit("|", Some(Language::Rust)), IndentUnit::Spaces(4));
}

#[test]
fn brackets_that_the_suffix_closes() {
    let open = |marked: &str| -> String {
        let caret = at(marked, Some(Language::Rust));
        let brackets = caret.open_brackets().iter();
        brackets.map(|open| if open.closed { '+' } else { '-' }).collect()
    };
    assert_eq!(open("fn f() { g(a|)"), "-+");
    assert_eq!(open("fn f() {\n    g(a|)\n}"), "++");
    assert_eq!(open("impl A {\n    fn f() {\n        |\n}"), "+-");
    assert_eq!(open("impl A {\n    fn f() {\n        |\n    }\n}"), "++");
    assert_eq!(open("f(\"(|\")"), "++");
    assert_eq!(open("x(\"a\n|"), "-");
    assert_eq!(open("// (\n|"), "");
}

proptest! {
    #[test]
    fn no_panic_and_the_text_is_the_documents(text in "[a-z(){}\"'é\u{1F600}\r\n\t ]{0,200}", byte in 0usize..900) {
        let rope = Rope::from_str(&text);
        for language in [None, Some(Language::Python), Some(Language::Rust)] {
            let caret = Caret::new(&rope, byte, language);
            prop_assert!(text.is_char_boundary(caret.byte()));
            prop_assert!(text[..caret.byte()].ends_with(caret.before()));
            prop_assert!(text[caret.byte()..].starts_with(caret.after()));
            prop_assert!(!caret.line_suffix().contains(['\r', '\n']));
            prop_assert!(!caret.line_prefix().contains('\n'));
            caret.preceding_lines().count();
            caret.following_lines().count();
        }
    }
}
