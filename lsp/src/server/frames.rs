//! Messages on the wire: `Content-Length` headers and JSON bodies, read so that garbage costs an error
//! message and not the session.

use std::io;
use std::time::Instant;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};

const LENGTH_HEADER: &[u8] = b"content-length:";
/// Longest header line. What is longer is not a header.
const MAX_HEADER_BYTES: u64 = 64 << 10;
/// Longest body.
const MAX_BODY_BYTES: usize = 512 << 20;

/// Why a message could not be read.
#[derive(Debug, PartialEq, thiserror::Error)]
pub(super) enum BadFrame {
    /// Something that is not a header.
    #[error("expected a `Content-Length` header, found {0:?}")]
    Header(String),
    /// The body is not JSON.
    #[error("the message is not valid JSON: {0}")]
    Json(String),
}

/// Reads messages.
pub(super) struct FrameReader<R> {
    input: BufReader<R>,
    /// A bad header was reported; whatever follows up to the next good one goes with it.
    skipping: bool,
    arrived: Instant,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input: BufReader::new(input), skipping: false, arrived: Instant::now() }
    }

    /// When the last message was there, before it was parsed.
    pub(super) fn arrived(&self) -> Instant {
        self.arrived
    }

    /// The next message, or what is wrong with it; `None` at the end of the input.
    pub(super) async fn next(&mut self) -> io::Result<Option<Result<Value, BadFrame>>> {
        let length = match self.header().await? {
            None => return Ok(None),
            Some(Err(bad)) => return Ok(Some(Err(bad))),
            Some(Ok(length)) => length,
        };
        let mut body = Vec::with_capacity(length.min(1 << 20));
        (&mut self.input).take(length as u64).read_to_end(&mut body).await?;
        if body.len() < length {
            return Ok(None);
        }
        self.arrived = Instant::now();
        Ok(Some(parse(&body).map_err(|error| BadFrame::Json(error.to_string()))))
    }

    /// The length of the body that follows.
    async fn header(&mut self) -> io::Result<Option<Result<usize, BadFrame>>> {
        let mut length = None;
        let mut line = Vec::new();
        loop {
            line.clear();
            (&mut self.input).take(MAX_HEADER_BYTES).read_until(b'\n', &mut line).await?;
            if line.is_empty() {
                return Ok(None);
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                if let Some(length) = length {
                    self.skipping = false;
                    return Ok(Some(Ok(length)));
                }
                continue;
            }
            match content_length(text) {
                Some(Ok(found)) => length = Some(found),
                // `Content-Type` and whatever else may come.
                None if is_header(text) && !self.skipping => {}
                Some(Err(())) | None => {
                    if !self.skipping {
                        self.skipping = true;
                        let found = String::from_utf8_lossy(&text[..text.len().min(60)]);
                        return Ok(Some(Err(BadFrame::Header(found.into_owned()))));
                    }
                }
            }
        }
    }
}

/// The value of a `Content-Length` header, even with garbage before it on the line, where a broken
/// message ended without a line break. `None` when there is no such header.
fn content_length(line: &[u8]) -> Option<Result<usize, ()>> {
    let width = LENGTH_HEADER.len();
    let at = line.windows(width).rposition(|part| part.eq_ignore_ascii_case(LENGTH_HEADER))?;
    let value = str::from_utf8(line[at + width..].trim_ascii()).unwrap_or_default();
    let length = value.parse().map_err(|_| ());
    Some(length.and_then(|length| if length <= MAX_BODY_BYTES { Ok(length) } else { Err(()) }))
}

/// Whether the line looks like `Name: value`.
fn is_header(line: &[u8]) -> bool {
    let name = line.split(|&byte| byte == b':').next().unwrap_or_default();
    name.len() < line.len() && name.iter().all(|&b| b.is_ascii_alphanumeric() || b == b'-')
}

