//! A recording's file in our own server.

use anyhow::Context;
use serde_json::{Value, json};

use super::buffer::{Buffer, Change};
use super::player::{Answered, Answering, Item, Suggester};
use super::recording::Recording;
use super::server::Server;
use super::tally::Account;
use crate::client::{Answer, RequestError};

/// Of requests that were cancelled by the editor or given up by the server: no trouble.
const CANCELLED: [i64; 3] = [-32800, -32801, -32802];

/// The server as the player sees it.
pub(super) struct Redstart<'a> {
    server: &'a Server,
    uri: String,
    version: i32,
    last_request: Option<i64>,
}

impl<'a> Redstart<'a> {
    pub(super) fn new(server: &'a Server) -> Self {
        Self { server, uri: String::new(), version: 0, last_request: None }
    }
}

impl Suggester for Redstart<'_> {
    async fn open(&mut self, recording: &Recording) -> anyhow::Result<()> {
        let text = recording.start.text().to_string();
        std::fs::write(self.server.workspace.path().join(&recording.file), &text)
            .with_context(|| format!("cannot write {} into a temporary folder", recording.file))?;
        self.uri = self.server.uri(&recording.file);
        self.version = 1;
        self.last_request = None;
        let document = json!({"uri": self.uri, "languageId": recording.language, "version": 1, "text": text});
        let opened = json!({"textDocument": document});
        Ok(self.server.connection.notify("textDocument/didOpen", opened).await?)
    }

    async fn edit(&mut self, change: Change) -> anyhow::Result<()> {
        self.version += 1;
        let document = json!({"uri": self.uri, "version": self.version});
        let changed = json!({"textDocument": document, "contentChanges": [change.event]});
        Ok(self.server.connection.notify("textDocument/didChange", changed).await?)
    }

    async fn ask(&mut self, buffer: &Buffer, cancel: bool) -> anyhow::Result<Answering> {
        let connection = std::sync::Arc::clone(&self.server.connection);
        if let (true, Some(id)) = (cancel, self.last_request) {
            connection.cancel(id).await?;
        }
        let parameters = json!({
            "textDocument": {"uri": self.uri},
            "position": buffer.caret_position(),
            "context": {"triggerKind": 2},
        });
        let asked = connection.ask("textDocument/inlineCompletion", parameters).await?;
        self.last_request = Some(asked.id);
        let (uri, version) = (self.uri.clone(), self.version);
        Ok(Box::pin(async move {
            let Answer { result, received } = asked.answer().await;
            let item = item(result);
            let mut account = None;
            if let Ok(Some(_)) = &item {
                let last = connection.request("redstart/lastSuggestion", json!({"uri": uri})).await;
                // It may by then be of a newer request.
                account = last.ok().filter(|last| last["version"] == version && last.get("reason").is_none());
            }
            let account = account.and_then(|account| serde_json::from_value::<Account>(account).ok());
            Answered { received, item, account }
        }))
    }

    async fn accepted(&mut self, command: Value) -> anyhow::Result<()> {
        let parameters = json!({"command": command["command"], "arguments": command["arguments"]});
        self.server.connection.request("workspace/executeCommand", parameters).await?;
        Ok(())
    }

    async fn close(&mut self) -> anyhow::Result<Option<String>> {
        let document = json!({"uri": self.uri});
        let answer = self.server.connection.request("redstart/viewFileText", document.clone()).await?;
        self.server.connection.notify("textDocument/didClose", json!({"textDocument": document})).await?;
        let text = answer["text"].as_str().context("the server does not know the file")?;
        Ok(Some(text.to_owned()))
    }
}

/// The first item of an answer.
fn item(answer: Result<Value, RequestError>) -> Result<Option<Item>, String> {
    let mut answer = match answer {
        Ok(answer) => answer,
        Err(RequestError::Refused { code, .. }) if CANCELLED.contains(&code) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let items = if answer.is_array() { &mut answer } else { &mut answer["items"] };
    let Some(item) = items.get_mut(0) else { return Ok(None) };
    let text = item["insertText"].as_str().ok_or("an item without a text to insert")?.to_owned();
    Ok(Some(Item { range: item["range"].take(), text, command: item["command"].take() }))
}
