use proptest::prelude::*;
use ropey::Rope;

use super::*;
use crate::language::Language;

fn caret_at(language: Language, marked: &str) -> Caret {
    let byte = marked.find('|').expect("a caret");
    Caret::new(&Rope::from_str(&marked.replacen('|', "", 1)), byte, Some(language))
}

fn accepted(caret: &Caret, scope: Scope, generated: &str) -> (String, Verdict) {
    let mut policy = StopPolicy::new(caret, scope);
    let verdict = policy.push(generated);
    (policy.accepted().to_owned(), verdict)
}

#[track_caller]
fn check(language: Language, marked: &str, scope: Scope, generated: &str, expected: &str) {
    let caret = caret_at(language, marked);
    let (kept, verdict) = accepted(&caret, scope, generated);
    assert_eq!(kept, expected, "{marked}");
    assert_eq!(verdict, Verdict::Stop, "{marked}");
}

#[test]
fn a_single_line_ends_with_the_line() {
    use Scope::SingleLine;
    check(Language::Python, "x = |", SingleLine, "1 + y\nz = 2", "1 + y");
    check(Language::Python, "x = |", SingleLine, "1\r\nz", "1");
    check(Language::Python, "x = |", SingleLine, "\nz = 2", "");
    check(Language::Python, "    |", SingleLine, "\n    z = 2\n", "\n    z = 2");
    check(Language::Python, "|", SingleLine, "\n\nz", "");
}

#[test]
fn a_block_ends_where_its_brace_closes() {
    use Scope::Block;
    let closed = "fn f() {\n    |\n}\n";
    check(Language::Rust, closed, Block, "a();\n}\n\nfn g() {", "a();");
    check(Language::Rust, closed, Block, "if a {\n        b();\n    }\n}\n", "if a {\n        b();\n    }");
    check(Language::Rust, closed, Block, "f('}', \"}\"); // }\n}\n", "f('}', \"}\"); // }");
    check(Language::Rust, closed, Block, "a(); }", "a(); ");
}

#[test]
fn a_brace_that_the_document_lacks_is_kept() {
    use Scope::Block;
    check(Language::Rust, "fn f() {\n    |", Block, "a();\n}\n\nfn g() {}", "a();\n}");
    check(Language::Rust, "fn f() {|", Block, "\n    a();\n}\n\nfn g() {}", "\n    a();\n}");
    check(Language::Rust, "fn f() {|\n}", Block, "\n    a();\n}\n", "\n    a();");
    check(Language::JavaScript, "list.map((x) => {\n  |", Block, "return x;\n});\nmore();", "return x;\n});");
    check(
        Language::Rust,
        "impl A {\n    fn f() {\n        |\n}\n",
        Block,
        "a();\n    }\n\n    fn g() {}",
        "a();\n    }",
    );
}

#[test]
fn a_block_ends_where_the_indent_does() {
    use Scope::Block;
    check(
        Language::Python,
        "def f():\n    |\n",
        Block,
        "for x in y:\n        z(x)\n    return 1\n\ndef g():\n",
        "for x in y:\n        z(x)\n    return 1\n",
    );
    check(Language::Python, "def f():|", Block, "\n    return 1\nx = 1\n", "\n    return 1");
    check(Language::Python, "    if a:|", Block, "\n        b()\n    c()\n", "\n        b()");
    check(Language::Python, "def f():\n|", Block, "    a = 1\n    b = 2\nc = 3", "    a = 1\n    b = 2");
    // Brackets and long strings have indents of their own.
    check(
        Language::Python,
        "def f():\n    |",
        Block,
        "x = g(\n  1,\n)\n    y = '''\nz\n'''\nw = 1",
        "x = g(\n  1,\n)\n    y = '''\nz\n'''",
    );
    check(Language::Go, "func f() {\n\t|\n}", Block, "a()\n\tb()\nx", "a()\n\tb()");
}

