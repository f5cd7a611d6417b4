use proptest::prelude::*;
use redstart_plugin_sdk::{Context, Model, Piece, Prompt, Snippet, Trim};

use crate::answer::finish;
use crate::layout::{STOPS, build};

fn context(layout: &str, prefix: &str, suffix: &str) -> Context {
    Context {
        task: "complete".into(),
        path: "a.py".into(),
        language: "python".into(),
        prefix: prefix.into(),
        suffix: suffix.into(),
        focus: String::new(),
        first_line: 0,
        single_line: true,
        snippets: vec![],
        model: Model {
            name: "m".into(),
            context_tokens: 1000,
            control_tokens: STOPS.iter().map(|token| token.to_string()).collect(),
            chat: None,
            facts: vec![("fim-layout".into(), layout.into())],
        },
        facts: vec![],
    }
}

/// The prompt in the host's order, as one string.
fn spelled(prompt: &Prompt) -> String {
    let mut segments: Vec<_> = prompt.segments.iter().collect();
    segments.sort_by_key(|segment| segment.stability as u8);
    segments
        .iter()
        .flat_map(|segment| &segment.pieces)
        .map(|piece| match piece {
            Piece::Text(text) | Piece::Control(text) => text.as_str(),
        })
        .collect()
}

#[test]
fn layouts() {
    let spell = |layout| spelled(&build(&context(layout, "a\n  b", "c\nd\n")).unwrap());
    assert_eq!(
        spell("suffix-first"),
        "<|file_sep|>a.py\n<|fim_suffix|>c\nd\n<|fim_prefix|>a\n  b<|fim_middle|>"
    );
    assert_eq!(
        spell("suffix-line-last"),
        "<|file_sep|>a.py\n<|fim_suffix|>c\nd\n<|fim_prefix|>a\n<|fim_middle|>  b"
    );
    assert_eq!(
        spell("line-last"),
        "<|file_sep|>a.py\n<|fim_prefix|>a\n<|fim_suffix|>c\nd\n<|fim_middle|>  b"
    );
    assert_eq!(
        spell("prefix-first"),
        "<|file_sep|>a.py\n<|fim_prefix|>a\n  b<|fim_suffix|>c\nd\n<|fim_middle|>"
    );
}

#[test]
fn what_was_typed_since_the_anchor_stands_after_the_middle() {
    let with = |bytes: &str| {
        let mut context = context("line-last", "a\nbé\n  c", "d\n");
        context.facts.push(("middle-bytes".into(), bytes.into()));
        build(&context).map(|prompt| spelled(&prompt))
    };
    let prompt = |before: &str, begun: &str| {
        Ok(format!("<|file_sep|>a.py\n<|fim_prefix|>{before}<|fim_suffix|>d\n<|fim_middle|>{begun}"))
    };
    assert_eq!(with("7"), prompt("a\n", "bé\n  c"));
    assert_eq!(with("0"), prompt("a\nbé\n  c", ""));
    assert_eq!(with("9"), prompt("", "a\nbé\n  c"));
    for unusable in ["5", "10", "x"] {
        assert!(with(unusable).unwrap_err().contains("middle-bytes"), "{unusable}");
    }
}

#[test]
fn the_near_suffix_ends_where_text_begins() {
    let suffix = "1\n2\n3\n4\n5\n6\n7\n8\n\n  \n9\n";
    let prompt = build(&context("suffix-first", "", suffix)).unwrap();
    let texts: Vec<_> = prompt.segments.iter().flat_map(|segment| &segment.pieces).collect();
    assert!(texts.contains(&&Piece::Text("1\n2\n3\n4\n5\n6\n7\n8\n\n  \n".into())), "{texts:?}");
    assert!(texts.contains(&&Piece::Text("9\n".into())), "{texts:?}");
}

