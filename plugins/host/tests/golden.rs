//! What the shipped plugins answer, compared with plugins/guests/golden. `cargo xtask plugins --check`
//! runs this on rebuilt guests; `REDSTART_UPDATE_GOLDEN=1` writes the files anew.

mod support;

use std::path::Path;

use redstart_plugins::prompt::Context;
use redstart_plugins::{Limits, PluginHost};
use support::{completion, guest, review};

async fn matches(case: &str, plugin: &str, context: Context, raw: &str) {
    let host = PluginHost::new(Limits::default()).unwrap();
    let plugin = host.load(plugin, &guest(plugin)).unwrap();
    let prompt = plugin.build(context.clone()).await.unwrap();
    let answer = plugin.finish(context.into(), raw.to_owned()).await.unwrap();
    let actual = format!("{prompt:#?}\n\n{answer:#?}\n");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../guests/golden").join(format!("{case}.txt"));
    if std::env::var_os("REDSTART_UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &actual).unwrap();
    }
    let expected =
        std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    assert_eq!(
        actual,
        expected.replace("\r\n", "\n"),
        "{case}: set REDSTART_UPDATE_GOLDEN=1 if this is intended"
    );
}

#[tokio::test]
async fn complete_suffix_first() {
    matches("complete-suffix-first", "complete", completion("suffix-first"), "th.pi * radius ** 2  \n\n")
        .await;
}

#[tokio::test]
async fn complete_line_last() {
    matches("complete-line-last", "complete", completion("line-last"), "th.pi<|endoftext|>").await;
}

#[tokio::test]
async fn complete_anchored_middle() {
    let mut context = completion("suffix-line-last");
    let typed = "def area(radius):\n    return ma";
    context.facts.push(("middle-bytes".to_owned(), typed.len().to_string()));
    matches("complete-anchored-middle", "complete", context, "th.pi").await;
}

#[tokio::test]
async fn complete_block() {
    let mut context = completion("prefix-first");
    context.single_line = false;
    matches("complete-block", "complete", context, "th.pi\n\n\ndef f():\n    pass\n").await;
}

#[tokio::test]
async fn review_of_a_function() {
    let raw = "Sure!\n```json\n[{\"first_line\": \"5\", \"last_line\": 5, \"severity\": \"High\", \"kind\": \"bug\", \
               \"message\": \"divides by zero when values is empty\", \
               \"replacement\": \"5|     return total / len(values) if values else 0.0\"},\n\
               {\"line\": 2, \"message\": \"a float is clearer\"}, {\"line\": 99, \"message\": \"elsewhere\"}, {\"line\": 1, \"mess";
    matches("review", "review", review(), raw).await;
}
