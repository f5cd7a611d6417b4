use proptest::prelude::*;
use redstart_plugin_sdk::{ChatFrame, Context, Model, Piece, Stability};

use crate::findings::{parse, says_none};
use crate::question::build;

fn context() -> Context {
    let control = |token: &str| Piece::Control(token.into());
    let text = |text: &str| Piece::Text(text.into());
    Context {
        task: "review".into(),
        path: "a.py".into(),
        language: "python".into(),
        prefix: "import os\n\n".into(),
        suffix: "\nmain()\n".into(),
        focus: "def f(x):\n    return x/0\n".into(),
        first_line: 2,
        single_line: false,
        snippets: vec![],
        model: Model {
            name: "m".into(),
            context_tokens: 4096,
            control_tokens: vec!["<|im_start|>".into(), "<|im_end|>".into()],
            chat: Some(ChatFrame {
                system: vec![control("<|im_start|>"), text("system\n")],
                user: vec![control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("user\n")],
                reply: vec![control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("assistant\n")],
            }),
            facts: vec![],
        },
        facts: vec![],
    }
}

#[test]
fn question_frames_and_numbers_the_function() {
    let prompt = build(&context()).unwrap();
    assert!(prompt.segments.is_sorted_by_key(|segment| segment.stability as u8), "the host would reorder it");
    assert_eq!(prompt.segments[0].stability, Stability::Model);
    let spelled: String = prompt
        .segments
        .iter()
        .flat_map(|segment| &segment.pieces)
        .map(|piece| match piece {
            Piece::Text(text) | Piece::Control(text) => text.as_str(),
        })
        .collect();
    assert!(spelled.starts_with("<|im_start|>system\nYou review"), "{spelled}");
    assert!(spelled.contains("1| def f(x):\n2|     return x/0\n"), "{spelled}");
    assert!(spelled.contains("import os\n") && spelled.contains("main()\n"), "{spelled}");
    assert!(spelled.ends_with("<|im_end|>\n<|im_start|>assistant\n"), "{spelled}");
    assert_eq!(prompt.stop_control, ["<|im_end|>", "<|im_start|>"]);
}

#[test]
fn a_model_that_cannot_chat_is_refused() {
    let mut context = context();
    context.model.chat = None;
    assert!(build(&context).unwrap_err().contains("cannot review"));
    let mut context = self::context();
    context.focus = "\n".into();
    assert!(build(&context).unwrap_err().contains("no code"));
}

const ONE: &str = r#"{"first_line": 2, "last_line": 2, "severity": "error", "kind": "bug", "message": "divides by zero", "replacement": "    return x"}"#;

#[test]
fn plain_json_lines() {
    let findings = parse(&format!("{ONE}\n{ONE}\n"), 2);
    assert_eq!(findings.len(), 2);
    let finding = &findings[0];
    assert_eq!((finding.first_line, finding.last_line), (1, 1));
    assert_eq!((finding.severity.as_str(), finding.kind.as_str()), ("error", "bug"));
    assert_eq!(finding.replacement.as_deref(), Some("    return x"));
}

#[test]
fn wrappings() {
    for raw in [
        format!("Here is what I found:\n```json\n[{ONE}]\n```\nHope that {{helps}}!"),
        format!("{{\"findings\": [{ONE}]}}"),
        format!("{ONE}\n{{\"first_line\": 1, \"mess"),
        format!("[{ONE}, {{\"first_line\": 1, \"message\": \"cut of"),
        format!("{{\"findings\": [{ONE}, {{\"first_line\": 1"),
        ONE.replace("\"first_line\": 2", "\"first_line\": \"L2\""),
        ONE.replace("\"first_line\": 2, \"last_line\": 2", "\"lines\": \"2-2\""),
        ONE.replace("    return x", "2|     return x"),
        ONE.replace("    return x", "```python\\n    return x\\n```"),
    ] {
        let findings = parse(&raw, 2);
        assert_eq!(findings.len(), 1, "{raw}");
        assert_eq!(findings, parse(ONE, 2), "{raw}");
    }
}

#[test]
fn nothing_found() {
    for raw in ["no findings", "", "[]", "{\"findings\": []}", "{}", "{ { {"] {
        assert!(parse(raw, 2).is_empty(), "{raw}");
    }
}

#[test]
fn an_answer_that_is_no_review_is_not_taken_for_a_clean_one() {
    for clean in [
        "no findings",
        "No findings.\n",
        "**No issues**",
        "[]",
        "{\"findings\": []}",
        "The code is fine: no findings",
    ] {
        assert!(says_none(clean), "{clean}");
    }
    for other in ["", "def f():\n    return none_of(x)", "self.name = name\nself.name = name", "{ { {"] {
        assert!(!says_none(other), "{other}");
    }
}

#[test]
fn line_breaks_inside_strings() {
    let findings = parse("{\"line\": 1, \"message\": \"two\nlines\", \"replacement\": \"a\n\tb\"}", 3);
    assert_eq!(findings[0].message, "two\nlines");
    assert_eq!(findings[0].replacement.as_deref(), Some("a\n\tb"));
}

#[test]
fn lines_outside_are_clamped_or_dropped() {
    let at = |first: u64, last: u64| {
        parse(&format!("{{\"first_line\": {first}, \"last_line\": {last}, \"message\": \"m\"}}"), 5)
            .first()
            .map(|finding| (finding.first_line, finding.last_line))
    };
    assert_eq!(at(2, 99), Some((1, 4)));
    assert_eq!(at(4, 2), Some((3, 3)));
    assert_eq!(at(6, 9), None);
    assert_eq!(at(0, 3), None);
    assert_eq!(at(u64::MAX, 3), None);
}

#[test]
fn severities() {
    for (word, expected) in [
        ("Critical", "error"),
        ("medium", "warning"),
        ("INFO", "information"),
        ("nit", "hint"),
        ("?", "warning"),
    ] {
        let raw = format!("{{\"line\": 1, \"message\": \"m\", \"severity\": \"{word}\"}}");
        assert_eq!(parse(&raw, 1)[0].severity, expected);
    }
}

#[test]
fn a_flood_of_braces_is_given_up() {
    assert!(parse(&"{".repeat(1_000_000), 2).is_empty());
    assert_eq!(parse(&format!("{ONE}\n").repeat(10_000), 2).len(), 50);
}

fn jsonish() -> impl Strategy<Value = String> {
    let word = prop_oneof![
        Just("{"),
        Just("}"),
        Just("["),
        Just("]"),
        Just("\""),
        Just(","),
        Just(":"),
        Just("\\"),
        Just("\n"),
        Just("\"message\":\"m\""),
        Just("\"line\":1"),
        Just("\"replacement\":\"1| a\""),
        Just("é"),
        Just("```"),
        Just("|"),
    ];
    proptest::collection::vec(word, 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn takes_anything(raw in prop_oneof![any::<String>(), jsonish()], lines in 0usize..20) {
        for finding in parse(&raw, lines) {
            prop_assert!(finding.first_line <= finding.last_line);
            prop_assert!((finding.last_line as usize) < lines);
            prop_assert!(!finding.message.is_empty());
        }
    }
}