#[test]
fn a_block_ends_with_two_blank_lines_or_at_the_left_margin_with_one() {
    use Scope::Block;
    check(Language::Python, "def f():\n    |", Block, "a\n\n\n    b", "a\n");
    check(Language::Python, "# Adds.\n|", Block, "def f():\n    a\n\ndef g():", "def f():\n    a\n");
}

#[test]
fn a_block_ends_before_what_the_document_says_next() {
    use Scope::Block;
    let marked = "def f():\n    |\n\n    return total\n";
    check(Language::Python, marked, Block, "total = 1\n    return total\n", "total = 1");
    // Also where the generation ends without a line end.
    let caret = caret_at(Language::Python, marked);
    let (kept, verdict) = accepted(&caret, Block, "total = 1\n    return total");
    assert_eq!((kept.as_str(), verdict), ("total = 1", Verdict::Continue));
    // Deeper, it is another statement.
    let (kept, _) = accepted(&caret, Block, "if a:\n        return total\n");
    assert_eq!(kept, "if a:\n        return total\n");
}

#[test]
fn a_block_has_few_lines() {
    let caret = caret_at(Language::Python, "def f():\n    |");
    let many: String = (0..40).map(|n| format!("a{n} = g{n}({n})\n    ")).collect();
    let (kept, verdict) = accepted(&caret, Scope::Block, &many);
    assert_eq!((kept.lines().count(), verdict), (MAX_LINES, Verdict::Stop));
}

#[test]
fn circles_are_cut() {
    use Scope::{Block, SingleLine};
    check(Language::Python, "x = |", SingleLine, "a + b + a + b + a + b + a", "a + b");
    check(Language::Python, "x = |", SingleLine, "foo_bar_foo_bar_foo_bar_foo", "");
    check(
        Language::Rust,
        "fn f() {\n    |\n}",
        Block,
        "let x = 1;\n    x.push(1);\n    x.push(1);\n    x.push(1);\n",
        "let x = 1;\n    x.push(1);",
    );
    let long = "    this_is_a_rather_long_name.call_of_a_method(with_an_argument, and_another);\n";
    let generated = format!("{}{long}{long}{long}", long.trim_start());
    check(Language::Rust, "fn f() {\n    |\n}", Block, &generated, long.trim());
}

/// What is kept of `generated` with `budget` for parsing.
fn accepted_with_tree(
    language: Language,
    marked: &str,
    generated: &str,
    budget: Duration,
) -> (String, Verdict) {
    let caret = caret_at(language, marked);
    let text = Rope::from_str(&marked.replacen('|', "", 1));
    let tree = SyntaxTree::parse(language, &text, Duration::from_secs(60)).expect("fits");
    let mut policy = StopPolicy::new(&caret, Scope::Block).with_tree(&caret, &text, &tree, budget);
    let verdict = policy.push(generated);
    (policy.accepted().to_owned(), verdict)
}

#[test]
fn a_block_ends_with_its_node() {
    const LONG: Duration = Duration::from_secs(60);
    let marked = "function f(a) {\n  if (a)\n    |\n}\n";
    let generated = "return 1;\n    g();\n    h();\n";
    let (kept, verdict) = accepted_with_tree(Language::JavaScript, marked, generated, LONG);
    assert_eq!((kept.as_str(), verdict), ("return 1;", Verdict::Stop));
    // Without time the text decides, which sees one indent.
    let (kept, verdict) = accepted_with_tree(Language::JavaScript, marked, generated, Duration::ZERO);
    assert_eq!((kept.as_str(), verdict), (generated, Verdict::Continue));
    // A definition stops with its own brace, before another line is generated.
    let method = "f(&self) {\n        self.g();\n    }\n";
    let marked = "impl A {\n    |\n}\n";
    let (kept, verdict) = accepted_with_tree(Language::Rust, marked, &format!("fn {method}"), LONG);
    assert_eq!((kept, verdict), (format!("fn {}", method.trim_end()), Verdict::Stop));
    // What does not parse does not end: the document is half written, and so is the text.
    let (_, verdict) = accepted_with_tree(Language::Rust, "fn f( {\n    |\n", "let = ;\n    a(;\n", LONG);
    assert_eq!(verdict, Verdict::Continue);
}

