use std::time::Duration;

use proptest::prelude::*;
use ropey::Rope;

use super::*;
use crate::language::Language;
use crate::scope::wants_block;
use crate::stop::Verdict;
use crate::tree::SyntaxTree;

/// The golden cases: one after another, as
///
/// ```text
/// ## language: what the case is about
/// the document with a caret ¦
/// -- raw
/// what the model wrote
/// -- shaped
/// the document after the suggestion was accepted, or (none)
/// -- without tree
/// the same where the grammar has no say, if that differs
/// ```
///
/// where `→` stands for a tab, `↵` at a line's end for `\r\n`, and `·` for a space at a line's end.
const GOLDEN: [&str; 7] = [
    include_str!("golden/c.txt"),
    include_str!("golden/go.txt"),
    include_str!("golden/java.txt"),
    include_str!("golden/javascript.txt"),
    include_str!("golden/plain.txt"),
    include_str!("golden/python.txt"),
    include_str!("golden/rust.txt"),
];

struct Case {
    title: &'static str,
    caret: Caret,
    text: String,
    tree: Option<SyntaxTree>,
    /// What follows each line of dashes, by its name.
    parts: Vec<(&'static str, String)>,
}

impl Case {
    fn read(case: &'static str) -> Self {
        let (title, case) = case.split_once('\n').expect("a title");
        let mut parts = vec![("document", Vec::new())];
        for line in case.trim_end_matches('\n').split('\n') {
            match line.strip_prefix("-- ") {
                Some(name) => parts.push((name, Vec::new())),
                None => parts.last_mut().expect("a part").1.push(line),
            }
        }
        // The blank line between cases is none of a part's.
        let mut parts: Vec<_> = parts.into_iter().map(|(name, lines)| (name, plain(&lines))).collect();
        let document = parts.remove(0).1;
        let language = Language::from_language_id(title.split(':').next().unwrap_or_default());
        let byte = document.find('¦').expect("a caret");
        let text = document.replacen('¦', "", 1);
        let rope = Rope::from_str(&text);
        let tree = language.and_then(|language| SyntaxTree::parse(language, &rope, Duration::from_secs(60)));
        Self { title, caret: Caret::new(&rope, byte, language), text, tree, parts }
    }

    fn part(&self, name: &str) -> Option<&str> {
        self.parts.iter().find(|part| part.0 == name).map(|part| part.1.as_str())
    }

    /// The document after `shaped` was accepted.
    fn after(&self, shaped: Option<Shaped>) -> String {
        shaped.map_or("(none)".to_owned(), |shaped| apply(&self.text, &self.caret, &shaped))
    }

