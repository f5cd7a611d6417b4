//! The session behind `redstart demo`.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::DuplexStream;

use super::show::{Keystroke, Outcome, Show};
use crate::assistant::Assistant;
use crate::client::Client;
use crate::commands::{ModelArgs, memory};
use crate::loader::Loader;
use crate::server;

/// The sample project's file.
pub(super) const SAMPLE: &str = include_str!("../../../demo/inventory.py");

/// What is typed, and after which line of the file. Where `accept` is set, the suggestion on screen
/// is accepted once that much is typed.
const TYPING: &[Typing] = &[
    Typing {
        after: "        self.items = {}",
        text: "\n\n    def add(self, name, price):\n        if name ",
        accept: false,
    },
    Typing { after: "    def total(self):", text: "\n        result = 0\n        for ", accept: true },
    Typing { after: "def load(path):", text: "\n    with open(path, ", accept: false },
];

struct Typing {
    after: &'static str,
    text: &'static str,
    accept: bool,
}

/// The sample among 10,000 lines of other code.
pub(super) fn large_file() -> String {
    let filler = |count: usize| -> String {
        (0..count / 4).map(|n| format!("def helper_{n}(value):\n    return value + {n}\n\n\n")).collect()
    };
    let rest = 10_000 - SAMPLE.lines().count();
    format!("{}{SAMPLE}\n\n{}", filler(rest / 2), filler(rest / 2))
}

/// Types the sample and reports what happened.
pub(super) async fn run(model: &ModelArgs, text: String, show: &Show) -> anyhow::Result<Outcome> {
    let project = tempfile::tempdir().context("cannot make a folder for the sample project")?;
    let path = project.path().join("inventory.py");
    std::fs::write(&path, &text)?;

    let started = Instant::now();
    let loader = Loader::new(model.options(), model.plugins());
    let assistant = Assistant::new(loader.watch());
    loader.load(model.source());
    let (client_end, server_end) = tokio::io::duplex(1 << 20);
    let (server_input, server_output) = tokio::io::split(server_end);
    let server =
        tokio::spawn(server::serve(server_input, server_output, assistant, server::ServeOptions::default()));

    let (input, output) = tokio::io::split(client_end);
    let mut editor = Editor::start(Client::new(input, output), &path, text, started).await?;
    editor.wait_for_model(started).await?;
    for typing in TYPING {
        editor.go_to_end_of(typing.after)?;
        show.heading(typing.after)?;
        let mut ghost = None;
        for character in typing.text.chars() {
            let typed = Instant::now();
            editor.type_text(&character.to_string()).await?;
            ghost = editor.suggest(show, character, typed).await?;
        }
        if let (true, Some(item)) = (typing.accept, ghost) {
            editor.accept(&item).await?;
            show.accepted(&item)?;
        }
    }
    editor.check_text().await?;
    editor.outcome.resident_mb = memory::resident_mb().map(|mb| mb as u64);
    editor.client.request("shutdown", Value::Null).await?;
    editor.client.notify("exit", Value::Null).await?;
    server.await?;
    Ok(editor.outcome)
}

/// The client side: a buffer, a caret, and a session that keeps the server's copy in step.
struct Editor {
    client: Client<tokio::io::ReadHalf<DuplexStream>, tokio::io::WriteHalf<DuplexStream>>,
    uri: String,
    text: String,
    caret: usize,
    version: i32,
    outcome: Outcome,
}

impl Editor {
    async fn start(
        mut client: Client<tokio::io::ReadHalf<DuplexStream>, tokio::io::WriteHalf<DuplexStream>>,
        path: &Path,
        text: String,
        started: Instant,
    ) -> anyhow::Result<Self> {
        let uri = format!("file://{}", path.display());
        let root = format!("file://{}", path.parent().unwrap_or(path).display());
        let capabilities = json!({
            "general": {"positionEncodings": ["utf-8"]},
            "textDocument": {"inlineCompletion": {}},
        });
        let folders = json!([{"uri": root, "name": "demo"}]);
        client
            .request(
                "initialize",
                json!({"processId": null, "capabilities": capabilities, "workspaceFolders": folders}),
            )
            .await?;
        let mut outcome = Outcome { initialize: started.elapsed(), ..Outcome::default() };
        client.notify("initialized", json!({})).await?;
        let document = json!({"uri": uri, "languageId": "python", "version": 1, "text": text});
        client.notify("textDocument/didOpen", json!({"textDocument": document})).await?;
        outcome.lines = text.lines().count();
        Ok(Self { client, uri, text, caret: 0, version: 1, outcome })
    }

