//! A plugin that misbehaves in the way the context's `path` asks for. The host's tests drive it.

use redstart_plugin_sdk::{Answer, Context, Finding, Info, Prompt, PromptPlugin, Stability, segment};

struct Hostile;

impl PromptPlugin for Hostile {
    fn describe() -> Info {
        Info { name: "hostile".into(), version: "0".into(), tasks: vec!["complete".into()], facts: vec![] }
    }

    fn build(context: Context) -> Result<Prompt, String> {
        match context.path.as_str() {
            "spin" => spin(),
            "grow" => grow(),
            "recurse" => {
                std::hint::black_box(recurse(&[0; 64]));
            }
            "trap" => panic!("asked to"),
            "refuse" => return Err("no prompt today".into()),
            "flood" => return Ok(prompt("x".repeat(24 << 20))),
            "big" => return Ok(prompt("x".repeat(2 << 20))),
            "many" => return Ok(many_segments()),
            _ => {}
        }
        let mut prompt = prompt(context.prefix);
        match context.path.as_str() {
            "control" => prompt.segments.push(segment(Stability::Line).control("<|no_such_token|>").build()),
            "tokens" => prompt.max_tokens = u32::MAX,
            "empty" => prompt.segments.clear(),
            _ => {}
        }
        Ok(prompt)
    }

    fn finish(context: Context, raw: String) -> Result<Answer, String> {
        let mut answer = Answer { insertions: vec![raw], findings: vec![], facts: vec![] };
        match context.path.as_str() {
            "spin" => spin(),
            "lines" => answer.findings.push(Finding {
                first_line: 9,
                last_line: 3,
                severity: "fatal".into(),
                kind: "bug".into(),
                message: "m".into(),
                replacement: None,
                facts: vec![],
            }),
            _ => {}
        }
        Ok(answer)
    }
}

redstart_plugin_sdk::export!(Hostile);

fn prompt(text: String) -> Prompt {
    Prompt {
        segments: vec![segment(Stability::Document).text(text).build()],
        stop: vec![],
        stop_control: vec![],
        max_tokens: 8,
        prompt_tokens: 0,
        facts: vec![],
    }
}

fn many_segments() -> Prompt {
    let mut prompt = prompt(String::new());
    prompt.segments = vec![segment(Stability::Document).text("x").build(); 5000];
    prompt
}

fn spin() {
    let mut turns = 0u64;
    loop {
        turns = std::hint::black_box(turns + 1);
    }
}

fn grow() {
    let mut held = Vec::new();
    loop {
        held.push(std::hint::black_box(vec![1u8; 1 << 20]));
    }
}

#[expect(unconditional_recursion, reason = "overflowing the stack is the point")]
fn recurse(above: &[u8]) -> usize {
    let frame = [above.len() as u8; 64];
    recurse(std::hint::black_box(&frame)) + usize::from(frame[3])
}
