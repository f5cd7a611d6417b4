//! The other side of a comparison: a llama.cpp-style server with `POST /infill` on this machine.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use futures_util::FutureExt;
use futures_util::future::{self, Either};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::{Request, StatusCode, Uri, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use super::buffer::{Buffer, Change};
use super::player::{Answered, Answering, Item, Suggester};
use super::recording::Recording;
use super::tally::{Account, Source};

/// Tokens of a line at most.
const MAX_TOKENS: usize = 64;
/// Lines above and below the caret that are sent: what editors' plugins for such servers send.
const LINES_ABOVE: usize = 256;
const LINES_BELOW: usize = 64;
/// A peer that takes longer to say that it is there is not.
const HELLO: Duration = Duration::from_secs(5);

/// A server to ask, every request over a connection of its own: closing it is how a request is taken back.
#[derive(Clone, Debug)]
pub(super) struct PeerAddress {
    host: String,
    address: SocketAddr,
    path: String,
}

impl PeerAddress {
    /// Understands `http://127.0.0.1:8012`, with or without `/infill`.
    ///
    /// # Errors
    /// A sentence when it is anything but HTTP to this machine.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("'{url}' is not a URL: {error}"))?;
        if uri.scheme_str() != Some("http") {
            return Err(format!("'{url}' does not begin with http://; a peer is spoken to over plain HTTP"));
        }
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(80);
        let ip = match host.as_str() {
            "localhost" => std::net::IpAddr::from([127, 0, 0, 1]),
            literal => literal.parse().map_err(|_| not_here(literal))?,
        };
        if !ip.is_loopback() {
            return Err(not_here(&host));
        }
        let path = match uri.path() {
            "/" | "" => "/infill".to_owned(),
            path => path.to_owned(),
        };
        let host = uri.authority().map_or(host, ToString::to_string);
        Ok(Self { host, address: SocketAddr::new(ip, port), path })
    }

    /// One request and its answer.
    async fn post(&self, body: &Value) -> anyhow::Result<Value> {
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("cannot reach the peer at {}; is its server running?", self.address))?;
        stream.set_nodelay(true)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::post(&self.path)
            .header(header::HOST, &self.host)
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.to_string())))?;
        let exchange = async {
            let response = sender.send_request(request).await?;
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            anyhow::Ok((status, body))
        };
        // Both on this task, so that dropping it closes the connection.
        let (exchange, connection) = (std::pin::pin!(exchange), std::pin::pin!(connection));
        let (status, body) = match future::select(exchange, connection).await {
            Either::Left((answer, _)) => answer?,
            Either::Right((ended, exchange)) => {
                ended?;
                exchange.await?
            }
        };
        if status != StatusCode::OK {
            let said = String::from_utf8_lossy(&body[..body.len().min(300)]).into_owned();
            bail!("the peer at {} answered {status}: {said}", self.address);
        }
        serde_json::from_slice(&body)
            .with_context(|| format!("the peer at {} did not answer with JSON", self.address))
    }
}

fn not_here(host: &str) -> String {
    format!(
        "'{host}' is not this machine: a peer must be at localhost, 127.0.0.1 or [::1], since the text goes there"
    )
}

/// The peer as the player sees it.
pub(super) struct Peer {
    address: PeerAddress,
    /// Ends the request before when dropped. A peer supersedes nothing by itself.
    previous: Option<oneshot::Sender<()>>,
}

impl Peer {
    /// A peer that has answered once.
    pub(super) async fn connect(address: PeerAddress) -> anyhow::Result<Self> {
        let hello = infill("", "", "", 1);
        tokio::time::timeout(HELLO, address.post(&hello))
            .await
            .map_err(|_| anyhow!("the peer at {} did not answer within {HELLO:?}", address.address))??;
        Ok(Self { address, previous: None })
    }
}

impl Suggester for Peer {
    async fn open(&mut self, _: &Recording) -> anyhow::Result<()> {
        Ok(())
    }

