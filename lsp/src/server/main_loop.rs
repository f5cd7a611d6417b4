//! The loop between client and handlers.
//!
//! Order: each message's handler is polled once, here, before the next message is looked at. What a
//! handler does before its first `await` (apply an edit, take a snapshot) therefore happens in the
//! order of the messages; what it does after runs on a task of its own, beside everything else. The
//! framework's own transport runs handlers in one `buffer_unordered` and ends the session at the
//! first malformed message, so it is not used; its service (routing, life cycle, cancellation) is.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::{FutureExt, SinkExt, StreamExt};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;
use tower_lsp::gen_lsp_types::MessageType;
use tower_lsp::jsonrpc::{Error, ErrorCode, Id, Request, Response};
use tower_lsp::{ClientSocket, ExitedError, Loopback, LspService};
use tower_service::Service;

use super::frames::{BadFrame, FrameReader};
use super::outbox::{Outbox, Writer};
use super::sync::lock;
use super::{Reason, Server};

/// Requests under way beyond which new ones are refused.
const MAX_CONCURRENT_REQUESTS: usize = 256;
/// Messages read ahead.
const READ_AHEAD: usize = 64;
/// Time for the last messages to reach a client that may not be reading.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// LSP's `ServerCancelled`: the client may ask again; editors show nothing.
const SERVER_CANCELLED: i64 = -32802;

/// When the message arrived that the loop has taken last: for what handlers do before their first `await`.
#[derive(Clone, Default)]
pub(super) struct Arrival(Arc<Mutex<Option<Instant>>>);

impl Arrival {
    pub(super) fn get(&self) -> Instant {
        lock(&self.0).unwrap_or_else(Instant::now)
    }
}

type Outcome = Result<Result<Option<Response>, ExitedError>, Box<dyn Any + Send>>;

/// Runs a session until it ends. `stop` ends it from within.
pub(super) async fn run(
    service: LspService<Server>,
    socket: ClientSocket,
    input: impl AsyncRead + Unpin + Send + 'static,
    output: impl AsyncWrite + Unpin + Send + 'static,
    (outbox, writer): (Outbox, Writer),
    arrival: &Arrival,
    stop: &Notify,
) -> Reason {
    let (mut requests, replies) = socket.split();
    let mut main_loop = MainLoop {
        service,
        replies,
        outbox: outbox.clone(),
        running: JoinSet::new(),
        panic_shown: Arc::default(),
    };
    let mut helpers = JoinSet::new();
    let forward = outbox.clone();
    helpers.spawn(async move {
        while let Some(request) = requests.next().await {
            forward.post(&request);
        }
    });
    let (frames_in, mut frames) = mpsc::channel(READ_AHEAD);
    helpers.spawn(read(input, frames_in));
    let mut writing = tokio::spawn(writer.run(output));

    let reason = loop {
        tokio::select! {
            frame = frames.recv() => match frame {
                None => break Reason::EndOfInput,
                Some((Err(bad), _)) => main_loop.refuse(&bad),
                Some((Ok(message), arrived)) => {
                    *lock(&arrival.0) = Some(arrived);
                    if main_loop.take(message) == Taken::Exit {
                        break Reason::Exit;
                    }
                }
            },
            Some(_) = main_loop.running.join_next() => {}
            () = stop.notified() => break Reason::ParentEnded,
            result = &mut writing => {
                if let Ok(Err(error)) = result {
                    tracing::warn!(%error, "the client no longer reads");
                }
                break Reason::EndOfOutput;
            }
        }
    };
    main_loop.running.shutdown().await;
    outbox.close();
    if !writing.is_finished() && tokio::time::timeout(LAST_WORDS, &mut writing).await.is_err() {
        writing.abort();
    }
    reason
}

/// Reads messages ahead, so that reading never waits for handlers nor is cut short by them.
async fn read(input: impl AsyncRead + Unpin, frames: mpsc::Sender<(Result<Value, BadFrame>, Instant)>) {
    let mut reader = FrameReader::new(input);
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if frames.send((frame, reader.arrived())).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "the client's messages can no longer be read");
                return;
            }
        }
    }
}

#[derive(PartialEq)]
enum Taken {
    Handled,
    Exit,
}

