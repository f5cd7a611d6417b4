//! A small editor: one session with a server in this process.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redstart::assistant::Assistant;
use redstart::model::{LoadedModel, ModelState, PromptHints, PromptTokenizer, SEGMENT_CACHE_BYTES};
use redstart::plugins::{PluginFiles, Plugins};
use redstart::server::{Ended, ServeOptions, serve};
use redstart_engine::generator::Generator;
use redstart_plugins::Assembler;
use redstart_plugins::prompt::{ChatFrame, Piece};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, DuplexStream};
use tokio::io::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use crate::scripted::ScriptedGenerator;

/// Beyond this a test hangs; nothing is measured by it.
const HANGS: Duration = Duration::from_secs(120);

pub(crate) const URI: &str = "file:///w/x.py";

/// What the editor is like.
pub(crate) struct Editor {
    pub(crate) capabilities: Value,
    pub(crate) initialization_options: Value,
    pub(crate) configuration: Value,
    pub(crate) process_id: Value,
    pub(crate) folder: String,
    pub(crate) state: ModelState,
    pub(crate) generator: Arc<ScriptedGenerator>,
    pub(crate) options: ServeOptions,
}

impl Editor {
    /// An editor with these capabilities and a model that can review.
    pub(crate) fn new(capabilities: Value) -> Self {
        let generator = ScriptedGenerator::new();
        Self {
            capabilities,
            initialization_options: Value::Null,
            configuration: Value::Null,
            process_id: Value::Null,
            folder: "file:///w".to_owned(),
            state: ModelState::Ready(Arc::new(model(&generator, true))),
            generator,
            options: ServeOptions::default(),
        }
    }

    /// Makes the model one that is shown unasked only when it is this sure.
    pub(crate) fn with_min_confidence(mut self, min_confidence: f32) -> Self {
        let mut model = model(&self.generator, true);
        model.hints.min_confidence = min_confidence;
        self.state = ModelState::Ready(Arc::new(model));
        self
    }

    /// Makes the model one without a chat template.
    pub(crate) fn with_base_model(mut self) -> Self {
        self.state = ModelState::Ready(Arc::new(model(&self.generator, false)));
        self
    }

    /// Starts a session and goes through its opening.
    pub(crate) async fn start(self) -> Session {
        let generator = Arc::clone(&self.generator);
        let (state, watch) = watch::channel(self.state);
        let (client_end, server_end) = tokio::io::duplex(1 << 16);
        let (input, output) = tokio::io::split(server_end);
        let server = tokio::spawn(serve(input, output, Assistant::new(watch), self.options));
        let (input, output) = tokio::io::split(client_end);
        let output = Arc::new(tokio::sync::Mutex::new(Some(output)));
        let inbox = Arc::new(Inbox::default());
        let reading = tokio::spawn(read(input, Arc::clone(&output), Arc::clone(&inbox), self.configuration));
        let mut session = Session {
            output,
            inbox,
            server: Some(server),
            reading,
            next_id: 0,
            generator,
            state,
            initialized: Value::Null,
            version: 1,
        };
        let params = json!({
            "processId": self.process_id,
            "rootUri": null,
            "capabilities": self.capabilities,
            "initializationOptions": self.initialization_options,
            "workspaceFolders": [{ "uri": self.folder, "name": "w" }],
        });
        session.initialized = session.request("initialize", params).await;
        session.notify("initialized", json!({})).await;
        session
    }
}

fn model(generator: &Arc<ScriptedGenerator>, chat: bool) -> LoadedModel {
    let tokenizer = generator.model().tokenizer.clone().expect("it has one");
    let part = |name: &str| vec![Piece::Text(format!("\n{name}:\n"))];
    let (plugins, warnings) = Plugins::load(&PluginFiles::default());
    LoadedModel {
        generator: Arc::clone(generator) as Arc<dyn Generator>,
        chat: chat
            .then(|| ChatFrame { system: part("system"), user: part("user"), reply: part("reply") })
            .ok_or_else(|| "it has no chat template".to_owned()),
        hints: PromptHints::default(),
        plugins,
        assembler: Assembler::new(Arc::new(PromptTokenizer(tokenizer)), SEGMENT_CACHE_BYTES),
        warnings,
        load_time: Duration::ZERO,
    }
}

#[derive(Default)]
struct Inbox {
    received: Mutex<Received>,
    changed: Notify,
}

#[derive(Default)]
struct Received {
    responses: BTreeMap<String, Value>,
    answered: BTreeSet<String>,
    twice: Vec<String>,
    /// Requests and notifications of the server, in order.
    events: Vec<Value>,
    ended: bool,
}

