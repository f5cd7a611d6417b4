//! The prompt that reaches a model is, token for token, the one it was trained on: through the real plugin,
//! the host's assembly in pieces, and the model's own tokenizer.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use redstart::model::PromptTokenizer;
use redstart::model::{LoadedModel, ModelSource, RunOptions, load};
use redstart::plugins::PluginFiles;
use redstart_engine::tokenizer::Tokenizer;
use redstart_plugins::prompt::{Context, Model, Piece, Prompt, Segment, Stability, Trim};
use redstart_plugins::{Assembler, Budget, Tokenize, builtin};
use serde::Deserialize;

#[derive(Deserialize)]
struct Case {
    layout: String,
    file: String,
    prefix: String,
    suffix: String,
    prompt: Vec<u32>,
}

fn context(model: &LoadedModel, case: &Case) -> Context {
    let info = model.generator.model();
    let layout = if case.layout == "spm" { "suffix-first" } else { "prefix-first" };
    Context {
        task: "complete".into(),
        path: case.file.clone(),
        language: "python".into(),
        prefix: case.prefix.clone(),
        suffix: case.suffix.clone(),
        focus: String::new(),
        first_line: 0,
        single_line: false,
        snippets: Vec::new(),
        model: Model {
            name: info.name.clone(),
            context_tokens: 2048,
            control_tokens: info.tokenizer.as_ref().expect("a tokenizer").control_tokens(),
            chat: None,
            facts: vec![("fim-layout".into(), layout.into())],
        },
        facts: Vec::new(),
    }
}

#[tokio::test]
async fn prompts_are_those_the_model_was_trained_on() {
    let model =
        load(&ModelSource::Embedded, &RunOptions::default(), &PluginFiles::default()).expect("the model");
    let card = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/nano/expected.json");
    let cases: Vec<Case> = serde_json::from_slice(&std::fs::read(card).expect("the card")).expect("cases");
    assert!(cases.len() >= 10);
    for case in &cases {
        let context = context(&model, case);
        let plugin = model.plugins.complete.as_ref().expect("the shipped plugin");
        let prompt = plugin.build(context.clone()).await.expect("a prompt");
        let assembled = model.assembler.assemble(&prompt, Budget::of(&prompt, 2048)).expect("tokens");
        assert_eq!(assembled.tokens, case.prompt, "{} {}", case.layout, case.file);

        // The built-in prompt that stands in for the plugin says the same, but for the file's name.
        let built_in = builtin::complete(&context);
        let assembled = model.assembler.assemble(&built_in, Budget::of(&built_in, 2048)).expect("tokens");
        assert!(
            case.prompt.ends_with(&assembled.tokens),
            "{} {}: the built-in prompt",
            case.layout,
            case.file
        );
    }
}

#[tokio::test]
async fn a_typed_middle_stands_last_in_both_prompts() {
    let model =
        load(&ModelSource::Embedded, &RunOptions::default(), &PluginFiles::default()).expect("the model");
    let case = Case {
        layout: "psm".into(),
        file: "a.py".into(),
        prefix: "import os\n\ndef f(é):\n    x = é\n    y".into(),
        suffix: "\n    return x\n".into(),
        prompt: Vec::new(),
    };
    let mut context = context(&model, &case);
    let typed = "    x = é\n    y";
    context.facts = vec![("middle-bytes".into(), typed.len().to_string())];
    let tokenizer = model.generator.model().tokenizer.clone().expect("a tokenizer");
    let ends_with =
        [vec![tokenizer.control_token("<|fim_middle|>").expect("known")], tokenizer.encode(typed)].concat();
    let plugin = model.plugins.complete.as_ref().expect("the shipped plugin");
    for layout in ["line-last", "suffix-line-last"] {
        context.model.facts = vec![("fim-layout".into(), layout.into())];
        let built = plugin.build(context.clone()).await.expect("a prompt");
        let [built, built_in] = [built, builtin::complete(&context)].map(|prompt| {
            model.assembler.assemble(&prompt, Budget::of(&prompt, 2048)).expect("tokens").tokens
        });
        assert!(built.ends_with(&ends_with), "{layout}");
        assert!(built.ends_with(&built_in), "{layout}: the built-in prompt lacks the file's name, no more");
    }
}

/// Names a file with Qwen2.5's tokenizer.json, which is not part of the project.
const QWEN_TOKENIZER: &str = "REDSTART_QWEN_TOKENIZER";

/// The embedded tokenizer, and one of real size where there is one.
fn tokenizers() -> Vec<Arc<Tokenizer>> {
    let nano = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/nano/tokenizer.json");
    let files = [Some(nano), std::env::var_os(QWEN_TOKENIZER).map(Into::into)].into_iter().flatten();
    files.map(|file| Arc::new(Tokenizer::from_bytes(&std::fs::read(file).unwrap()).unwrap())).collect()
}

/// Counts what it is asked to encode.
struct Counting {
    tokenizer: PromptTokenizer,
    bytes: AtomicUsize,
}

impl Tokenize for Counting {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.bytes.fetch_add(text.len(), Ordering::Relaxed);
        self.tokenizer.encode(text)
    }

    fn control_token(&self, name: &str) -> Option<u32> {
        self.tokenizer.control_token(name)
    }
}

/// An assembler that knows every text it met, and what it had to encode.
struct Incremental {
    counting: Arc<Counting>,
    assembler: Assembler,
}

impl Incremental {
    fn new(tokenizer: &Arc<Tokenizer>) -> Self {
        let tokenizer = PromptTokenizer(tokenizer.clone());
        let counting = Arc::new(Counting { tokenizer, bytes: AtomicUsize::new(0) });
        Self { assembler: Assembler::new(counting.clone(), 1 << 24), counting }
    }

