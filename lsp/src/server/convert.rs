//! Between the protocol's types and ours. Positions, paths and messages change form here and nowhere
//! else.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ropey::Rope;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use tower_lsp::gen_lsp_types as lsp;

use super::client::ClientProfile;
use super::findings::Held;
use crate::assistant::Severity;
use crate::document::Change;
use crate::encoding::{Position, PositionEncoding, line_end};
use crate::snapshot::Snapshot;

/// Parameters of a notification. The framework would drop unreadable ones without a word; a lost edit
/// must not go unnoticed.
pub(super) enum Lenient<T> {
    /// As they should be.
    Read(T),
    /// As they are not.
    Unreadable {
        /// The document they name, if that much can be read.
        uri: Option<String>,
        /// What is wrong.
        problem: String,
    },
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Lenient<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let uri = value.pointer("/textDocument/uri").and_then(Value::as_str).map(str::to_owned);
        Ok(match serde_json::from_value(value) {
            Ok(params) => Self::Read(params),
            Err(error) => Self::Unreadable { uri, problem: error.to_string() },
        })
    }
}

/// `DidChangeTextDocumentParams`. The library's type takes a change whose range is malformed for one
/// that replaces the whole text.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DidChangeParams {
    pub(super) text_document: lsp::VersionedTextDocumentIdentifier,
    pub(super) content_changes: Vec<ContentChange>,
}

/// One change of [`DidChangeParams`].
#[derive(Deserialize)]
pub(super) struct ContentChange {
    #[serde(default)]
    range: Option<lsp::Range>,
    text: String,
}

impl From<ContentChange> for Change {
    fn from(change: ContentChange) -> Self {
        let range = change.range.map(|range| position(range.start)..position(range.end));
        Self { range, text: change.text }
    }
}

/// A position as it came.
pub(super) fn position(position: lsp::Position) -> Position {
    Position { line: position.line as usize, character: position.character as usize }
}

/// The protocol's form of a byte range of `text`.
pub(super) fn range(text: &Rope, bytes: Range<usize>, encoding: PositionEncoding) -> lsp::Range {
    let at = |byte| {
        let Position { line, character } = encoding.position_of(text, byte);
        lsp::Position { line: saturate(line), character: saturate(character) }
    };
    lsp::Range { start: at(bytes.start), end: at(bytes.end) }
}

