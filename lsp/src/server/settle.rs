//! What is done for a document while nobody types: its tree is parsed, the next prompt prefilled, and the workspace
//! searched for what helps there.

use std::sync::Arc;
use std::time::Duration;

use super::Server;
use super::surroundings::Around;
use crate::document::Document;
use crate::model::SEGMENT_CACHE_BYTES;
use crate::snapshot::Snapshot;

/// After an edit the prompt is prefilled, unless a suggestion was asked for: an editor that waits before it asks
/// then finds it in the cache.
const SETTLED: Duration = Duration::from_millis(40);
/// After an edit the text is parsed: later than a typist's next key, which would wait for a processor, and before the
/// request of an editor that waits (Neovim: 200 ms). A file of ten thousand lines takes some 20 ms.
const PARSED: Duration = Duration::from_millis(100);
/// After a pause this long other text from elsewhere may stand in the prompt: there is time to compute it.
const PAUSE: Duration = Duration::from_millis(1200);
/// Bytes of a document that are tokenized when it is opened: what the cache keeps besides as much again.
const LEARNED: usize = SEGMENT_CACHE_BYTES / 2;
/// Bytes tokenized at a time, and the pause after them: both some 10 ms.
const SLICE: usize = 1 << 14;
const BETWEEN_SLICES: Duration = Duration::from_millis(10);

/// A document was opened, or other text from elsewhere is wanted in it.
pub(super) fn opened(server: &Server, document: &Document) {
    let Some((surroundings, around)) = place(server, document) else { return };
    let mut model = server.assistant.model().clone();
    server.background.spawn(async move {
        parse(&around.snapshot).await;
        // How much text from elsewhere is wanted depends on the model.
        if model.wait_for(|state| state.ready().is_ok()).await.is_err() {
            return;
        }
        let around = Arc::new(around);
        let looking = Arc::clone(&around);
        blocking(move || surroundings.look_around(&looking)).await;
        around.assistant.rehearse(&around.typing, &around.snapshot).await;
        learn(&around).await;
    });
}

/// Tokenizes a document, in slices with pauses between them, so that a prompt at a place where no caret was before takes
/// no longer than the others.
async fn learn(around: &Arc<Around>) {
    let text = &around.snapshot.text;
    let char_floor = |byte: usize| text.char_to_byte(text.byte_to_char(byte.min(text.len_bytes())));
    let most = char_floor(LEARNED);
    let mut start = 0;
    while start < most {
        let end = char_floor(start + SLICE).min(most);
        let learning = Arc::clone(around);
        blocking(move || learning.assistant.learn(&learning.snapshot.text, start..end)).await;
        tokio::time::sleep(BETWEEN_SLICES).await;
        start = end;
    }
}

/// A document was edited. Gives back what it was before, once the request that comes with the edit is on its way.
pub(super) fn edited(server: &Server, document: &Document, outdated: Vec<Snapshot>) {
    let Some((surroundings, around)) = place(server, document) else { return };
    let edits = around.typing.edits();
    let around = Arc::new(around);
    server.background.spawn(async move {
        let typing = &around.typing;
        tokio::time::sleep(SETTLED).await;
        drop(outdated);
        if typing.edits() != edits {
            return;
        }
        if !typing.is_asked() {
            around.assistant.prefill(typing, &around.snapshot, around.caret).await;
        }
        tokio::time::sleep(PARSED - SETTLED).await;
        if typing.edits() != edits {
            return;
        }
        parse(&around.snapshot).await;
        tokio::time::sleep(PAUSE).await;
        if typing.edits() != edits {
            return;
        }
        let looking = Arc::clone(&around);
        if blocking(move || surroundings.look_around(&looking)).await == Some(true) {
            around.assistant.prefill(typing, &around.snapshot, around.caret).await;
        }
    });
}

fn place(server: &Server, document: &Document) -> Option<(super::surroundings::Surroundings, Around)> {
    let (snapshot, caret) = (document.snapshot().clone(), document.edited_at());
    if document.unsuitable(caret).is_some() || !server.settings().suggests_in(&snapshot.language_id) {
        return None;
    }
    let around = Around {
        assistant: Arc::clone(&server.assistant),
        typing: Arc::clone(document.typing()),
        snapshot,
        caret,
        settings: Arc::clone(&server.settings),
    };
    Some((server.surroundings.clone(), around))
}

/// Parses a text, so that requests find its tree.
async fn parse(snapshot: &Snapshot) {
    let snapshot = snapshot.clone();
    blocking(move || snapshot.syntax_tree().is_some()).await;
}

/// Runs what may block, or computes for more than a moment, on a thread for that. `None` when it panicked.
pub(super) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => Some(result),
        Err(error) => {
            tracing::warn!(%error, "work in a pause of the typing failed");
            None
        }
    }
}
