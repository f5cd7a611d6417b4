//! `--record`: a server to the editor, an editor to the server, and in between somebody who writes down what
//! is typed.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use ropey::Rope;
use serde_json::{Map, Value};
use tokio::io::{AsyncBufRead, AsyncWrite, BufReader};

use super::buffer::Place;
use super::recording::{Edit, Event, FORMAT, Part, Recording, RecordingFile};
use super::server::Launcher;
use crate::client::{read_message, write_message};
use crate::commands::report as say;
use crate::encoding::{Position, PositionEncoding};

/// How much typing may be lost when the editor ends this process instead of taking its leave.
const SAVED_EVERY: Duration = Duration::from_secs(5);

/// Passes messages between the editor on stdin and stdout and a server of our own, and writes the recording
/// every few seconds and when the editor leaves.
pub(super) async fn run(launcher: &Launcher, without: Option<&str>, file: &Path) -> anyhow::Result<()> {
    // Now rather than when an hour of typing is to be written.
    std::fs::write(file, "").with_context(|| format!("cannot write {}", file.display()))?;
    let mut process = launcher.command(without).spawn().context("cannot start redstart lsp")?;
    let (Some(server_output), Some(mut server_input)) = (process.stdout.take(), process.stdin.take()) else {
        bail!("redstart lsp has no pipes");
    };
    let recorder = Arc::new(Mutex::new(Recorder::new()));
    let listener = Arc::clone(&recorder);
    let answers = tokio::spawn(async move {
        pass(BufReader::new(server_output), &mut tokio::io::stdout(), |message| {
            listener.lock().unwrap_or_else(PoisonError::into_inner).hear_server(message);
        })
        .await
    });
    let typed = pass(BufReader::new(tokio::io::stdin()), &mut server_input, |message| {
        let mut recorder = recorder.lock().unwrap_or_else(PoisonError::into_inner);
        recorder.hear_editor(message);
        // Neovim kills its servers shortly after this request.
        if message["method"] == "shutdown" || recorder.saved.elapsed() > SAVED_EVERY {
            recorder.saved = Instant::now();
            // What is wrong is said at the end, when it still is.
            let _ = recorder.write(file);
        }
    });
    tokio::select! {
        ended = typed => ended.context("the editor's messages cannot be passed on")?,
        status = process.wait() => { status?; }
    }
    drop(server_input);
    answers.await?.context("the server's messages cannot be passed on")?;
    say(&recorder.lock().unwrap_or_else(PoisonError::into_inner).write(file)?);
    Ok(())
}

/// Passes messages on byte for byte, after `listen` has seen them.
async fn pass(
    mut from: impl AsyncBufRead + Unpin,
    to: &mut (impl AsyncWrite + Unpin),
    listen: impl Fn(&Value),
) -> std::io::Result<()> {
    while let Some(body) = read_message(&mut from).await? {
        // What is not JSON is for the server to refuse.
        if let Ok(message) = serde_json::from_slice(&body) {
            listen(&message);
        }
        write_message(to, &body).await?;
    }
    Ok(())
}

/// Writes down what happens in the first document that is edited.
struct Recorder {
    encoding: PositionEncoding,
    initialize: Option<Value>,
    /// Commands that came with suggestions: running one says that the suggestion was accepted.
    accept_commands: Vec<String>,
    opened: HashMap<String, Opened>,
    /// The document that is recorded.
    uri: Option<String>,
    started: Instant,
    saved: Instant,
    events: Vec<Event>,
    caret: usize,
}

/// A document as it is now, and as it was when it was first edited.
struct Opened {
    language: String,
    text: Rope,
    initial: String,
}

impl Recorder {
    fn new() -> Self {
        Self {
            encoding: PositionEncoding::Utf16,
            initialize: None,
            accept_commands: Vec::new(),
            opened: HashMap::new(),
            uri: None,
            started: Instant::now(),
            saved: Instant::now(),
            events: Vec::new(),
            caret: 0,
        }
    }

    fn hear_editor(&mut self, message: &Value) {
        let parameters = &message["params"];
        let uri = parameters["textDocument"]["uri"].as_str().unwrap_or_default();
        match message["method"].as_str().unwrap_or_default() {
            "initialize" => self.initialize = message.get("id").cloned(),
            "textDocument/didOpen" => {
                let document = &parameters["textDocument"];
                let text = |key: &str| document[key].as_str().unwrap_or_default().to_owned();
                // One that is recorded and opened again would no longer be the text that we have.
                if self.uri.as_deref() != Some(uri) {
                    let opened = Opened {
                        language: text("languageId"),
                        text: Rope::from_str(&text("text")),
                        initial: String::new(),
                    };
                    self.opened.insert(uri.to_owned(), opened);
                }
            }
            "textDocument/didChange" => {
                for change in parameters["contentChanges"].as_array().into_iter().flatten() {
                    self.edited(uri, change);
                }
            }
            "textDocument/inlineCompletion" | "textDocument/completion" => {
                self.caret_at(uri, &parameters["position"]);
            }
            "workspace/executeCommand" => {
                let command = parameters["command"].as_str().unwrap_or_default();
                if self.accept_commands.iter().any(|known| known == command) {
                    self.accepted();
                }
            }
            _ => {}
        }
    }

