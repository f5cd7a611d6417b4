//! Small LSP clients over any pair of byte streams.
//!
//! [`Client`] asks one thing after another: what the demo and the tests type with. [`Connection`] has any
//! number of requests under way, as an editor does: what `redstart bench typing` replays with.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader,
};
use tokio::sync::{Mutex as AsyncMutex, oneshot};

/// Reads the body of one message; `None` when the stream ends between messages.
///
/// # Errors
/// When the stream fails, ends within a message or has one without a length.
pub async fn read_message(input: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let mut length = None;
    let mut first = true;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).await? == 0 {
            return if first { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
        }
        first = false;
        if line == "\r\n" {
            break;
        }
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("content-length")
        {
            length = value.trim().parse::<usize>().ok();
        }
    }
    let length = length.ok_or_else(|| io::Error::other("a message without Content-Length"))?;
    let mut body = vec![0; length];
    input.read_exact(&mut body).await?;
    Ok(Some(body))
}

/// Writes one message with its header, in one write: it wakes the reader once.
///
/// # Errors
/// When the stream is closed.
pub async fn write_message(output: &mut (impl AsyncWrite + Unpin), body: &[u8]) -> io::Result<()> {
    let mut framed = format!("Content-Length: {}\r\n\r\n", body.len()).into_bytes();
    framed.extend_from_slice(body);
    output.write_all(&framed).await?;
    output.flush().await
}

fn closed() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")
}

fn request_body(id: i64, method: &str, params: &Value) -> Vec<u8> {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string().into_bytes()
}

fn notification_body(method: &str, params: &Value) -> Vec<u8> {
    json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string().into_bytes()
}

/// What answers anything the server asks of the client.
fn null_answer(id: &Value) -> Vec<u8> {
    json!({"jsonrpc": "2.0", "id": id, "result": null}).to_string().into_bytes()
}

/// One session with a server. Requests are answered one after another; what the server asks of the
/// client meanwhile is answered with `null`, and its notifications are kept.
pub struct Client<Input, Output> {
    input: BufReader<Input>,
    output: Output,
    next_id: i64,
    notifications: Vec<Value>,
}

impl<Input: AsyncRead + Unpin, Output: AsyncWrite + Unpin> Client<Input, Output> {
    /// A client that reads the server's messages from `input` and writes its own to `output`.
    pub fn new(input: Input, output: Output) -> Self {
        Self { input: BufReader::new(input), output, next_id: 0, notifications: Vec::new() }
    }

    /// Sends a request and waits for its result.
    ///
    /// # Errors
    /// When the stream ends or the server answers with an error.
    pub async fn request(&mut self, method: &str, params: Value) -> io::Result<Value> {
        self.next_id += 1;
        let id = self.next_id;
        write_message(&mut self.output, &request_body(id, method, &params)).await?;
        loop {
            let body = read_message(&mut self.input).await?.ok_or_else(closed)?;
            let mut message: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
            if message.get("method").is_some() {
                self.take_from_server(message).await?;
            } else if message["id"] == id {
                return match message.get("error") {
                    Some(error) => Err(io::Error::other(format!("{method}: {}", error["message"]))),
                    None => Ok(message["result"].take()),
                };
            }
        }
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn notify(&mut self, method: &str, params: Value) -> io::Result<()> {
        write_message(&mut self.output, &notification_body(method, &params)).await
    }

    /// Notifications received so far.
    pub fn take_notifications(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.notifications)
    }

    async fn take_from_server(&mut self, message: Value) -> io::Result<()> {
        match message.get("id") {
            Some(id) => write_message(&mut self.output, &null_answer(id)).await,
            None => {
                self.notifications.push(message);
                Ok(())
            }
        }
    }
}

/// Why a request has no result.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The server has gone.
    #[error("the server closed the connection")]
    Closed,
    /// The server answered with an error.
    #[error("the server answered with error {code}: {message}")]
    Refused {
        /// JSON-RPC's.
        code: i64,
        /// The server's words.
        message: String,
    },
}

/// An answer and when it was there.
pub struct Answer {
    /// The result, or why there is none.
    pub result: Result<Value, RequestError>,
    /// When the last byte of it was read.
    pub received: Instant,
}

