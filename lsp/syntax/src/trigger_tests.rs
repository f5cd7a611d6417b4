use ropey::Rope;

use super::*;

fn ask(language: Language, marked: &str) -> Result<(), Unwelcome> {
    let byte = marked.find('|').expect("a caret");
    let text = Rope::from_str(&marked.replacen('|', "", 1));
    check(&Caret::new(&text, byte, Some(language)), Trigger::Automatic)
}

#[test]
fn where_suggestions_are_welcome() {
    use Language::{Cpp, Go, JavaScript, Python, Rust};
    for (language, marked) in [
        (Python, "def f(|"),
        (Python, "def f(|):"),
        (Python, "def f(a)|"),
        (Python, "x = {'a': f(b|)},"),
        (Python, "print(\"hello |\")"),
        (Python, "print(f\"{a}|\")"),
        (Python, "if ready:\n    |"),
        (Python, "# Sorts the list (in place)|"),
        (Python, "x[12|]"),
        (Rust, "let x = |;"),
        (Rust, "let v: Vec<|>"),
        (Rust, "foo(a)|"),
        (Rust, "for i in 0..10 {\n    |\n}"),
        (Rust, "fn f() {|}"),
        (JavaScript, "x = `a${b}|`"),
        (Cpp, "for (int i = 0;|)"),
        (Go, "if ok := f(x)|"),
        (Go, "x := map[string]int{f(a),|}"),
    ] {
        assert_eq!(ask(language, marked), Ok(()), "{marked}");
    }
}

#[test]
fn where_they_are_not() {
    use Language::{Go, Python, Rust};
    for (language, marked, reason) in [
        (Python, "value = fo|o", Unwelcome::InsideWord),
        (Python, "value = |é", Unwelcome::InsideWord),
        (Python, "value = | + 1", Unwelcome::TextRightOfCaret),
        (Python, "f(| a)", Unwelcome::TextRightOfCaret),
        (Python, "f(|);;", Unwelcome::TextRightOfCaret),
        (Python, "value = f(a)|", Unwelcome::StatementComplete),
        (Python, "value = f(a)|   ", Unwelcome::StatementComplete),
        (Python, "value = [1, a]|", Unwelcome::StatementComplete),
        (Go, "value := f(a)|", Unwelcome::StatementComplete),
        (Rust, "let value = f(a);|", Unwelcome::StatementComplete),
        (Rust, "fn f() {\n}|", Unwelcome::StatementComplete),
        (Rust, "    123|", Unwelcome::Digits),
        (Python, "x = 1\n-1.5, 2|", Unwelcome::Digits),
        (Python, "port = 123456|", Unwelcome::Digits),
        (Python, "|", Unwelcome::TooLittleText),
        (Python, "\n\n  a|", Unwelcome::TooLittleText),
        (Python, "text\0 = |", Unwelcome::Binary),
        (Python, "text = |\n\u{1}", Unwelcome::Binary),
    ] {
        assert_eq!(ask(language, marked), Err(reason), "{marked}");
        assert!(!reason.to_string().is_empty());
    }
}

#[test]
fn size_limits_hold_even_for_explicit_requests() {
    let long_line = Rope::from_str(&"x".repeat(MAX_SUGGESTION_LINE_BYTES + 1));
    let caret = Caret::new(&long_line, 5, None);
    let refused = check(&caret, Trigger::Invoked).expect_err("too long");
    assert_eq!(refused, Unwelcome::LineTooLong { bytes: 2001 });
    assert_eq!(refused.to_string(), "the line has 2001 bytes, suggestions end at 2000");

    let large = Rope::from_str(&"xxx\n".repeat(MAX_TEXT_BYTES / 4 + 1));
    let caret = Caret::new(&large, 5, None);
    let bytes = large.len_bytes();
    assert_eq!(check(&caret, Trigger::Invoked), Err(Unwelcome::DocumentTooLarge { bytes }));

    let caret = Caret::new(&Rope::from_str("a\0"), 1, None);
    assert_eq!(check(&caret, Trigger::Invoked), Err(Unwelcome::Binary));
}

#[test]
fn an_explicit_request_is_answered_elsewhere() {
    for (text, byte) in [("fo o", 1), ("", 0), ("f();", 4), ("12", 2)] {
        let caret = Caret::new(&Rope::from_str(text), byte, Some(Language::Rust));
        assert_eq!(check(&caret, Trigger::Invoked), Ok(()), "{text}");
    }
}