struct MainLoop {
    service: LspService<Server>,
    replies: <ClientSocket as Loopback>::ResponseSink,
    outbox: Outbox,
    running: JoinSet<()>,
    panic_shown: Arc<AtomicBool>,
}

impl MainLoop {
    /// Answers a message that could not be read.
    fn refuse(&self, bad: &BadFrame) {
        let code = match bad {
            BadFrame::Header(_) => ErrorCode::InvalidRequest,
            BadFrame::Json(_) => ErrorCode::ParseError,
        };
        self.respond_error(Id::Null, code, bad.to_string());
    }

    fn respond_error(&self, id: Id, code: ErrorCode, message: String) {
        tracing::warn!("answering with an error: {message}");
        let error = Error { code, message: message.into(), data: None };
        self.outbox.post(&Response::from_error(id, error));
    }

    /// Starts on a message.
    fn take(&mut self, message: Value) -> Taken {
        let id = message.get("id").and_then(|id| serde_json::from_value::<Id>(id.clone()).ok());
        if message.get("method").is_none_or(|method| !method.is_string()) {
            match serde_json::from_value::<Response>(message) {
                Ok(reply) => drop(self.replies.send(reply).now_or_never()),
                Err(_) => self.respond_error(
                    id.unwrap_or_default(),
                    ErrorCode::InvalidRequest,
                    "the message is neither a request, a notification nor a response".to_owned(),
                ),
            }
            return Taken::Handled;
        }
        match serde_json::from_value::<Request>(message) {
            Ok(request) => self.start(request),
            Err(error) => {
                let problem = format!("the request is malformed: {error}");
                self.respond_error(id.unwrap_or_default(), ErrorCode::InvalidRequest, problem);
                Taken::Handled
            }
        }
    }

    fn start(&mut self, request: Request) -> Taken {
        let id = request.id().cloned();
        let exits = request.method() == "exit";
        if let Some(id) = &id
            && self.running.len() >= MAX_CONCURRENT_REQUESTS
        {
            let message = format!("{MAX_CONCURRENT_REQUESTS} requests are already under way");
            self.respond_error(id.clone(), ErrorCode::ServerError(SERVER_CANCELLED), message);
            return Taken::Handled;
        }
        let asked = Asked { id, method: request.method().to_owned() };
        let call = AssertUnwindSafe(self.service.call(request)).catch_unwind();
        let mut call = Box::pin(call);
        match call.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => asked.answer(outcome, &self.outbox, &self.panic_shown),
            Poll::Pending => {
                let outbox = self.outbox.clone();
                let panic_shown = Arc::clone(&self.panic_shown);
                // The task polls again at once, so no wake-up is lost to the waker above.
                self.running.spawn(async move {
                    asked.answer(call.await, &outbox, &panic_shown);
                });
            }
        }
        if exits { Taken::Exit } else { Taken::Handled }
    }
}

/// A message whose handler runs.
struct Asked {
    id: Option<Id>,
    method: String,
}

impl Asked {
    /// Answers, if an answer is due. The first panic of a session is shown to the user, all are logged.
    fn answer(self, outcome: Outcome, outbox: &Outbox, panic_shown: &AtomicBool) {
        let panic = match outcome {
            Ok(Ok(Some(response))) => {
                outbox.post(&response);
                return;
            }
            Ok(Ok(None) | Err(_)) => return,
            Err(panic) => panic,
        };
        let text = panic_text(panic.as_ref());
        let message = format!("internal error in {}: {text}", self.method);
        outbox.log(MessageType::Error, &message);
        if !panic_shown.swap(true, Ordering::Relaxed) {
            outbox.show(
                MessageType::Error,
                format!("Redstart: {message}. The session goes on; please report this."),
            );
        }
        if let Some(id) = self.id {
            // While typing an error would pop up at every key.
            let typing = ["textDocument/inlineCompletion", "textDocument/completion"];
            outbox.post(&if typing.contains(&self.method.as_str()) {
                Response::from_ok(id, Value::Null)
            } else {
                let code = ErrorCode::InternalError;
                Response::from_error(id, Error { code, message: message.into(), data: None })
            });
        }
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("a panic without a message")
}