    async fn edit(&mut self, _: Change) -> anyhow::Result<()> {
        Ok(())
    }

    async fn ask(&mut self, buffer: &Buffer, _: bool) -> anyhow::Result<Answering> {
        let (text, caret) = (buffer.text(), buffer.caret());
        let line = text.byte_to_line(caret);
        let first = text.line_to_byte(line.saturating_sub(LINES_ABOVE));
        let line_start = text.line_to_byte(line);
        let last = text.line_to_byte((line + 1 + LINES_BELOW).min(text.len_lines()));
        let part = |range: std::ops::Range<usize>| text.byte_slice(range).to_string();
        let (prefix, line) = (part(first..line_start), part(line_start..caret));
        let body = infill(&prefix, &line, &part(caret..last), MAX_TOKENS);
        let (superseded_by, superseded) = oneshot::channel::<()>();
        self.previous = Some(superseded_by);
        let address = self.address.clone();
        Ok(Box::pin(async move {
            let answer = async { address.post(&body).await }.boxed();
            let answer = match future::select(answer, superseded).await {
                Either::Left((answer, _)) => answer,
                Either::Right(_) => Ok(Value::Null),
            };
            let received = Instant::now();
            match answer {
                Ok(answer) => Answered { received, item: Ok(item(&answer)), account: Some(account(&answer)) },
                Err(error) => Answered { received, item: Err(format!("{error:#}")), account: None },
            }
        }))
    }

    async fn accepted(&mut self, _: Value) -> anyhow::Result<()> {
        Ok(())
    }

    async fn close(&mut self) -> anyhow::Result<Option<String>> {
        self.previous = None;
        Ok(None)
    }
}

/// A request for the rest of a line. `line` is what precedes the caret on it.
fn infill(prefix: &str, line: &str, suffix: &str, tokens: usize) -> Value {
    json!({
        "input_prefix": prefix,
        "prompt": line,
        "input_suffix": suffix,
        "input_extra": [],
        "n_predict": tokens,
        "temperature": 0,
        "cache_prompt": true,
        "stop": ["\n"],
        "stream": false,
    })
}

fn item(answer: &Value) -> Option<Item> {
    let text = answer["content"].as_str()?;
    (!text.trim().is_empty()).then(|| Item {
        range: Value::Null,
        text: text.to_owned(),
        command: Value::Null,
    })
}

/// `tokens_evaluated` counts the whole prompt, `timings.prompt_n` what was not cached.
fn account(answer: &Value) -> Account {
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    let prompt_tokens = number(&answer["tokens_evaluated"]);
    let computed = answer["timings"]["prompt_n"].as_u64().unwrap_or(prompt_tokens);
    Account {
        source: Source::Engine,
        submit_ms: None,
        total_ms: None,
        prompt_tokens,
        cached_tokens: prompt_tokens.saturating_sub(computed),
        generated_tokens: number(&answer["tokens_predicted"]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_a_peer() {
        for url in ["http://127.0.0.1:8012", "http://localhost:8012/infill", "http://[::1]:8012/"] {
            let address = PeerAddress::parse(url).unwrap_or_else(|error| panic!("{url}: {error}"));
            assert_eq!((address.path.as_str(), address.address.port()), ("/infill", 8012));
        }
        for (url, words) in [
            ("http://192.168.1.2:8012", "not this machine"),
            ("http://example.org/infill", "not this machine"),
            ("http://localhost.example.org", "not this machine"),
            ("https://127.0.0.1", "begin with http://"),
            ("127.0.0.1:8012", "http"),
            ("not a url", "not a URL"),
        ] {
            let error = PeerAddress::parse(url).expect_err(url);
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn cached_tokens_are_those_that_were_not_computed() {
        let answer = json!({"content": "x", "tokens_evaluated": 100, "tokens_predicted": 7, "timings": {"prompt_n": 12}});
        let account = account(&answer);
        assert_eq!((account.prompt_tokens, account.cached_tokens, account.generated_tokens), (100, 88, 7));
    }
}