/// Parses JSON. JavaScript clients may send half of a surrogate pair (an editor's text can hold one);
/// it is replaced by U+FFFD, which is as long in every position encoding.
fn parse(body: &[u8]) -> serde_json::Result<Value> {
    serde_json::from_slice(body).or_else(|error| match without_lone_surrogates(body) {
        Some(mended) => serde_json::from_slice(&mended),
        None => Err(error),
    })
}

/// The JSON with each lone `\uD800`-`\uDFFF` escape replaced, if there is one.
fn without_lone_surrogates(body: &[u8]) -> Option<Vec<u8>> {
    let escape_at = |at: usize| -> Option<u16> {
        let digits = body.get(at..at + 6)?.strip_prefix(b"\\u")?;
        u16::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()
    };
    let is_low = |at: usize| matches!(escape_at(at), Some(0xDC00..=0xDFFF));
    let mut mended = Vec::with_capacity(body.len());
    let mut changed = false;
    let mut at = 0;
    while at < body.len() {
        let length = match escape_at(at) {
            Some(0xD800..=0xDBFF) if is_low(at + 6) => 12,
            Some(0xD800..=0xDFFF) => {
                mended.extend_from_slice(b"\\ufffd");
                changed = true;
                at += 6;
                continue;
            }
            Some(_) => 6,
            // `\\` must not be taken for the start of the escape after it.
            None if body[at] == b'\\' => 2.min(body.len() - at),
            None => 1,
        };
        mended.extend_from_slice(&body[at..at + length]);
        at += length;
    }
    changed.then_some(mended)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    async fn read(input: impl AsRef<[u8]>) -> Vec<Result<Value, BadFrame>> {
        let mut reader = FrameReader::new(input.as_ref());
        let mut all = Vec::new();
        while let Some(frame) = reader.next().await.expect("no I/O error in memory") {
            all.push(frame);
        }
        all
    }

    fn framed(body: &str) -> String {
        format!("Content-Length: {}\r\n\r\n{body}", body.len())
    }

    #[tokio::test]
    async fn headers_may_be_spelled_and_accompanied_as_http_allows() {
        let input = "content-length:  4\r\nContent-Type: application/vscode-jsonrpc\r\n\r\ntrue";
        assert_eq!(read(input).await, [Ok(json!(true))]);
    }

    #[tokio::test]
    async fn garbage_costs_one_error_and_the_next_message_is_read() {
        let good = framed("1");
        for garbage in [
            "foobar",
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
            "Content-Length: many\r\n\r\n{\"a\":1}",
            "Content-Length: 99999999999\r\n\r\n{}",
        ] {
            let frames = read(format!("{good}{garbage}\r\n{good}{good}")).await;
            assert_eq!(frames.len(), 4, "{garbage}: {frames:?}");
            assert!(matches!(frames[1], Err(BadFrame::Header(_))), "{garbage}: {frames:?}");
            assert_eq!(frames[3], Ok(json!(1)));
        }
    }

    #[tokio::test]
    async fn a_broken_body_without_line_break_does_not_swallow_the_next_header() {
        let frames = read(format!("Content-Length: x\r\n\r\n{{\"id\":1}}{}", framed("2"))).await;
        assert_eq!(frames.last(), Some(&Ok(json!(2))));
        assert_eq!(frames.len(), 2);
    }

    #[tokio::test]
    async fn bad_json_is_reported_and_passed_over() {
        let frames = read(format!("{}{}", framed("{\"a\":"), framed("3"))).await;
        assert!(matches!(frames[0], Err(BadFrame::Json(_))));
        assert_eq!(frames[1], Ok(json!(3)));
    }

    #[tokio::test]
    async fn a_message_cut_off_by_the_end_is_the_end() {
        assert_eq!(read("Content-Length: 10\r\n\r\n{}").await, []);
    }

    #[tokio::test]
    async fn lone_surrogates_become_replacement_characters() {
        let frames = read(framed(r#"["a\ud83dz", "\ud83d\ude00", "\\ud83d", "\ude00"]"#)).await;
        assert_eq!(frames, [Ok(json!(["a\u{fffd}z", "😀", "\\ud83d", "\u{fffd}"]))]);
    }
}