#[test]
fn a_statement_goes_on_after_its_block() {
    use Scope::Block;
    let closed = "fn f() {\n    if a {\n        |\n    }\n}\n";
    check(
        Language::Rust,
        closed,
        Block,
        "b();\n    } else {\n        c();\n    }\n\n    d();",
        "b();\n    } else {\n        c();",
    );
    check(Language::Rust, closed, Block, "b();\n    }\n    else_where();", "b();");
    check(Language::Rust, closed, Block, "b();\n    } elsewhere", "b();");
    let python = "if a:\n    |\n";
    check(Language::Python, python, Block, "b()\nelse:\n    c()\nd()", "b()\nelse:\n    c()");
    check(Language::Python, python, Block, "b()\nelsewhere()", "b()");
    // Where the generation ends in the middle of the word, it is not known to go on.
    let caret = caret_at(Language::Python, python);
    assert_eq!(accepted(&caret, Block, "b()\nel").0, "b()");
    assert_eq!(accepted(&caret, Block, "b()\nelse:").0, "b()\nelse:");
}

#[test]
fn text_after_the_stop_changes_nothing() {
    let caret = caret_at(Language::Python, "x = |");
    let mut policy = StopPolicy::new(&caret, Scope::SingleLine);
    assert_eq!(policy.push("1"), Verdict::Continue);
    assert_eq!(policy.push("\nz"), Verdict::Stop);
    assert_eq!(policy.push("more"), Verdict::Stop);
    assert_eq!(policy.accepted(), "1");
}

fn snippets() -> impl Strategy<Value = String> {
    let parts = [
        "def f():\n",
        "    return x\n",
        "x = 1",
        "\n",
        "\r\n",
        "    ",
        "\t",
        "{",
        "}",
        "(",
        ")",
        "\"",
        "'",
        "'''",
        "// c",
        "# c",
        "a + b + ",
        "é",
        "\u{1F600}",
        "if a:\n        b\n",
        ";",
        "/*",
        "*/",
        "`",
        "${",
    ];
    prop::collection::vec(prop::sample::select(parts.to_vec()), 0..30).prop_map(|parts| parts.concat())
}

proptest! {
    #[test]
    fn pieces_do_not_matter(
        document in snippets(),
        generated in snippets(),
        at in any::<prop::sample::Index>(),
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        language in prop::sample::select(Language::ALL.to_vec()),
        block in any::<bool>(),
        with_tree in any::<bool>(),
    ) {
        const LONG: Duration = Duration::from_secs(60);
        let text = Rope::from_str(&document);
        let caret = Caret::new(&text, at.index(document.len() + 1), Some(language));
        let scope = if block { Scope::Block } else { Scope::SingleLine };
        let new_policy = || {
            let policy = StopPolicy::new(&caret, scope);
            match SyntaxTree::parse(language, &text, LONG).filter(|_| with_tree) {
                Some(tree) => policy.with_tree(&caret, &text, &tree, LONG),
                None => policy,
            }
        };
        let mut policy = new_policy();
        let verdict = policy.push(&generated);
        let whole = policy.accepted().to_owned();

        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(generated.len() + 1)).collect();
        cuts.retain(|&cut| generated.is_char_boundary(cut));
        cuts.extend([0, generated.len()]);
        cuts.sort_unstable();
        let mut policy = new_policy();
        let mut last = Verdict::Continue;
        for piece in cuts.windows(2) {
            last = policy.push(&generated[piece[0]..piece[1]]);
        }
        prop_assert_eq!(policy.accepted(), whole.as_str());
        prop_assert_eq!(last, verdict);
        prop_assert!(generated.starts_with(&whole));
        // What was accepted is accepted again, or less of it.
        let (again, _) = accepted(&caret, scope, &whole);
        prop_assert!(whole.starts_with(&again));
    }
}
