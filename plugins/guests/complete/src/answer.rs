//! From the model's raw text to the text to insert.

use redstart_plugin_sdk::{Answer, Context};

use crate::layout::STOPS;

pub(crate) fn finish(context: &Context, raw: &str) -> Answer {
    let text = raw.replace("\r\n", "\n");
    let mut text = until_stop(&text);
    if context.single_line {
        text = text.split('\n').next().unwrap_or_default();
    }
    let text = text.trim_end();
    let insertions = if text.is_empty() { Vec::new() } else { vec![text.to_owned()] };
    Answer { insertions, findings: Vec::new(), facts: Vec::new() }
}

/// Up to the first control token that a server spelled out instead of stopping at.
fn until_stop(text: &str) -> &str {
    let end = STOPS.iter().filter_map(|stop| text.find(stop)).min();
    &text[..end.unwrap_or(text.len())]
}