    fn hear_server(&mut self, message: &Value) {
        let result = &message["result"];
        if self.initialize.is_some() && message.get("id") == self.initialize.as_ref() {
            self.initialize = None;
            let name = result["capabilities"]["positionEncoding"].as_str();
            self.encoding = PositionEncoding::negotiate(name.into_iter());
        }
        let items = result["items"].as_array().or_else(|| result.as_array());
        for item in items.into_iter().flatten() {
            if let (Some(command), true) =
                (item["command"]["command"].as_str(), item["insertText"].is_string())
                && !self.accept_commands.iter().any(|known| known == command)
            {
                self.accept_commands.push(command.to_owned());
            }
        }
    }

    fn edited(&mut self, uri: &str, change: &Value) {
        let Some(opened) = self.opened.get_mut(uri) else { return };
        let new = change["text"].as_str().unwrap_or_default();
        let position = |place: &Value| {
            let number = |key: &str| usize::try_from(place[key].as_u64()?).ok();
            let position = Position { line: number("line")?, character: number("character")? };
            self.encoding.byte_of(&opened.text, position).ok()
        };
        let (start, end) = match change.get("range") {
            Some(range) => match (position(&range["start"]), position(&range["end"])) {
                (Some(start), Some(end)) if start <= end => (start, end),
                // The server will refuse it, too.
                _ => return,
            },
            None => (0, opened.text.len_bytes()),
        };
        if self.uri.is_none() {
            self.uri = Some(uri.to_owned());
            opened.initial = opened.text.to_string();
            self.started = Instant::now();
            self.caret = start;
            let place = place(&opened.text, start);
            self.events.push(Event { caret: Some(place), ..Event::default() });
        }
        if self.uri.as_deref() == Some(uri) {
            let mut event = event(&opened.text, self.caret, start..end, new);
            event.at_ms = self.started.elapsed().as_millis() as u64;
            self.events.push(event);
            self.caret = start + new.len();
        }
        let chars = opened.text.byte_to_char(start)..opened.text.byte_to_char(end);
        opened.text.remove(chars.clone());
        opened.text.insert(chars.start, new);
    }

    /// A request says where the caret is.
    fn caret_at(&mut self, uri: &str, position: &Value) {
        let Some(opened) = self.opened.get(uri).filter(|_| self.uri.as_deref() == Some(uri)) else { return };
        let number = |key: &str| usize::try_from(position[key].as_u64()?).ok();
        let (Some(line), Some(character)) = (number("line"), number("character")) else { return };
        let Ok(caret) = self.encoding.byte_of(&opened.text, Position { line, character }) else { return };
        if caret != self.caret {
            self.caret = caret;
            let at_ms = self.started.elapsed().as_millis() as u64;
            let place = place(&opened.text, caret);
            self.events.push(Event { at_ms, caret: Some(place), ..Event::default() });
        }
    }

    /// The last insertion was a suggestion: in a replay it is accepted if it is offered, and typed otherwise.
    fn accepted(&mut self) {
        if let Some(event) = self.events.iter_mut().rev().find(|event| event.insert.is_some()) {
            event.accept = Some(Part::Whole);
            event.otherwise = event.insert.take();
        }
    }

    /// Writes the recording and returns a sentence for the user.
    fn write(&self, file: &Path) -> anyhow::Result<String> {
        let Some((uri, opened)) = self.uri.as_ref().and_then(|uri| Some((uri, self.opened.get(uri)?))) else {
            bail!("nothing was edited, so {} stays empty", file.display());
        };
        let name = uri.rsplit(['/', '\\']).next().unwrap_or("file");
        let recording = RecordingFile {
            format: FORMAT.to_owned(),
            language: opened.language.clone(),
            file: name.to_owned(),
            prepend: None,
            text: opened.initial.clone(),
            events: self.events.iter().map(serde_json::to_value).collect::<Result<_, _>>()?,
            final_text: opened.text.to_string(),
        };
        let json = one_event_a_line(&recording)?;
        std::fs::write(file, &json).with_context(|| format!("cannot write {}", file.display()))?;
        let recording = Recording::parse(&file.display().to_string(), &json)?;
        let seconds: f64 = recording.steps.iter().map(|step| step.wait.as_secs_f64()).sum();
        Ok(format!(
            "Wrote {} events of {name} over {seconds:.0} s to {}. Replay them with: redstart bench typing --recording {}",
            self.events.len(),
            file.display(),
            file.display()
        ))
    }
}