    async fn wait_for_model(&mut self, started: Instant) -> anyhow::Result<()> {
        loop {
            let status = self.client.request("redstart/status", Value::Null).await?;
            match status["state"].as_str() {
                Some("ready") => break,
                Some("failed") => {
                    bail!("{}", status["message"].as_str().unwrap_or("the model failed to load"))
                }
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
        self.outcome.ready = started.elapsed();
        Ok(())
    }

    fn go_to_end_of(&mut self, line: &str) -> anyhow::Result<()> {
        let at = self
            .text
            .find(&format!("{line}\n"))
            .with_context(|| format!("the sample has no line '{line}'"))?;
        self.caret = at + line.len();
        Ok(())
    }

    /// Zero-based line and utf-8 column of a byte.
    fn position(&self, byte: usize) -> Value {
        let before = &self.text[..byte];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        json!({"line": before.matches('\n').count(), "character": byte - line_start})
    }

    async fn type_text(&mut self, typed: &str) -> anyhow::Result<()> {
        let caret = self.caret;
        self.replace(caret..caret, typed).await
    }

    async fn replace(&mut self, range: std::ops::Range<usize>, new: &str) -> anyhow::Result<()> {
        let (start, end) = (self.position(range.start), self.position(range.end));
        self.version += 1;
        let change = json!({"range": {"start": start, "end": end}, "text": new});
        let document = json!({"uri": self.uri, "version": self.version});
        self.client
            .notify("textDocument/didChange", json!({"textDocument": document, "contentChanges": [change]}))
            .await?;
        self.text.replace_range(range.clone(), new);
        self.caret = range.start + new.len();
        Ok(())
    }

    /// Asks for a completion at the caret, as an editor does after a key pressed at `pressed`, and shows it.
    async fn suggest(&mut self, show: &Show, typed: char, pressed: Instant) -> anyhow::Result<Option<Value>> {
        let params = json!({
            "textDocument": {"uri": self.uri},
            "position": self.position(self.caret),
            "context": {"triggerKind": 2},
        });
        let answer = self.client.request("textDocument/inlineCompletion", params).await?;
        let round_trip = pressed.elapsed();
        let item =
            answer.as_array().or_else(|| answer["items"].as_array()).and_then(|items| items.first()).cloned();
        let stats = match &item {
            Some(_) => self.client.request("redstart/lastSuggestion", json!({"uri": self.uri})).await?,
            None => Value::Null,
        };
        let line_start = self.text[..self.caret].rfind('\n').map_or(0, |at| at + 1);
        let keystroke = Keystroke {
            typed,
            line: self.text[line_start..self.caret].to_owned(),
            ghost: item.as_ref().and_then(|item| item["insertText"].as_str()).map(str::to_owned),
            round_trip,
            stats,
        };
        show.keystroke(&keystroke)?;
        self.outcome.keystrokes.push(keystroke);
        Ok(item)
    }

    async fn accept(&mut self, item: &Value) -> anyhow::Result<()> {
        let range = &item["range"];
        let (start, end) = (self.offset(&range["start"])?, self.offset(&range["end"])?);
        let text = item["insertText"].as_str().unwrap_or_default().to_owned();
        self.replace(start..end, &text).await?;
        self.outcome.accepted += 1;
        Ok(())
    }

    fn offset(&self, position: &Value) -> anyhow::Result<usize> {
        let (line, character) = (position["line"].as_u64(), position["character"].as_u64());
        let (Some(line), Some(character)) = (line, character) else { bail!("the item's range is malformed") };
        let start: usize = self.text.split_inclusive('\n').take(line as usize).map(str::len).sum();
        Ok(start + character as usize)
    }

    /// The server's copy of the file must be ours, character for character.
    async fn check_text(&mut self) -> anyhow::Result<()> {
        let answer = self.client.request("redstart/viewFileText", json!({"uri": self.uri})).await?;
        if answer["text"].as_str() != Some(self.text.as_str()) {
            bail!("the server's copy of the file differs from the editor's");
        }
        Ok(())
    }
}
