//! `textDocument/completion`: the same suggestion, as a menu entry, for editors without ghost text.

use ropey::Rope;
use tower_lsp::gen_lsp_types::{
    CompletionItem, CompletionItemKind, CompletionItemTextEdit, CompletionList, CompletionParams,
    CompletionResponse, Documentation, InsertTextFormat, InsertTextMode, MarkupContent, MarkupKind, TextEdit,
};
use tower_lsp::jsonrpc::Result;

use super::suggest::{Shown, suggest, want};
use crate::assistant::{Suggestion, Trigger};
use crate::encoding::PositionEncoding;
use crate::server::convert::{position, range};
use crate::server::{Server, feedback};
use crate::settings::CompletionMenu;
use crate::snapshot::Snapshot;

/// Longest label, in characters.
const LABEL_CHARS: usize = 60;

/// One entry, or `null`.
pub(in crate::server) async fn completion(
    server: &Server,
    params: CompletionParams,
) -> Result<Option<CompletionResponse>> {
    if server.settings().completion.menu == CompletionMenu::Off {
        return Ok(None);
    }
    let at = params.text_document_position_params;
    let Some(wanted) = want(server, &at.text_document.uri.0, position(at.position), Shown::Menu) else {
        return Ok(None);
    };
    let caret = wanted.caret;
    // Editors say `Invoked` also when they ask because a word was begun.
    let (snapshot, found) = suggest(server, wanted, Trigger::Automatic, 1).await;
    Ok(found.into_iter().next().map(|suggestion| {
        let mut item = item(&snapshot, caret, &suggestion, server.profile().encoding);
        item.command = Some(feedback::accept_command(&snapshot, &suggestion));
        // Incomplete: the next key asks again instead of filtering this entry.
        let list = CompletionList { is_incomplete: true, items: vec![item], ..Default::default() };
        CompletionResponse::CompletionList(list)
    }))
}

fn item(
    snapshot: &Snapshot,
    caret: usize,
    suggestion: &Suggestion,
    encoding: PositionEncoding,
) -> CompletionItem {
    let text = &snapshot.text;
    // From the start of the word, as editors match what is typed of it with the filter text.
    let start = word_start(text, caret).min(suggestion.range.start);
    let typed = text.byte_slice(start..caret).to_string();
    let new_text = format!("{}{}", text.byte_slice(start..suggestion.range.start), suggestion.text);
    let first_line = new_text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let rest = new_text.strip_prefix(typed.as_str()).unwrap_or(&new_text);
    let filter_text = format!("{typed}{}", rest.lines().next().unwrap_or_default());
    CompletionItem {
        label: shortened(first_line.trim()),
        // Not a snippet: Helix would read the text as one and indent its lines again.
        kind: Some(CompletionItemKind::Text),
        detail: Some("redstart".to_owned()),
        documentation: Some(Documentation::MarkupContent(MarkupContent {
            kind: MarkupKind::Markdown,
            value: code_block(&snapshot.language_id, &new_text),
        })),
        preselect: Some(true),
        filter_text: Some(filter_text),
        insert_text_format: Some(InsertTextFormat::PlainText),
        // The text has its indentation already.
        insert_text_mode: Some(InsertTextMode::AsIs),
        text_edit: Some(CompletionItemTextEdit::TextEdit(TextEdit {
            range: range(text, start..suggestion.range.end.max(caret), encoding),
            new_text,
        })),
        ..CompletionItem::default()
    }
}

/// Byte offset of the start of the word that ends at `caret`.
fn word_start(text: &Rope, caret: usize) -> usize {
    let caret_char = text.byte_to_char(caret);
    let word = text.chars_at(caret_char).reversed().take_while(|c| c.is_alphanumeric() || *c == '_').count();
    text.char_to_byte(caret_char - word)
}

fn shortened(line: &str) -> String {
    match line.char_indices().nth(LABEL_CHARS) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

/// A Markdown code block; its fence is longer than any in the text.
fn code_block(language_id: &str, text: &str) -> String {
    let longest = text.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}{language_id}\n{text}\n{fence}")
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::assistant::SuggestionStats;

    fn item_for(text: &str, caret: usize, range: std::ops::Range<usize>, new: &str) -> CompletionItem {
        let text = Rope::from_str(text);
        let snapshot = Snapshot::new("file:///x.py", PathBuf::from("x.py"), "python", 1, text);
        let stats = SuggestionStats::default();
        let suggestion = Suggestion { id: 1, range, text: new.to_owned(), stats };
        item(&snapshot, caret, &suggestion, PositionEncoding::Utf8)
    }

    fn edit(item: &CompletionItem) -> (u32, u32, &str) {
        let Some(CompletionItemTextEdit::TextEdit(edit)) = &item.text_edit else {
            panic!("a plain text edit")
        };
        (edit.range.start.character, edit.range.end.character, &edit.new_text)
    }

    #[test]
    fn the_edit_and_the_filter_start_with_the_word_being_typed() {
        let item = item_for("    ret", 7, 7..7, "urn x\n    y");
        assert_eq!(edit(&item), (4, 7, "return x\n    y"));
        assert_eq!(item.filter_text.as_deref(), Some("return x"));
        assert_eq!(item.label, "return x");
    }

    #[test]
    fn what_is_replaced_right_of_the_caret_stays_in_the_edit() {
        let item = item_for("f(a)", 2, 2..4, "a, b)");
        assert_eq!(edit(&item), (2, 4, "a, b)"));
        assert_eq!(item.filter_text.as_deref(), Some("a, b)"));
    }

    #[test]
    fn a_suggestion_that_starts_with_a_new_line_is_labelled_by_what_comes() {
        let item = item_for("x:", 2, 2..2, "\n    pass");
        assert_eq!(item.label, "pass");
        assert_eq!(item.filter_text.as_deref(), Some(""));
    }

    #[test]
    fn long_lines_and_fences() {
        let item = item_for("", 0, 0..0, &"é".repeat(100));
        assert_eq!(item.label.chars().count(), LABEL_CHARS + 1);
        assert!(code_block("md", "```\nx\n```").starts_with("````md\n"));
    }
}