    /// Generates `raw` in pieces that end at `cuts`, with or without the tree, and shapes what was accepted.
    fn stream(&self, tree: Option<&SyntaxTree>, cuts: &[usize]) -> Option<Shaped> {
        let raw = self.part("raw").expect("a raw part");
        let scope = wants_block(&self.caret, tree);
        let mut policy = StopPolicy::new(&self.caret, scope);
        if let Some(tree) = tree {
            policy =
                policy.with_tree(&self.caret, &Rope::from_str(&self.text), tree, Duration::from_secs(60));
        }
        let mut start = 0;
        for &end in cuts.iter().chain([&raw.len()]) {
            if end > start && raw.is_char_boundary(end) {
                let verdict = policy.push(&raw[start..end]);
                start = end;
                if verdict == Verdict::Stop {
                    break;
                }
            }
        }
        shape(policy.accepted(), &self.caret, scope)
    }
}

fn cases(files: &[&'static str]) -> Vec<Case> {
    files.iter().flat_map(|file| file.split("## ").skip(1)).map(Case::read).collect()
}

fn plain(lines: &[&str]) -> String {
    lines.join("\n").replace("↵\n", "\r\n").replace('↵', "\r\n").replace('→', "\t").replace('·', " ")
}

/// Accepts `shaped` at `caret` in `text`.
fn apply(text: &str, caret: &Caret, shaped: &Shaped) -> String {
    let at = caret.byte();
    format!("{}{}{}", &text[..at], shaped.text, &text[at + shaped.replace..])
}

fn assert_all_right(failures: &[String]) {
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn golden_cases() {
    let cases = cases(&GOLDEN);
    assert!(cases.len() >= 190, "{} cases", cases.len());
    let mut failures = Vec::new();
    for case in &cases {
        let raw = case.part("raw").expect("a raw part");
        let expected = case.part("shaped").expect("a shaped part");
        let without_tree = case.part("without tree").unwrap_or(expected);
        let whole = case.after(shape(raw, &case.caret, wants_block(&case.caret, None)));
        let mut got = vec![("at once", whole, without_tree)];
        if case.tree.is_some() {
            got.push(("with the tree", case.after(case.stream(case.tree.as_ref(), &[])), expected));
        }
        for (how, got, expected) in got {
            if got != expected {
                failures.push(format!("{} ({how})\n  expected {expected:?}\n  got      {got:?}", case.title));
            }
        }
    }
    assert_all_right(&failures);
}

#[test]
fn golden_cases_do_not_depend_on_the_pieces_of_a_stream() {
    let mut random = 1u64;
    let mut failures = Vec::new();
    for case in cases(&GOLDEN) {
        let length = case.part("raw").expect("a raw part").len();
        for round in 0..6 {
            // Characters one by one, then pieces of any size.
            let mut cuts: Vec<usize> = (0..if round == 0 { length } else { 8 })
                .map(|at| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    if round == 0 { at + 1 } else { (random >> 33) as usize % (length + 1) }
                })
                .collect();
            cuts.sort_unstable();
            for tree in [None, case.tree.as_ref()] {
                let (whole, pieces) = (case.stream(tree, &[]), case.stream(tree, &cuts));
                if whole != pieces {
                    failures.push(format!("{} cut at {cuts:?}: {whole:?} and {pieces:?}", case.title));
                }
            }
        }
    }
    assert_all_right(&failures);
}

/// The same format, with the rest of an accepted text in the place of what a model wrote.
#[test]
fn golden_cases_of_what_is_left() {
    let cases = cases(&[include_str!("golden/refit.txt")]);
    let mut failures = Vec::new();
    for case in &cases {
        let rest = case.part("rest").expect("a rest");
        let expected = case.part("shaped").expect("a shaped part");
        let shaped = refit(rest, &case.caret);
        if let Some(shaped) = &shaped {
            assert!(rest.starts_with(&shaped.text), "{}: the text stays", case.title);
        }
        let got = case.after(shaped);
        if got != expected {
            failures.push(format!("{}\n  expected {expected:?}\n  got      {got:?}", case.title));
        }
    }
    assert_all_right(&failures);
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

proptest! {
    /// A suggestion that is typed character by character, in an editor that adds nothing, stays what it was.
    #[test]
    fn typing_a_suggestion_leaves_the_rest_of_it(
        document in any_text(),
        raw in any_text(),
        at in any::<prop::sample::Index>(),
        language in prop::option::of(prop::sample::select(Language::ALL.to_vec())),
    ) {
        let rope = Rope::from_str(&document);
        let caret = Caret::new(&rope, at.index(document.len() + 1), language);
        let Some(shaped) = shape(&raw, &caret, Scope::Block) else { return Ok(()) };
        let at = caret.byte();
        let Some(typed) = shaped.text.chars().next() else { return Ok(()) };
        let now = format!("{}{typed}{}", &document[..at], &document[at..]);
        let caret = Caret::new(&Rope::from_str(&now), at + typed.len_utf8(), language);
        let rest = &shaped.text[typed.len_utf8()..];
        if let Some(refitted) = refit(rest, &caret) {
            prop_assert!(rest.starts_with(&refitted.text), "{:?} of {:?}", refitted.text, rest);
            prop_assert!(refitted.replace <= caret.line_suffix().len());
            prop_assert!(caret.line_suffix().is_char_boundary(refitted.replace));
        }
    }
}

/// A model that writes exactly what a person wrote must be left alone: at carets all over this crate's
/// own sources, the rest of the line is taken out, given as raw text, and compared.
#[test]
fn what_people_wrote_is_not_touched() {
    const SOURCES: [&str; 7] = [
        include_str!("caret.rs"),
        include_str!("function.rs"),
        include_str!("lexer.rs"),
        include_str!("shape.rs"),
        include_str!("shape/indent.rs"),
        include_str!("shape/rest.rs"),
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
