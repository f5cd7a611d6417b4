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
    ] {
        check(language, marked, Scope::SingleLine);
    }
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