fn place(text: &Rope, byte: usize) -> Place {
    let Position { line, character } = PositionEncoding::Utf32.position_of(text, byte);
    Place { line, character }
}

/// What an edit was, seen from the caret. `at_ms` is left to the caller.
fn event(text: &Rope, caret: usize, bytes: std::ops::Range<usize>, new: &str) -> Event {
    let removed = text.byte_to_char(bytes.end) - text.byte_to_char(bytes.start);
    match (bytes.is_empty(), new.is_empty()) {
        (true, false) if bytes.start == caret => Event { insert: Some(new.to_owned()), ..Event::default() },
        (false, true) if bytes.end == caret => Event { delete: Some(removed), ..Event::default() },
        (false, true) if bytes.start == caret => Event { delete_forward: Some(removed), ..Event::default() },
        _ => {
            let edit =
                Edit { start: place(text, bytes.start), end: place(text, bytes.end), text: new.to_owned() };
            Event { edit: Some(edit), ..Event::default() }
        }
    }
}

/// JSON in which a person finds the events.
fn one_event_a_line(recording: &RecordingFile) -> anyhow::Result<String> {
    let Value::Object(mut fields) = serde_json::to_value(recording)? else {
        bail!("a recording is an object")
    };
    fields.remove("events");
    let head = serde_json::to_string_pretty::<Map<String, Value>>(&fields)?;
    let events: Vec<String> = recording.events.iter().map(Value::to_string).collect();
    let head = head.trim_end_matches(['}', '\n']);
    Ok(format!("{head},\n  \"events\": [\n{}\n  ]\n}}\n", events.join(",\n")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn did_change(start: [usize; 2], end: [usize; 2], text: &str) -> Value {
        let place = |at: [usize; 2]| json!({"line": at[0], "character": at[1]});
        let change = json!({"range": {"start": place(start), "end": place(end)}, "text": text});
        let parameters = json!({"textDocument": {"uri": "file:///w/a.py"}, "contentChanges": [change]});
        json!({"method": "textDocument/didChange", "params": parameters})
    }

    fn recorded(messages: &[Value]) -> (Recorder, Recording) {
        let mut recorder = Recorder::new();
        let document = json!({"uri": "file:///w/a.py", "languageId": "python", "text": "é😀 = 1\n"});
        recorder
            .hear_editor(&json!({"method": "textDocument/didOpen", "params": {"textDocument": document}}));
        messages.iter().for_each(|message| match message.get("method") {
            Some(_) => recorder.hear_editor(message),
            None => recorder.hear_server(message),
        });
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("recording.json");
        let events = std::mem::take(&mut recorder.events);
        let written = Recorder {
            events,
            opened: std::mem::take(&mut recorder.opened),
            uri: recorder.uri.clone(),
            ..Recorder::new()
        };
        written.write(&file).expect("written");
        let recording = Recording::open(&file).expect("what is written can be read");
        (recorder, recording)
    }

    #[test]
    fn edits_are_seen_from_the_caret_in_the_editors_units() {
        let at = json!({"textDocument": {"uri": "file:///w/a.py"}, "position": {"line": 1, "character": 0}});
        let (_, recording) = recorded(&[
            did_change([0, 7], [0, 7], "0"),
            did_change([0, 7], [0, 8], ""),
            did_change([0, 0], [0, 3], "x"),
            json!({"method": "textDocument/inlineCompletion", "params": at}),
            did_change([1, 0], [1, 0], "y"),
        ]);
        assert_eq!(recording.final_text, "x = 1\ny");
        let actions: Vec<String> = recording.steps.iter().map(|step| format!("{:?}", step.action)).collect();
        let begins = ["Caret", "Insert(\"0\")", "DeleteBefore(1)", "Edit", "Caret", "Insert(\"y\")"];
        assert_eq!(actions.len(), begins.len(), "{actions:?}");
        for (action, begin) in actions.iter().zip(begins) {
            assert!(action.starts_with(begin), "{action} should be {begin}");
        }
    }

    #[test]
    fn a_suggestions_command_marks_the_insertion_as_accepted() {
        let item = json!({"insertText": "2", "command": {"title": "", "command": "some.accept"}});
        let run = json!({"method": "workspace/executeCommand", "params": {"command": "some.accept"}});
        let (_, recording) = recorded(&[
            json!({"id": 7, "result": {"items": [item]}}),
            did_change([0, 7], [0, 7], " + 2"),
            run,
        ]);
        assert_eq!(recording.final_text, "é😀 = 1 + 2\n");
        let accept = &recording.steps[1].action;
        assert_eq!(format!("{accept:?}"), "Accept(Whole)");
        assert_eq!(recording.steps.len(), 2 + 4, "four keys are typed where it is not offered");
    }
}