    /// The tokens of a segment, and the bytes that were encoded for them.
    fn tokens(&self, text: &str) -> (Vec<u32>, usize) {
        let segment = Segment {
            pieces: vec![Piece::Text(text.into())],
            stability: Stability::Document,
            trim: Trim::Keep,
            weight: 0,
        };
        let prompt = Prompt {
            segments: vec![segment],
            stop: vec![],
            stop_control: vec![],
            max_tokens: 1,
            prompt_tokens: 0,
            facts: vec![],
        };
        self.counting.bytes.store(0, Ordering::Relaxed);
        let budget = Budget { max_prompt_tokens: usize::MAX };
        let tokens = self.assembler.assemble(&prompt, budget).expect("nothing is unknown or too long").tokens;
        (tokens, self.counting.bytes.load(Ordering::Relaxed))
    }
}

/// A few characters of what is hard for tokenizers: all kinds of blanks and line ends, letters that compose,
/// marks, digits, contractions, emoji of several code points.
fn any_piece() -> impl Strategy<Value = String> {
    let fixed = [
        "\n",
        "\r\n",
        "\n\n",
        "\n\n\n    ",
        " \n",
        "\r",
        "\n\r",
        "\t",
        "\t\t",
        "    ",
        "  ",
        " ",
        "\n    ",
        "\n\t",
        "\u{a0}",
        "\u{2028}",
        "\u{85}",
        "\u{c}",
        "\u{3000}",
        "e\u{301}",
        "\u{301}",
        "\n\u{301}",
        "\u{1100}\u{1161}",
        "é",
        "ß",
        "变量",
        "，",
        "عربي",
        "👩\u{200d}💻",
        "🇩🇪",
        "1234567",
        "0x1F",
        "3.14",
        "'s",
        "'LL",
        "don't",
        "snake_case",
        "CamelCase",
        "return ",
        "def f(x):",
        "if (a && b) {",
        "});",
        "// note",
        "\"text\"",
        "<|im_end|>",
        "=>",
        ", ",
        "value = ",
        "self.",
        "__init__",
    ];
    prop_oneof![
        8 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned),
        2 => "[a-z]{1,8}",
        1 => "[ -~]{1,12}",
        1 => any::<String>(),
        1 => "\n{0,2}[ \t\r]{0,3}[a-z]",
    ]
}

/// Lines of code with odd pieces between them, and odd pieces with hardly any code.
fn any_text() -> impl Strategy<Value = String> {
    let line = "( {0,12}|\t{0,3})[a-z_]{1,9}( = |\\(|\\.)[a-z0-9]{0,9}[;:),]{0,2} {0,2}(\n|\r\n|\n\n)";
    let code = prop::collection::vec((line, line, any_piece()), 0..80)
        .prop_map(|parts| parts.into_iter().map(|(one, two, odd)| one + &two + &odd).collect());
    let odd = prop::collection::vec(any_piece(), 0..300).prop_map(|pieces| pieces.concat());
    // A line of any length, with places to cut it and without.
    let long = (any_piece(), 1usize..1000, any_piece())
        .prop_map(|(one, count, two)| one.replace('\n', "") + &"word(x), ééé".repeat(count) + &two);
    prop_oneof![4 => code, 4 => odd, 1 => long]
}

fn char_floor(text: &str, share: f64) -> usize {
    text.floor_char_boundary((text.len() as f64 * share) as usize)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// The tokens of a segment, put together from blocks, are those of its whole text, after every edit.
    #[test]
    fn tokens_are_those_of_the_whole_text(
        text in any_text(),
        edits in prop::collection::vec((0.0f64..1.0, 0usize..30, any_piece()), 1..12),
    ) {
        for tokenizer in tokenizers_once() {
            let incremental = Incremental::new(tokenizer);
            let mut text = text.clone();
            prop_assert_eq!(incremental.tokens(&text).0, tokenizer.encode(&text));
            for (at, removed, inserted) in &edits {
                let start = char_floor(&text, *at);
                let end = text.floor_char_boundary((start + removed).min(text.len())).max(start);
                text.replace_range(start..end, inserted);
                prop_assert_eq!(incremental.tokens(&text).0, tokenizer.encode(&text));
            }
        }
    }
}

fn tokenizers_once() -> &'static [Arc<Tokenizer>] {
    static TOKENIZERS: std::sync::OnceLock<Vec<Arc<Tokenizer>>> = std::sync::OnceLock::new();
    TOKENIZERS.get_or_init(tokenizers)
}

/// A key pressed anywhere in a long text costs the blocks around it.
#[test]
fn a_key_costs_a_block_and_not_the_text() {
    let source = include_str!("../../plugins/host/src/host.rs").repeat(20);
    let minified = source.split_whitespace().collect::<Vec<_>>().join(" ");
    for tokenizer in tokenizers_once() {
        for text in [&source, &minified] {
            let incremental = Incremental::new(tokenizer);
            incremental.tokens(text);
            let mut costs = Vec::new();
            for step in 0..200 {
                let mut edited = text.clone();
                let at = char_floor(text, f64::from(step) / 200.0);
                edited.insert_str(at, ["x", "\n", " ", "("][step as usize % 4]);
                let (tokens, cost) = incremental.tokens(&edited);
                assert!(step % 50 > 0 || tokens == tokenizer.encode(&edited));
                costs.push(cost);
            }
            costs.sort_unstable();
            let most = costs[costs.len() - 1];
            assert!(
                costs[100] < 1200 && most < 8192,
                "of {} bytes {} and at most {most}",
                text.len(),
                costs[100]
            );
        }
    }
}
