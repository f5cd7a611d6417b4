//! Findings out of a model's answer. Models wrap JSON in fences and prose, put it in arrays, break
//! lines inside strings and stop in the middle; every complete object that names a line and says
//! something is taken, wherever it stands.

use redstart_plugin_sdk::Finding;
use serde_json::{Map, Value};

/// More than any answer of a thousand tokens; the rest is not read.
const MAX_RAW: usize = 64 * 1024;
const MAX_FINDINGS: usize = 50;
/// Braces that begin no object, after which the text is not JSON.
const MAX_FALSE_STARTS: usize = 200;

/// The findings in `raw` about a text of `lines` lines.
pub(crate) fn parse(raw: &str, lines: usize) -> Vec<Finding> {
    let mut rest = &raw[..raw.floor_char_boundary(MAX_RAW)];
    let mut findings = Vec::new();
    let mut false_starts = 0;
    while let Some(start) = rest.find('{') {
        rest = &rest[start..];
        let object = balanced(rest).and_then(|text| Some((parse_object(text)?, text.len())));
        match object {
            Some((object, length)) => {
                collect(&object, lines, &mut findings);
                rest = &rest[length..];
            }
            // An object cut off, or a brace in prose: what is inside may still be whole.
            None => {
                false_starts += 1;
                rest = &rest[1..];
            }
        }
        if false_starts == MAX_FALSE_STARTS || findings.len() >= MAX_FINDINGS {
            break;
        }
    }
    findings.truncate(MAX_FINDINGS);
    findings
}

/// Whether an answer without findings says that there are none, rather than something else.
pub(crate) fn says_none(raw: &str) -> bool {
    let answer =
        raw.trim().trim_matches(|c: char| !c.is_alphanumeric() && !"[]{}".contains(c)).to_lowercase();
    let words = ["no findings", "no issues", "no problems", "nothing to report", "none"];
    let empty_json = ["[]", "{}", "\"findings\": []", "\"findings\":[]"];
    words.iter().any(|word| answer.starts_with(word) || answer.ends_with(word))
        || empty_json.iter().any(|json| answer.contains(json))
}

/// The text from the brace it starts with to the matching one.
fn balanced(text: &str) -> Option<&str> {
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' if !in_string => depth += 1,
            b'}' if !in_string => {
                depth -= 1;
                if depth == 0 {
                    return Some(&text[..=index]);
                }
            }
            _ => {}
        }
    }
    None
}

fn parse_object(text: &str) -> Option<Map<String, Value>> {
    serde_json::from_str(text).or_else(|_| serde_json::from_str(&escape_controls(text))).ok()
}

/// Escapes line breaks and tabs inside string literals, which JSON forbids and models write.
fn escape_controls(text: &str) -> String {
    let mut fixed = String::with_capacity(text.len() + 16);
    let (mut in_string, mut escaped) = (false, false);
    for c in text.chars() {
        match c {
            '\n' if in_string => fixed.push_str("\\n"),
            '\t' if in_string => fixed.push_str("\\t"),
            '\r' if in_string => {}
            _ => fixed.push(c),
        }
        if c == '"' && !escaped {
            in_string = !in_string;
        }
        escaped = in_string && c == '\\' && !escaped;
    }
    fixed
}

/// The object as a finding, or the findings in the lists it holds.
fn collect(object: &Map<String, Value>, lines: usize, findings: &mut Vec<Finding>) {
    if let Some(finding) = finding(object, lines) {
        findings.push(finding);
        return;
    }
    for item in object.values().filter_map(Value::as_array).flatten().filter_map(Value::as_object) {
        findings.extend(finding(item, lines));
    }
}

fn finding(object: &Map<String, Value>, lines: usize) -> Option<Finding> {
    let message = text(object, &["message", "description", "comment", "issue"])?.trim();
    let place = ["first_line", "line", "lines", "start_line", "line_number"];
    let (first, maybe_last) = place.iter().find_map(|name| line_range(object.get(*name)?))?;
    let last =
        ["last_line", "end_line"].iter().find_map(|name| line_range(object.get(*name)?)).map(|range| range.0);
    let last = last.or(maybe_last).unwrap_or(first);
    // Lines are counted from 1 in the question. A finding about none of them is about something else.
    if message.is_empty() || first == 0 || first > lines {
        return None;
    }
    let last = last.clamp(first, lines);
    Some(Finding {
        first_line: (first - 1) as u32,
        last_line: (last - 1) as u32,
        severity: severity(text(object, &["severity", "level"]).unwrap_or_default()).to_owned(),
        kind: kind(text(object, &["kind", "category", "type"]).unwrap_or_default()),
        message: message.to_owned(),
        replacement: text(object, &["replacement", "fix", "suggestion"]).and_then(replacement),
        facts: Vec::new(),
    })
}

fn text<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| object.get(*name)?.as_str())
}

/// `7`, `7.0`, `"7"`, `"L7"`, `"lines 7-9"`, `[7, 9]`: a first line, and a last one where it is told.
fn line_range(value: &Value) -> Option<(usize, Option<usize>)> {
    let mut numbers = match value {
        Value::Number(number) => vec![number.as_u64().or_else(|| number.as_f64().map(|float| float as u64))?],
        Value::String(text) => {
            text.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect()
        }
        Value::Array(items) => items.iter().filter_map(Value::as_u64).collect(),
        _ => return None,
    }
    .into_iter()
    .map(|number| usize::try_from(number).unwrap_or(usize::MAX));
    Some((numbers.next()?, numbers.next()))
}

fn severity(word: &str) -> &'static str {
    match word.trim().to_lowercase().as_str() {
        "error" | "critical" | "high" | "blocker" | "fatal" | "severe" | "major" => "error",
        "information" | "info" | "note" | "informational" => "information",
        "hint" | "low" | "minor" | "nit" | "style" | "suggestion" | "trivial" => "hint",
        _ => "warning",
    }
}

fn kind(word: &str) -> String {
    let word = word.trim().to_lowercase();
    let usable = !word.is_empty()
        && word.len() <= 32
        && word.chars().all(|c| c.is_alphanumeric() || c == '-' || c == '_');
    if usable { word } else { "bug".to_owned() }
}

/// Source lines: without the fence around them and the numbers that were copied from the question.
fn replacement(text: &str) -> Option<String> {
    let text = text.replace("\r\n", "\n");
    let mut lines: Vec<&str> = text.trim_matches('\n').split('\n').collect();
    if lines.len() > 1 && lines[0].trim_start().starts_with("```") {
        lines.remove(0);
    }
    if lines.last().is_some_and(|line| line.trim() == "```") {
        lines.pop();
    }
    if lines.iter().all(|line| line.trim().is_empty() || line.trim() == "null") {
        return None;
    }
    if let Some(unnumbered) = lines.iter().map(|line| without_number(line)).collect::<Option<Vec<_>>>() {
        lines = unnumbered;
    }
    Some(lines.join("\n"))
}

/// `12| x` is `x`; `None` when the line carries no number.
fn without_number(line: &str) -> Option<&str> {
    let (number, code) = line.trim_start().split_once('|')?;
    let numbered = !number.is_empty() && number.trim_end().bytes().all(|byte| byte.is_ascii_digit());
    numbered.then(|| code.strip_prefix(' ').unwrap_or(code))
}
