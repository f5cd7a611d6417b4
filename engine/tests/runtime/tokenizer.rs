//! Text to tokens and back, with the embedded model's tokenizer and, where given, Qwen2.5's.

use std::path::Path;
use std::sync::LazyLock;

use proptest::prelude::*;
use redstart_engine::tokenizer::Tokenizer;
use serde_json::{Value, json};

/// Names a file with Qwen2.5's tokenizer.json, which is not part of the project.
const QWEN_TOKENIZER: &str = "REDSTART_QWEN_TOKENIZER";

fn nano_file(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/nano").join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn nano() -> Tokenizer {
    Tokenizer::from_bytes(&nano_file("tokenizer.json")).expect("the embedded tokenizer")
}

fn qwen() -> Option<Tokenizer> {
    let path = std::env::var_os(QWEN_TOKENIZER)?;
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Some(Tokenizer::from_bytes(&bytes).expect("Qwen2.5's tokenizer"))
}

/// A tokenizer of 256 byte tokens: byte `b` has the id that its place in the byte alphabet gives it.
pub(crate) fn byte_tokenizer_json() -> Vec<u8> {
    serde_json::to_vec(&byte_tokenizer()).expect("serializes")
}

fn byte_tokenizer() -> Value {
    let printable = (b'!'..=b'~').chain(0xA1..=0xAC).chain(0xAE..=0xFF).map(char::from);
    let stand_ins = ('\u{100}'..).take(68);
    let vocab: serde_json::Map<String, Value> =
        printable.chain(stand_ins).zip(0u32..).map(|(char, id)| (char.to_string(), json!(id))).collect();
    json!({
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    })
}

#[test]
fn the_embedded_models_prompts_are_encoded_as_in_training() {
    let tokenizer = nano();
    let cases: Vec<Value> = serde_json::from_slice(&nano_file("expected.json")).expect("JSON");
    assert!(!cases.is_empty());
    for case in cases {
        let text = |key: &str| case[key].as_str().expect("a text").to_owned();
        let control = |content: &str| vec![tokenizer.control_token(content).expect("a control token")];
        let head = [control("<|file_sep|>"), tokenizer.encode(&(text("file") + "\n"))].concat();
        let prefix = [control("<|fim_prefix|>"), tokenizer.encode(&text("prefix"))].concat();
        let suffix = [control("<|fim_suffix|>"), tokenizer.encode(&text("suffix"))].concat();
        let parts = match text("layout").as_str() {
            "psm" => [head, prefix, suffix],
            "spm" => [head, suffix, prefix],
            layout => panic!("unknown layout {layout}"),
        };
        let ids = [parts.concat(), control("<|fim_middle|>")].concat();
        assert_eq!(json!(ids), case["prompt"], "{}", case["file"]);
        let greedy: Vec<u32> = serde_json::from_value(case["greedy"].clone()).expect("ids");
        assert_eq!(tokenizer.decode(&greedy), text("text"));
    }
}

#[test]
fn text_never_becomes_a_control_token() {
    for tokenizer in [Some(nano()), qwen()].into_iter().flatten() {
        let contents = tokenizer.control_tokens();
        assert!(contents.iter().any(|content| content == "<|fim_middle|>"));
        for content in contents.iter().chain([&contents.concat(), &format!("x {} y", contents.join(" "))]) {
            let ids = tokenizer.encode(content);
            assert!(ids.len() > 1, "{content} became one token");
            assert!(!ids.iter().any(|&id| tokenizer.is_control(id)), "{content}: {ids:?}");
            assert_eq!(&tokenizer.decode(&ids), content, "the text is kept");
        }
        let id = tokenizer.control_token("<|im_end|>").expect("a control token");
        assert!(tokenizer.is_control(id));
        assert_eq!(tokenizer.token_bytes(id), b"", "a control token is no text");
        assert_eq!(tokenizer.control_token("def"), None);
        assert_eq!(tokenizer.token_bytes(u32::MAX), b"", "nor is an id without a token");
        assert!(!tokenizer.is_control(u32::MAX));
    }
}

