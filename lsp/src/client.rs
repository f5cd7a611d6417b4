//! A small LSP client over any pair of byte streams: what the demo types with.

use std::io;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

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
        self.send(json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params})).await?;
        loop {
            let mut message = self.receive().await?;
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
        self.send(json!({"jsonrpc": "2.0", "method": method, "params": params})).await
    }

    /// Notifications received so far.
    pub fn take_notifications(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.notifications)
    }

    async fn take_from_server(&mut self, message: Value) -> io::Result<()> {
        match message.get("id") {
            Some(id) => self.send(json!({"jsonrpc": "2.0", "id": id, "result": null})).await,
            None => {
                self.notifications.push(message);
                Ok(())
            }
        }
    }

    async fn send(&mut self, message: Value) -> io::Result<()> {
        let body = message.to_string();
        let framed = format!("Content-Length: {}\r\n\r\n{body}", body.len());
        self.output.write_all(framed.as_bytes()).await?;
        self.output.flush().await
    }

    async fn receive(&mut self) -> io::Result<Value> {
        let mut length = None;
        loop {
            let mut line = String::new();
            if self.input.read_line(&mut line).await? == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
            }
            if line == "\r\n" {
                break;
            }
            if let Some(value) = line.strip_prefix("Content-Length:") {
                length = value.trim().parse::<usize>().ok();
            }
        }
        let length = length.ok_or_else(|| io::Error::other("a message without Content-Length"))?;
        let mut body = vec![0; length];
        self.input.read_exact(&mut body).await?;
        serde_json::from_slice(&body).map_err(io::Error::other)
    }
}
