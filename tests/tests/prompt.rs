//! The prompt that reaches the embedded model is, token for token, the one it was trained on: through the
//! real plugin, the host's assembly in pieces, and the model's own tokenizer.

use std::path::Path;

use redstart::model::{LoadedModel, ModelSource, RunOptions, load};
use redstart::plugins::PluginFiles;
use redstart_plugins::prompt::{Context, Model};
use redstart_plugins::{Budget, builtin};
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
