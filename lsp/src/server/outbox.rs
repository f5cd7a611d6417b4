//! Messages to the client, in the order they were posted.
//!
//! Posting never waits: a handler can post while it holds a lock, and what it posts then is in the
//! order of the changes that lock guards.

use std::io;

use serde::Serialize;
use serde_json::json;
use tokio::io::AsyncWrite;
use tokio::sync::mpsc;
use tower_lsp::gen_lsp_types::{
    LogMessageNotification, LogMessageParams, MessageType, Notification, ShowMessageNotification,
    ShowMessageParams,
};

use crate::client::write_message;

/// Posts messages; cloned freely.
#[derive(Clone)]
pub(super) struct Outbox {
    messages: mpsc::UnboundedSender<Outgoing>,
}

enum Outgoing {
    Message(Vec<u8>),
    Close,
}

impl Outbox {
    /// An outbox, and the end that writes what is posted.
    pub(super) fn new() -> (Self, Writer) {
        let (sender, messages) = mpsc::unbounded_channel();
        (Self { messages: sender }, Writer { messages })
    }

    /// Posts any message.
    pub(super) fn post(&self, message: &impl Serialize) {
        match serde_json::to_vec(message) {
            // Nobody listens any more once the session has ended.
            Ok(bytes) => drop(self.messages.send(Outgoing::Message(bytes))),
            Err(error) => tracing::error!(%error, "a message could not be encoded"),
        }
    }

    /// Posts a notification.
    pub(super) fn notify<N: Notification>(&self, params: N::Params) {
        let method = N::METHOD.to_string();
        self.post(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    /// Shows a message to the user.
    pub(super) fn show(&self, kind: MessageType, message: impl Into<String>) {
        let params = ShowMessageParams { kind, message: message.into() };
        self.notify::<ShowMessageNotification>(params);
    }

    /// Writes to the editor's log of this server.
    pub(super) fn log(&self, kind: MessageType, message: impl Into<String>) {
        let message = message.into();
        tracing::debug!("{message}");
        self.notify::<LogMessageNotification>(LogMessageParams { kind, message });
    }

    /// Ends the writer once everything posted before is written.
    pub(super) fn close(&self) {
        let _ = self.messages.send(Outgoing::Close);
    }
}

/// Writes what is posted.
pub(super) struct Writer {
    messages: mpsc::UnboundedReceiver<Outgoing>,
}

impl Writer {
    /// Writes until the outbox is closed.
    ///
    /// # Errors
    /// When the client no longer reads.
    pub(super) async fn run(mut self, mut output: impl AsyncWrite + Unpin) -> io::Result<()> {
        while let Some(Outgoing::Message(body)) = self.messages.recv().await {
            write_message(&mut output, &body).await?;
        }
        Ok(())
    }
}
