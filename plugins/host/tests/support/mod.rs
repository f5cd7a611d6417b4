//! What the tests of plugins share.

#![allow(dead_code, reason = "each test binary uses its part")]

use std::path::PathBuf;

use redstart_plugins::prompt::{ChatFrame, Context, Model, Piece, Snippet};

/// A built guest: of `REDSTART_GUESTS_DIR` where `cargo xtask plugins --check` sets it, else the
/// committed one.
pub(crate) fn guest(name: &str) -> Vec<u8> {
    let committed = concat!(env!("CARGO_MANIFEST_DIR"), "/../guests/built");
    let folder =
        std::env::var_os("REDSTART_GUESTS_DIR").map_or_else(|| PathBuf::from(committed), PathBuf::from);
    let path = folder.join(format!("{name}.wasm"));
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A completion in the middle of a Python file.
pub(crate) fn completion(layout: &str) -> Context {
    let tokens = [
        "<|endoftext|>",
        "<|fim_prefix|>",
        "<|fim_suffix|>",
        "<|fim_middle|>",
        "<|file_sep|>",
        "<|repo_name|>",
    ];
    Context {
        task: "complete".into(),
        path: "src/shapes.py".into(),
        language: "python".into(),
        prefix: "import math\n\n\ndef area(radius):\n    return ma".into(),
        suffix: "\n\n\ndef circumference(radius):\n    return 2 * math.pi * radius\n".into(),
        focus: String::new(),
        first_line: 4,
        single_line: true,
        snippets: vec![Snippet {
            path: "src/units.py".into(),
            text: "INCH = 0.0254\n".into(),
            reason: "open-file".into(),
        }],
        model: Model {
            name: "test".into(),
            context_tokens: 2048,
            control_tokens: tokens.map(str::to_owned).to_vec(),
            chat: None,
            facts: vec![("fim-layout".into(), layout.into()), ("window-tokens".into(), "512".into())],
        },
        facts: vec![("repository".into(), "shapes".into())],
    }
}

/// A review of a Python function.
pub(crate) fn review() -> Context {
    let control = |token: &str| Piece::Control(token.into());
    let text = |text: &str| Piece::Text(text.into());
    let mut context = completion("line-last");
    context.task = "review".into();
    context.prefix = "import math\n\n\n".into();
    context.focus = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    return total / len(values)\n".into();
    context.suffix = "\n\nprint(mean([]))\n".into();
    context.first_line = 3;
    context.model.control_tokens.extend(["<|im_start|>".to_owned(), "<|im_end|>".to_owned()]);
    context.model.chat = Some(ChatFrame {
        system: vec![control("<|im_start|>"), text("system\n")],
        user: vec![control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("user\n")],
        reply: vec![control("<|im_end|>"), text("\n"), control("<|im_start|>"), text("assistant\n")],
    });
    context
}