#[test]
fn a_control_token_among_the_bpe_tokens_is_spelled_out_too() {
    let mut json = byte_tokenizer();
    // `ignore_merges` makes the encoder take a whole piece of text for the token of that name.
    json["model"]["ignore_merges"] = json!(true);
    json["model"]["vocab"]["<end>"] = json!(256);
    json["model"]["vocab"]["<fine>"] = json!(257);
    json["added_tokens"] = json!([{"id": 256, "content": "<end>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true}]);
    let tokenizer =
        Tokenizer::from_bytes(&serde_json::to_vec(&json).expect("serializes")).expect("a tokenizer");
    assert_eq!(tokenizer.encode("<fine>"), [257], "the premise");
    assert_eq!(tokenizer.control_token("<end>"), Some(256));
    let ids = tokenizer.encode("<end>");
    assert_eq!((ids.len(), tokenizer.decode(&ids)), (5, "<end>".to_owned()));
    assert!(!ids.contains(&256));
}

#[test]
fn nothing_is_added_to_a_text() {
    let tokenizer = nano();
    assert!(tokenizer.encode("").is_empty());
    assert_eq!(tokenizer.decode(&tokenizer.encode("x")), "x");
    assert_eq!(tokenizer.vocab_size(), 8192);
    assert_eq!(tokenizer.control_tokens().first().map(String::as_str), Some("<|endoftext|>"));
}

#[test]
#[expect(clippy::print_stderr, reason = "a skipped test says so")]
fn qwen_ids_are_the_published_ones() {
    let Some(tokenizer) = qwen() else {
        eprintln!("skipped: {QWEN_TOKENIZER} names no tokenizer.json");
        return;
    };
    assert_eq!(tokenizer.vocab_size(), 151_665);
    assert_eq!(tokenizer.encode("Hello, world!"), [9707, 11, 1879, 0]);
    assert_eq!(tokenizer.control_token("<|im_end|>"), Some(151_645));
    assert_eq!(tokenizer.control_token("<|fim_middle|>"), Some(151_660));
}

#[test]
fn other_tokenizers_are_refused_by_kind() {
    let refused = |json: &Value| {
        Tokenizer::from_bytes(&serde_json::to_vec(json).expect("serializes")).expect_err("refused")
    };
    let mut no_byte_level = byte_tokenizer();
    no_byte_level["pre_tokenizer"] = json!({"type": "Whitespace"});
    assert!(refused(&no_byte_level).contains("only byte-level BPE is supported"));
    let mut word_level = byte_tokenizer();
    word_level["model"] = json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"});
    assert!(refused(&word_level).contains("WordLevel"));
    let mut byte_missing = byte_tokenizer();
    byte_missing["model"]["vocab"].as_object_mut().expect("a map").remove("A");
    assert!(refused(&byte_missing).contains("0x41"));
    let broken = Tokenizer::from_bytes(b"{\"model\": 3").expect_err("refused");
    assert!(broken.contains("tokenizer.json"), "{broken}");
}

#[test]
fn a_tokenizer_may_be_shared_between_threads() {
    fn shared<T: Send + Sync + 'static>() {}
    shared::<Tokenizer>();
}

/// The embedded tokenizer with other patterns: GPT-2's, Llama 3's, Qwen2's with accents composed, one that is not known.
fn splitting_otherwise() -> Vec<Value> {
    let nano: Value = serde_json::from_slice(&nano_file("tokenizer.json")).expect("JSON");
    let with = |pre_tokenizer: Value, normalizer: Value| {
        let mut json = nano.clone();
        json["added_tokens"] = json!([]);
        json["pre_tokenizer"] = pre_tokenizer;
        json["normalizer"] = normalizer;
        json
    };
    let bytes = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let split = |pattern: &str| {
        let split =
            json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes(false)]})
    };
    let llama = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    let qwen = llama.replace("{1,3}", "");
    vec![
        with(nano["pre_tokenizer"].clone(), Value::Null),
        with(bytes(true), Value::Null),
        with(split(llama), Value::Null),
        with(split(&qwen), json!({"type": "NFC"})),
        with(split(r"\p{L}+|\s+"), Value::Null),
    ]
}

/// Ours, and the library's reading of the same file.
fn both(json: &Value) -> (Tokenizer, tokenizers::Tokenizer) {
    let bytes = serde_json::to_vec(json).expect("serializes");
    let ours = Tokenizer::from_bytes(&bytes).expect("a tokenizer");
    (ours, tokenizers::Tokenizer::from_bytes(&bytes).expect("a tokenizer"))
}

/// What the patterns tell apart: blanks and line ends of all kinds, letters, marks, digits, contractions, symbols.
fn any_piece() -> impl Strategy<Value = String> {
    let fixed = [
        "\n",
        "\r\n",
        "\r",
        "\n\n   ",
        " \n",
        "\t",
        "    ",
        "  ",
        " ",
        "\u{a0}",
        "\u{2028}",
        "\u{85}",
        "\u{c}",
        "\u{3000}",
        "e\u{301}",
        "\u{301}",
        "é",
        "ß",
        "变量",
        "عربي",
        "👩\u{200d}💻",
        "Ⅷ",
        "²",
        "12345",
        "0",
        "'s",
        "'LL",
        "'ſ",
        "'",
        "\"",
        "self.",
        "return",
        "_x",
        "<|im_end|>",
        "/*",
        "->",
        "#",
        "();",
        "\0",
        "a long identifierWithManyParts_of_it",
    ];
    prop_oneof![8 => prop::sample::select(fixed.to_vec()).prop_map(str::to_owned), 1 => any::<String>()]
}

proptest! {
    #[test]
    fn words_are_encoded_as_the_library_does(pieces in prop::collection::vec(any_piece(), 0..24)) {
        static BOTH: LazyLock<Vec<(Tokenizer, tokenizers::Tokenizer)>> =
            LazyLock::new(|| splitting_otherwise().iter().map(both).collect());
        let text = pieces.concat();
        for (index, (ours, library)) in BOTH.iter().enumerate() {
            let expected = library.encode(text.as_str(), false).expect("encodes");
            // Twice: the second time its words are known.
            for _ in 0..2 {
                prop_assert_eq!(&ours.encode(&text), expected.get_ids(), "pattern {}", index);
            }
        }
    }

    #[test]
    fn any_text_comes_back(text in any::<String>()) {
        static NANO: LazyLock<Tokenizer> = LazyLock::new(nano);
        let tokenizer = &*NANO;
        prop_assert_eq!(tokenizer.decode(&tokenizer.encode(&text)), text);
    }
}