fn saturate(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Bytes of the lines `first..=last` without the last line's break; clamped to the text.
fn line_bytes(text: &Rope, first: usize, last: usize) -> Range<usize> {
    let end = text.len_lines() - 1;
    text.line_to_byte(first.min(end))..line_end(text, last.min(end))
}

/// The diagnostic of a finding: from the first character of its first line that is not blank.
pub(super) fn diagnostic(held: &Held, text: &Rope, encoding: PositionEncoding) -> lsp::Diagnostic {
    let finding = &held.finding;
    let mut bytes = line_bytes(text, finding.first_line, finding.last_line);
    let blank = text.byte_slice(bytes.clone()).chars().take_while(|c| matches!(c, ' ' | '\t')).count();
    if blank < bytes.len() {
        bytes.start += blank;
    }
    lsp::Diagnostic {
        range: range(text, bytes, encoding),
        severity: Some(match finding.severity {
            Severity::Error => lsp::DiagnosticSeverity::Error,
            Severity::Warning => lsp::DiagnosticSeverity::Warning,
            Severity::Information => lsp::DiagnosticSeverity::Information,
            Severity::Hint => lsp::DiagnosticSeverity::Hint,
        }),
        code: Some(lsp::Code::String(finding.kind.clone())),
        code_description: None,
        source: Some("redstart".to_owned()),
        message: lsp::Message::String(finding.message.clone()),
        tags: None,
        related_information: None,
        data: Some(Value::from(held.id)),
    }
}

/// The edit that applies a finding's replacement, if it has one.
pub(super) fn fix(held: &Held, snapshot: &Snapshot, client: &ClientProfile) -> Option<lsp::WorkspaceEdit> {
    let finding = &held.finding;
    let text = &snapshot.text;
    let replacement = finding.replacement.as_ref()?;
    let bytes = line_bytes(text, finding.first_line, finding.last_line);
    let line_break = text.line(finding.first_line.min(text.len_lines() - 1)).to_string();
    let replacement = if line_break.ends_with("\r\n") {
        replacement.replace("\r\n", "\n").replace('\n', "\r\n")
    } else {
        replacement.clone()
    };
    let edit = lsp::TextEdit { range: range(text, bytes, client.encoding), new_text: replacement };
    let uri = lsp::Uri(snapshot.uri.to_string());
    let mut change = lsp::WorkspaceEdit::default();
    if client.versioned_edits {
        let text_document = lsp::OptionalVersionedTextDocumentIdentifier {
            version: Some(snapshot.version),
            text_document_identifier: lsp::TextDocumentIdentifier { uri },
        };
        let edits = vec![lsp::Edit::TextEdit(edit)];
        let document = lsp::TextDocumentEdit { text_document, edits };
        change.document_changes = Some(vec![lsp::DocumentChange::TextDocumentEdit(document)]);
    } else {
        change.changes = Some(HashMap::from([(uri, vec![edit])]));
    }
    Some(change)
}

/// The path of a `file:` URI; of any other, what comes after its scheme.
pub(super) fn path_of(uri: &str) -> PathBuf {
    let Some(rest) = uri.strip_prefix("file://") else {
        let name = uri.split_once(':').map_or(uri, |(_, name)| name);
        return PathBuf::from(percent_decoded(name));
    };
    // What precedes the path is a host, usually none.
    let path = percent_decoded(rest.find('/').map_or("", |at| &rest[at..]));
    if cfg!(windows) { PathBuf::from(path.trim_start_matches('/')) } else { PathBuf::from(path) }
}

/// `path` as seen from the workspace folder that holds it; unchanged outside of them.
pub(super) fn relative(path: PathBuf, folders: &[PathBuf]) -> PathBuf {
    let inside = folders.iter().filter_map(|folder| path.strip_prefix(folder).ok());
    let shortest = inside.min_by_key(|path| path.components().count()).map(Path::to_path_buf);
    shortest.unwrap_or(path)
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = (*first == b'%').then(|| tail.get(..2)).flatten();
        let decoded = hex.and_then(|hex| u8::from_str_radix(str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(decoded.unwrap_or(*first));
        rest = if decoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn uris_become_paths() {
        assert_eq!(path_of("file:///a/b%20c/%C3%A9.py"), Path::new("/a/b c/é.py"));
        assert_eq!(path_of("file://localhost/a"), Path::new("/a"));
        assert_eq!(path_of("untitled:Untitled-1"), Path::new("Untitled-1"));
        assert_eq!(path_of("file:///100%"), Path::new("/100%"));
    }

    #[test]
    #[cfg(unix)]
    fn paths_are_relative_to_the_innermost_folder() {
        let folders = [PathBuf::from("/w"), PathBuf::from("/w/sub")];
        assert_eq!(relative(PathBuf::from("/w/sub/x.py"), &folders), Path::new("x.py"));
        assert_eq!(relative(PathBuf::from("/w/y.py"), &folders), Path::new("y.py"));
        assert_eq!(relative(PathBuf::from("/z.py"), &folders), Path::new("/z.py"));
    }

    #[test]
    fn a_malformed_range_does_not_become_a_whole_text() {
        let params = serde_json::json!({
            "textDocument": { "uri": "file:///x", "version": 2 },
            "contentChanges": [{ "range": { "start": { "line": -1, "character": 0 },
                "end": { "line": 0, "character": 0 } }, "text": "gone" }],
        });
        let read: Lenient<DidChangeParams> = serde_json::from_value(params).expect("never fails");
        assert!(matches!(read, Lenient::Unreadable { uri: Some(uri), .. } if uri == "file:///x"));
    }
}