/// A request under way.
pub struct Asked {
    /// Its number, by which it can be cancelled.
    pub id: i64,
    answer: oneshot::Receiver<Answer>,
}

impl Asked {
    /// Waits for the answer.
    pub async fn answer(self) -> Answer {
        let gone = || Answer { result: Err(RequestError::Closed), received: Instant::now() };
        self.answer.await.unwrap_or_else(|_| gone())
    }
}

/// `None` once the server has gone.
type Waiting = Mutex<Option<HashMap<i64, oneshot::Sender<Answer>>>>;

/// One session in which requests run side by side. What the server asks of the client is answered with
/// `null`; its notifications are dropped.
pub struct Connection<Output> {
    output: Arc<AsyncMutex<Output>>,
    waiting: Arc<Waiting>,
    next_id: AtomicI64,
}

impl<Output: AsyncWrite + Unpin + Send + 'static> Connection<Output> {
    /// Starts reading from `input` on a task, so that the time of an answer is the time it came.
    pub fn start(input: impl AsyncRead + Unpin + Send + 'static, output: Output) -> Self {
        let output = Arc::new(AsyncMutex::new(output));
        let waiting = Arc::new(Waiting::new(Some(HashMap::new())));
        let (replies, answered) = (Arc::clone(&output), Arc::clone(&waiting));
        tokio::spawn(async move {
            // Whatever ends the reading ends the session.
            let _ = read_answers(BufReader::new(input), &replies, &answered).await;
            answered.lock().unwrap_or_else(PoisonError::into_inner).take();
        });
        Self { output, waiting, next_id: AtomicI64::new(1) }
    }

    /// Sends a notification.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn notify(&self, method: &str, params: Value) -> io::Result<()> {
        write_message(&mut *self.output.lock().await, &notification_body(method, &params)).await
    }

    /// Sends a request; the answer is waited for apart.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn ask(&self, method: &str, params: Value) -> io::Result<Asked> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        match self.waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            Some(waiting) => waiting.insert(id, sender),
            None => return Err(closed()),
        };
        write_message(&mut *self.output.lock().await, &request_body(id, method, &params)).await?;
        Ok(Asked { id, answer })
    }

    /// Sends a request and waits for its result.
    ///
    /// # Errors
    /// When the stream is closed or the server answers with an error.
    pub async fn request(&self, method: &str, params: Value) -> Result<Value, RequestError> {
        let asked = self.ask(method, params).await.map_err(|_| RequestError::Closed)?;
        asked.answer().await.result
    }

    /// Tells the server that the answer to a request is no longer wanted. It still answers, with an error.
    ///
    /// # Errors
    /// When the stream is closed.
    pub async fn cancel(&self, id: i64) -> io::Result<()> {
        self.notify("$/cancelRequest", json!({"id": id})).await
    }
}

async fn read_answers<Output: AsyncWrite + Unpin>(
    mut input: impl AsyncBufRead + Unpin,
    output: &AsyncMutex<Output>,
    waiting: &Waiting,
) -> io::Result<()> {
    while let Some(body) = read_message(&mut input).await? {
        let received = Instant::now();
        let mut message: Value = serde_json::from_slice(&body).map_err(io::Error::other)?;
        match (message.get("method"), message.get("id")) {
            (Some(_), Some(id)) => write_message(&mut *output.lock().await, &null_answer(id)).await?,
            (Some(_), None) | (None, None) => {}
            (None, Some(id)) => {
                let asker = id.as_i64().and_then(|id| {
                    waiting.lock().unwrap_or_else(PoisonError::into_inner).as_mut()?.remove(&id)
                });
                let result = match message.get("error") {
                    Some(error) => Err(RequestError::Refused {
                        code: error["code"].as_i64().unwrap_or_default(),
                        message: error["message"].as_str().unwrap_or_default().to_owned(),
                    }),
                    None => Ok(message["result"].take()),
                };
                // Whoever asked may have lost interest.
                let _ = asker.map(|asker| asker.send(Answer { result, received }));
            }
        }
    }
    Ok(())
}