type Output = Arc<tokio::sync::Mutex<Option<WriteHalf<DuplexStream>>>>;

/// An open session. Must be ended by [`finish`](Self::finish) or [`end`](Self::end).
pub(crate) struct Session {
    output: Output,
    inbox: Arc<Inbox>,
    server: Option<JoinHandle<Ended>>,
    reading: JoinHandle<()>,
    next_id: i64,
    pub(crate) generator: Arc<ScriptedGenerator>,
    pub(crate) state: watch::Sender<ModelState>,
    /// The answer to `initialize`.
    pub(crate) initialized: Value,
    version: i32,
}

impl Session {
    pub(crate) async fn send_raw(&self, bytes: &[u8]) {
        let mut output = self.output.lock().await;
        let output = output.as_mut().expect("the session is open");
        output.write_all(bytes).await.expect("the server reads");
    }

    async fn send(&self, message: &Value) {
        self.send_raw(&framed(message)).await;
    }

    pub(crate) async fn notify(&self, method: &str, params: Value) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params })).await;
    }

    /// Sends a request; [`response`](Self::response) has the answer.
    pub(crate) async fn ask(&mut self, method: &str, params: Value) -> i64 {
        self.next_id += 1;
        let id = self.next_id;
        let mut message = json!({ "jsonrpc": "2.0", "id": id, "method": method });
        if !params.is_null() {
            message["params"] = params;
        }
        self.send(&message).await;
        id
    }

    /// The whole response to a request.
    pub(crate) async fn response(&self, id: impl ToString) -> Value {
        let id = id.to_string();
        self.wait(&format!("a response to {id}"), |received| received.responses.remove(&id)).await
    }

    /// A request that succeeds: its result.
    pub(crate) async fn request(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        let mut response = self.response(id).await;
        assert!(response.get("error").is_none(), "{method} failed: {response}");
        response["result"].take()
    }

    /// A request that fails: its error.
    pub(crate) async fn failing(&mut self, method: &str, params: Value) -> Value {
        let id = self.ask(method, params).await;
        let mut response = self.response(id).await;
        assert!(response.get("result").is_none(), "{method} succeeded: {response}");
        response["error"].take()
    }

    /// Waits for a request or notification of the server; its parameters.
    pub(crate) async fn event(&self, method: &str, fits: impl Fn(&Value) -> bool) -> Value {
        self.wait(method, |received| {
            let fits = |event: &Value| event["method"] == method && fits(&event["params"]);
            let index = received.events.iter().position(fits)?;
            Some(received.events.remove(index)["params"].take())
        })
        .await
    }

    /// Events of this method that have come so far, after everything sent so far was dealt with.
    pub(crate) async fn events(&mut self, method: &str) -> Vec<Value> {
        self.request("redstart/status", Value::Null).await;
        let received = self.inbox.received.lock().expect("no panic");
        let of_method = received.events.iter().filter(|event| event["method"] == method);
        of_method.map(|event| event["params"].clone()).collect()
    }

    async fn wait<T>(&self, what: &str, mut found: impl FnMut(&mut Received) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let changed = self.inbox.changed.notified();
                {
                    let mut received = self.inbox.received.lock().expect("no panic");
                    if let Some(value) = found(&mut received) {
                        return value;
                    }
                    assert!(!received.ended, "the server ended without {what}");
                }
                changed.await;
            }
        };
        match tokio::time::timeout(HANGS, waiting).await {
            Ok(value) => value,
            Err(_) => {
                let received = self.inbox.received.lock().expect("no panic");
                panic!("no {what}; there were {:#?}", received.events)
            }
        }
    }

    pub(crate) async fn open(&mut self, text: &str) {
        self.open_as(URI, "python", text).await;
    }

    pub(crate) async fn open_as(&mut self, uri: &str, language: &str, text: &str) {
        self.version = 1;
        let document = json!({ "uri": uri, "languageId": language, "version": 1, "text": text });
        self.notify("textDocument/didOpen", json!({ "textDocument": document })).await;
    }

    /// Replaces a range, `[start line, start character, end line, end character]`.
    pub(crate) async fn change(&mut self, range: [u32; 4], text: &str) {
        self.change_all(json!([{ "range": range_of(range), "text": text }])).await;
    }

    pub(crate) async fn change_all(&mut self, changes: Value) {
        self.version += 1;
        let document = json!({ "uri": URI, "version": self.version });
        let params = json!({ "textDocument": document, "contentChanges": changes });
        self.notify("textDocument/didChange", params).await;
    }

    /// The server's text and version.
    pub(crate) async fn text(&mut self) -> (String, i64) {
        let view = self.request("redstart/viewFileText", json!({ "uri": URI })).await;
        let text = view["text"].as_str().expect("open").to_owned();
        (text, view["version"].as_i64().expect("a number"))
    }

    pub(crate) async fn inline(&mut self, line: u32, character: u32) -> Value {
        self.request("textDocument/inlineCompletion", inline_params(line, character)).await
    }

    /// Types `text` at a place of line `line` and asks, as an editor does after a key.
    pub(crate) async fn type_and_ask(&mut self, line: u32, character: u32, text: &str) -> Value {
        self.change([line, character, line, character], text).await;
        let end = character + text.encode_utf16().count() as u32;
        self.request("textDocument/inlineCompletion", typing_params(line, end)).await
    }

    /// The suggestion that there must be.
    pub(crate) async fn suggestion(&mut self, line: u32, character: u32) -> Value {
        let mut result = self.inline(line, character).await;
        let last = self.request("redstart/lastSuggestion", json!({ "uri": URI })).await;
        assert!(result["items"].is_array(), "no suggestion: {last}");
        result["items"][0].take()
    }

    /// Ends as an editor should, and checks the server's manners.
    pub(crate) async fn finish(mut self) {
        self.request("shutdown", Value::Null).await;
        self.notify("exit", Value::Null).await;
        let ended = self.end().await;
        assert_eq!(ended.exit_code(), 0, "{ended:?}");
    }

    /// Closes the connection and waits for the server.
    pub(crate) async fn end(mut self) -> Ended {
        if let Some(mut output) = self.output.lock().await.take() {
            // The server may be gone already.
            let _ = output.shutdown().await;
        }
        let server = self.server.take().expect("ended once");
        let ended = tokio::time::timeout(HANGS, server).await.expect("the server ends");
        self.reading.abort();
        let received = self.inbox.received.lock().expect("no panic");
        assert_eq!(received.twice, Vec::<String>::new(), "answered twice");
        ended.expect("the server does not panic")
    }

    /// Waits for the server to end by itself.
    pub(crate) async fn ends_by_itself(mut self) -> Ended {
        let server = self.server.take().expect("ended once");
        tokio::time::timeout(HANGS, server).await.expect("the server ends").expect("no panic")
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert!(self.server.is_none(), "a session must be finished");
        }
    }
}

