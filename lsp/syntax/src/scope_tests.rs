use std::time::Duration;

use ropey::Rope;

use super::*;

#[track_caller]
fn check(language: Option<Language>, marked: &str, expected: Scope) {
    let byte = marked.find('|').expect("a caret");
    let text = Rope::from_str(&marked.replacen('|', "", 1));
    let caret = Caret::new(&text, byte, language);
    assert_eq!(wants_block(&caret, None), expected, "without a tree: {marked}");
    if let Some(language) = language {
        let tree = SyntaxTree::parse(language, &text, Duration::from_secs(60));
        assert_eq!(wants_block(&caret, tree.as_ref()), expected, "with a tree: {marked}");
    }
}

#[test]
fn a_block_where_one_begins_or_goes_on() {
    for (language, marked) in [
        (Some(Language::Python), "def f(a):|"),
        (Some(Language::Python), "def f(a):\n    |"),
        (Some(Language::Python), "def f(a):\n    x = 1\n    |\n    return x"),
        (Some(Language::Python), "# Sorts a list.\n|"),
        (Some(Language::Python), "@cache\n|"),
        (Some(Language::Python), "class A:\n|"),
        (Some(Language::Rust), "fn f() {|"),
        (Some(Language::Rust), "fn f() {\n|\n}"),
        (Some(Language::Rust), "fn f() {\n    |\n}"),
        (Some(Language::Rust), "/// Adds.\n|"),
        (Some(Language::Java), "class A {\n    /** Adds. */\n    |\n}"),
        (Some(Language::JavaScript), "list.map((x) => {|"),
        (Some(Language::Go), "func f() {\n\t|\n}"),
        (Some(Language::Go), "switch x {\ncase 1:|\n}"),
        (Some(Language::Python), "if (a\n        and b):|"),
        (Some(Language::Python), "def f(\n    a,\n) -> int:|"),
        (Some(Language::Python), "if a:|\nb()"),
        (Some(Language::Rust), "#[test]\n|"),
        (None, "task:\n|"),
    ] {
        check(language, marked, Scope::Block);
    }
}

#[test]
fn a_line_elsewhere() {
    for (language, marked) in [
        (Some(Language::Python), "x = f(|)"),
        (Some(Language::Python), "x = |"),
        (Some(Language::Python), "x[1:|"),
        (Some(Language::Python), "def f(a|):"),
        (Some(Language::Python), "|"),
        (Some(Language::Python), "import os\n\n|"),
        (Some(Language::Python), "def f():\n    # Now:|"),
        (Some(Language::Python), "def f():\n    \"\"\"Text.\n\n    |\n    \"\"\"\n"),
        (Some(Language::Rust), "fn f() {|}"),
        (Some(Language::Rust), "    let x = |"),
        (Some(Language::Rust), "// what follows {|"),
        (Some(Language::C), "/* a\n   |\n*/"),
        (None, "some words|"),
        // An annotation, a lambda.
        (Some(Language::Python), "count:|"),
        (Some(Language::Python), "double = lambda x:|"),
        // The body is there already.
        (Some(Language::Python), "if a:|\n    b()"),
        (Some(Language::Rust), "fn f() {|\n    a();\n}"),
    ] {
        check(language, marked, Scope::SingleLine);
    }
}

#[test]
fn the_tree_knows_what_a_line_at_the_left_margin_is_in() {
    let with_tree = |language, marked: &str| {
        let byte = marked.find('|').expect("a caret");
        let text = Rope::from_str(&marked.replacen('|', "", 1));
        let tree = SyntaxTree::parse(language, &text, Duration::from_secs(60));
        wants_block(&Caret::new(&text, byte, Some(language)), tree.as_ref())
    };
    assert_eq!(with_tree(Language::Python, "def f():\n    a()\n|\n    b()\n"), Scope::Block);
    assert_eq!(
        with_tree(Language::Python, "def f():\n    a()\n\n|\n\ndef g():\n    b()\n"),
        Scope::SingleLine
    );
    // The beginning is beyond the window.
    let long = format!("fn f() {{\n{}|\n}}\n", "    a();\n".repeat(2000));
    assert_eq!(with_tree(Language::Rust, &long), Scope::Block);
    // A bracket in a regular expression opens nothing.
    assert_eq!(with_tree(Language::JavaScript, "const r = /[{]/;\n\n|\n\nf();\n"), Scope::SingleLine);
}

#[test]
fn the_tree_knows_of_a_string_that_began_far_above() {
    let source = format!("def f():\n    \"\"\"{}\n    \n    \"\"\"\n", "    words\n".repeat(2000));
    let byte = source.rfind("    \n    \"\"\"").expect("there") + 4;
    let text = Rope::from_str(&source);
    let caret = Caret::new(&text, byte, Some(Language::Python));
    let tree = SyntaxTree::parse(Language::Python, &text, Duration::from_secs(60));
    assert_eq!(wants_block(&caret, tree.as_ref()), Scope::SingleLine);
}
