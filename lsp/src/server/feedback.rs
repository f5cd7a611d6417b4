//! What editors and edits say about suggestions that were shown, and what of it is recorded.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tower_lsp::gen_lsp_types::{Command, MessageType};

use super::Server;
use super::requests::execute_command::ACCEPTED;
use super::settle;
use super::sync::lock;
use crate::assistant::Suggestion;
use crate::document::Document;
use crate::record::{self, Event, Recorder, Shown, survived_share};
use crate::settings::Settings;
use crate::snapshot::Snapshot;
use crate::typing::{Reaction, Typing};

/// After this long it shows whether accepted text was wanted.
const SURVIVAL: Duration = Duration::from_secs(30);

/// What the editor is given to show a suggestion before the processors are used to work ahead.
const DISPLAY: Duration = Duration::from_millis(8);
/// Time for the last events to reach the file when a session ends.
const LAST_EVENTS: Duration = Duration::from_secs(1);

/// The record of this session, while the user wants one.
#[derive(Default)]
pub(super) struct Record {
    recorder: Option<Recorder>,
    /// Names this session's suggestions among those of others.
    session: String,
}

impl Record {
    fn name(&self, id: u64) -> String {
        format!("{}-{id}", self.session)
    }
}

/// Opens or closes the record as the settings say.
pub(super) fn configure(server: &Server, settings: &Settings) {
    let mut record = lock(&server.record);
    if !settings.completion.record {
        record.recorder = None;
    } else if record.recorder.is_none() {
        let opened = record::default_path()
            .ok_or_else(|| "the system names no folder for a user's data".to_owned())
            .and_then(|path| Recorder::open(&path).map_err(|error| format!("{}: {error}", path.display())));
        match opened {
            Ok(recorder) => *record = Record { recorder: Some(recorder), session: record::new_id() },
            Err(problem) => {
                let message = format!("Redstart keeps no record of suggestions: {problem}");
                server.outbox.show(MessageType::Warning, message);
            }
        }
    }
}

/// Waits until what was recorded is in the file, but not long: the disk may be gone.
pub(super) async fn close(record: &Mutex<Record>) {
    let Some(recorder) = lock(record).recorder.take() else { return };
    let written = tokio::task::spawn_blocking(move || drop(recorder));
    if tokio::time::timeout(LAST_EVENTS, written).await.is_err() {
        tracing::warn!("the last events of the record of suggestions could not be written in time");
    }
}

fn write(server: &Server, event: impl FnOnce(&Record) -> Event) {
    let record = lock(&server.record);
    if let Some(recorder) = &record.recorder {
        recorder.record(event(&record));
    }
}

/// A suggestion is on its way to the editor.
pub(super) fn shown(server: &Server, snapshot: &Snapshot, typing: &Arc<Typing>, suggestion: &Suggestion) {
    let is_new = typing.shown(suggestion.id);
    let (assistant, typing) = (Arc::clone(&server.assistant), Arc::clone(typing));
    let (text, next) = (snapshot.clone(), suggestion.clone());
    server.background.spawn(async move {
        tokio::time::sleep(DISPLAY).await;
        settle::blocking(move || assistant.continue_after(&typing, &text, &next)).await;
    });
    if !is_new {
        return;
    }
    write(server, |record| {
        let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let source = serde_json::to_value(suggestion.stats.source).unwrap_or_default();
        Event::Shown(Shown {
            id: record.name(suggestion.id),
            time: now.as_millis() as u64,
            language: snapshot.language_id.to_string(),
            chars: suggestion.text.chars().count(),
            lines: suggestion.text.lines().count(),
            source: source.as_str().unwrap_or_default().to_owned(),
            latency_ms: milliseconds(suggestion.stats.total),
            first_line_ms: milliseconds(suggestion.stats.first_line),
        })
    });
}

/// What editors run after inserting a suggestion, which is how we hear of it.
pub(super) fn accept_command(snapshot: &Snapshot, suggestion: &Suggestion) -> Command {
    Command {
        title: "Suggestion accepted".to_owned(),
        command: ACCEPTED.to_owned(),
        arguments: Some(vec![json!(&*snapshot.uri), json!(suggestion.id)]),
        ..Command::default()
    }
}

/// The document and the suggestion that an item's accept command names.
pub(super) fn named_in(item: &Value) -> Option<(String, u64)> {
    let arguments = item.pointer("/command/arguments")?;
    Some((arguments.get(0)?.as_str()?.to_owned(), arguments.get(1)?.as_u64()?))
}

/// A suggestion was accepted, says the editor.
pub(super) fn accepted(server: &Server, uri: &str, id: u64) {
    let typing = lock(&server.workspace).documents.get(uri).map(|document| Arc::clone(document.typing()));
    if let Some(typing) = typing
        && typing.accept(id)
    {
        was_accepted(server, uri, id);
    }
}

/// So many UTF-16 units of a suggestion were taken over, says the editor.
pub(super) fn partially_accepted(server: &Server, uri: &str, id: u64, length: usize) {
    let workspace = lock(&server.workspace);
    let text = workspace.documents.get(uri).and_then(|document| document.typing().text_of(id));
    drop(workspace);
    let Some(text) = text else { return };
    let mut units = 0;
    let taken = text.chars().take_while(|c| {
        units += c.len_utf16();
        units <= length
    });
    let chars = taken.count();
    write(server, |record| Event::PartiallyAccepted { id: record.name(id), chars });
}

/// Takes in what edits meant for what was suggested.
pub(super) fn reacted(server: &Server, document: &Document, reactions: Vec<Reaction>) {
    for reaction in reactions {
        match reaction {
            Reaction::Accepted(id) => was_accepted(server, &document.snapshot().uri, id),
            Reaction::PartiallyAccepted(id, chars) => {
                write(server, |record| Event::PartiallyAccepted { id: record.name(id), chars });
            }
            Reaction::Rejected(id) => write(server, |record| Event::Rejected { id: record.name(id) }),
        }
    }
}

fn was_accepted(server: &Server, uri: &str, id: u64) {
    write(server, |record| Event::Accepted { id: record.name(id) });
    let record = lock(&server.record);
    if record.recorder.is_none() {
        return;
    }
    let (name, uri) = (record.name(id), uri.to_owned());
    let (workspace, shared) = (Arc::clone(&server.workspace), Arc::clone(&server.record));
    server.background.spawn(async move {
        tokio::time::sleep(SURVIVAL).await;
        let share = {
            let workspace = lock(&workspace);
            workspace.documents.get(&uri).and_then(|document| {
                let (inserted, place) = document.typing().survivor(id)?;
                let now = document.snapshot().text.get_byte_slice(place)?.to_string();
                Some(survived_share(&inserted, &now))
            })
        };
        if let (Some(share), Some(recorder)) = (share, &lock(&shared).recorder) {
            recorder.record(Event::Survived { id: name, share });
        }
    });
}