pub(crate) fn framed(message: &Value) -> Vec<u8> {
    let body = message.to_string();
    format!("Content-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

pub(crate) fn range_of([line, character, end_line, end_character]: [u32; 4]) -> Value {
    json!({
        "start": { "line": line, "character": character },
        "end": { "line": end_line, "character": end_character },
    })
}

/// What an editor sends by itself after a key.
pub(crate) fn typing_params(line: u32, character: u32) -> Value {
    let mut params = inline_params(line, character);
    params["context"]["triggerKind"] = json!(2);
    params
}

pub(crate) fn inline_params(line: u32, character: u32) -> Value {
    json!({
        "textDocument": { "uri": URI },
        "position": { "line": line, "character": character },
        "context": { "triggerKind": 1 },
    })
}

async fn read(input: ReadHalf<DuplexStream>, output: Output, inbox: Arc<Inbox>, configuration: Value) {
    let mut input = BufReader::new(input);
    while let Some(message) = read_message(&mut input).await {
        let id = message.get("id").map(ToString::to_string);
        let mut reply = None;
        {
            let mut received = inbox.received.lock().expect("no panic");
            match (message.get("method").and_then(Value::as_str), id) {
                (Some(method), id) => {
                    reply = id.map(|_| match method {
                        "workspace/configuration" => json!([configuration]),
                        _ => Value::Null,
                    });
                    reply = reply
                        .map(|result| json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }));
                    received.events.push(message);
                }
                (None, id) => {
                    let id = id.unwrap_or_default();
                    if id != "null" && !received.answered.insert(id.clone()) {
                        received.twice.push(id.clone());
                    }
                    received.responses.insert(id, message);
                }
            }
        }
        inbox.changed.notify_waiters();
        if let (Some(reply), Some(output)) = (reply, output.lock().await.as_mut()) {
            // The server may have ended meanwhile.
            let _ = output.write_all(&framed(&reply)).await;
        }
    }
    inbox.received.lock().expect("no panic").ended = true;
    inbox.changed.notify_waiters();
}

async fn read_message(input: &mut BufReader<ReadHalf<DuplexStream>>) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        input.read_line(&mut line).await.ok().filter(|&count| count > 0)?;
        match line.strip_prefix("Content-Length: ") {
            Some(value) => length = value.trim().parse().expect("a length"),
            None => break,
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).await.ok()?;
    Some(serde_json::from_slice(&body).expect("the server writes JSON"))
}