#[test]
fn other_files_stand_first_and_are_dropped_whole() {
    let mut context = context("line-last", "x", "");
    context.facts.push(("repository".into(), "repo".into()));
    context.snippets.push(Snippet {
        path: "b.py".into(),
        text: "def f(): ...".into(),
        reason: "definition".into(),
    });
    let prompt = build(&context).unwrap();
    assert_eq!(
        spelled(&prompt),
        "<|repo_name|>repo<|file_sep|>b.py\ndef f(): ...\n<|file_sep|>a.py\n<|fim_prefix|><|fim_suffix|><|fim_middle|>x"
    );
    assert_eq!(prompt.segments[1].trim, Trim::Drop);
}

#[test]
fn other_files_are_given_up_from_the_last() {
    let mut context = context("line-last", "x", "");
    for (path, reason) in [("b.py", "recent"), ("c.py", "definition"), ("d.py", "open")] {
        context.snippets.push(Snippet { path: path.into(), text: String::new(), reason: reason.into() });
    }
    let prompt = build(&context).unwrap();
    // The host gives up lower weights first and, of equal ones, the later segment.
    let weights: Vec<u8> = prompt.segments[..3].iter().map(|segment| segment.weight).collect();
    assert!(weights.windows(2).all(|pair| pair[0] == pair[1]), "{weights:?}");
}

#[test]
fn missing_tokens_are_named() {
    let mut context = context("line-last", "x", "");
    context.model.control_tokens.retain(|token| token != "<|fim_suffix|>" && token != "<|file_sep|>");
    let error = build(&context).unwrap_err();
    assert!(error.contains("<|fim_suffix|>") && !error.contains("<|file_sep|>"), "{error}");
}

#[test]
fn facts_set_the_limits() {
    let mut context = context("suffix-first", "x", "");
    context.model.facts.push(("window-tokens".into(), "512".into()));
    context.model.facts.push(("max-tokens".into(), "20".into()));
    context.facts.push(("max-tokens".into(), "7".into()));
    let prompt = build(&context).unwrap();
    assert_eq!((prompt.prompt_tokens, prompt.max_tokens), (512, 7));
    context.facts[0].1 = "many".into();
    assert!(build(&context).unwrap_err().contains("max-tokens"));
}

#[test]
fn unknown_layout_and_task_are_refused() {
    assert!(build(&context("zigzag", "", "")).unwrap_err().contains("zigzag"));
    let mut review = context("line-last", "", "");
    review.task = "review".into();
    assert!(build(&review).unwrap_err().contains("review"));
}

#[test]
fn answer_is_cut_where_the_middle_ends() {
    let mut context = context("suffix-first", "", "");
    assert_eq!(finish(&context, "x = 1  \ny = 2").insertions, ["x = 1"]);
    assert!(finish(&context, "\n  ").insertions.is_empty());
    context.single_line = false;
    assert_eq!(finish(&context, "x\r\n  y\n<|endoftext|>z").insertions, ["x\n  y"]);
}

proptest! {
    #[test]
    fn no_text_is_lost_or_repeated(prefix in "[ab\n]{0,40}", suffix in "[cd\n]{0,40}") {
        for layout in ["suffix-first", "suffix-line-last", "line-last", "prefix-first"] {
            let prompt = spelled(&build(&context(layout, &prefix, &suffix)).unwrap());
            let mut text = prompt.replace("<|file_sep|>a.py\n", "");
            for stop in STOPS { text = text.replace(stop, ""); }
            let kept = |letters: &str| text.chars().filter(|c| letters.contains(*c)).collect::<String>();
            prop_assert_eq!(kept("ab"), prefix.replace('\n', ""));
            prop_assert_eq!(kept("cd"), suffix.replace('\n', ""));
            prop_assert_eq!(text.len(), prefix.len() + suffix.len());
        }
    }

    #[test]
    fn finish_takes_anything(raw in any::<String>(), single in any::<bool>()) {
        let mut context = context("suffix-first", "", "");
        context.single_line = single;
        for text in finish(&context, &raw).insertions {
            prop_assert!(!text.trim().is_empty());
            prop_assert!(!single || !text.contains('\n'));
        }
    }
}
