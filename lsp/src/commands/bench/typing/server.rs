//! The server under measurement: this same program as `redstart lsp`, behind pipes as an editor starts it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use redstart_engine::synthetic::SyntheticModel;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::process::{Child, ChildStdin, Command};

use crate::client::Connection;
use crate::embedded;
use crate::model::{BackendChoice, SYNTHETIC_SEED};

/// How long a server may take to end after it was told to.
const ENDING: Duration = Duration::from_secs(10);

/// Ticks a second in which Linux counts processor time for other programs, on every machine.
const USER_HZ: f64 = 100.0;

/// What the server runs with.
#[derive(Args, Clone)]
pub(super) struct ServerArgs {
    /// A Hugging Face model directory. Default: the small model inside this program
    #[arg(long, value_name = "DIR", conflicts_with = "synthetic")]
    model: Option<PathBuf>,

    /// Random weights in the shapes of Qwen2.5-Coder of this size: 0.5b, 1.5b, 3b or 7b. They are written to
    /// a temporary folder first. The speed is real; what little text comes out means nothing
    #[arg(long, value_name = "SIZE")]
    synthetic: Option<SyntheticModel>,

    /// What computes. Default: the server's own choice
    #[arg(long, value_enum)]
    backend: Option<BackendChoice>,

    /// Worker threads on the processor. Default: the server's own choice
    #[arg(long, value_name = "N", value_parser = crate::commands::thread_count)]
    threads: Option<usize>,

    /// Further options for redstart lsp, after --
    #[arg(last = true, value_name = "OPTION")]
    more: Vec<OsString>,
}

/// How to start servers, again and again.
pub(super) struct Launcher {
    program: PathBuf,
    arguments: Vec<OsString>,
    /// Holds the synthetic model's files.
    _synthetic: Option<TempDir>,
}

impl Launcher {
    pub(super) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("cannot tell where this program is")?;
        let synthetic = args.synthetic.map(write_synthetic).transpose()?;
        let files = synthetic.as_ref().zip(args.synthetic);
        let model =
            args.model.clone().or_else(|| files.map(|(directory, model)| synthetic_files(directory, model)));
        let mut arguments = vec![OsString::from("lsp")];
        let mut option = |name: &str, value: OsString| arguments.extend([name.into(), value]);
        if let Some(directory) = model {
            option("--model", directory.into());
        }
        if let Some(backend) = args.backend.and_then(|backend| backend.to_possible_value()) {
            option("--backend", backend.get_name().into());
        }
        if let Some(threads) = args.threads {
            option("--threads", threads.to_string().into());
        }
        arguments.extend_from_slice(&args.more);
        Ok(Self { program, arguments, _synthetic: synthetic })
    }

    /// The command of a server with some of the measures for typing switched off.
    pub(super) fn command(&self, without: Option<&str>) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
        if let Some(list) = without {
            command.args(["--without", list]);
        }
        if std::env::var_os("REDSTART_LOG").is_none() {
            command.env("REDSTART_LOG", "warn");
        }
        command
    }
}

/// Random weights with the embedded model's tokenizer, so that a server can read text with them.
fn write_synthetic(model: SyntheticModel) -> anyhow::Result<TempDir> {
    let directory = tempfile::tempdir().context("cannot make a folder for the synthetic model")?;
    let files = synthetic_files(&directory, model);
    std::fs::create_dir(&files)?;
    model.write(SYNTHETIC_SEED, &files)?;
    std::fs::write(files.join("tokenizer.json"), embedded::TOKENIZER)?;
    Ok(directory)
}

/// The model's directory, whose name is the model's.
fn synthetic_files(directory: &TempDir, model: SyntheticModel) -> PathBuf {
    directory.path().join(format!("synthetic-{}", model.name()))
}

/// A running server with its model loaded, and a folder as its workspace.
pub(super) struct Server {
    process: Child,
    id: u32,
    pub(super) connection: Arc<Connection<ChildStdin>>,
    pub(super) workspace: TempDir,
    /// Name of the model and of what computes.
    pub(super) model: String,
    /// Whether the model can review.
    pub(super) reviews: bool,
}

impl Server {
    /// Starts one and waits for its model.
    pub(super) async fn start(launcher: &Launcher, without: Option<&str>) -> anyhow::Result<Self> {
        let mut process = launcher.command(without).spawn().context("cannot start redstart lsp")?;
        let (Some(input), Some(output)) = (process.stdout.take(), process.stdin.take()) else {
            bail!("redstart lsp has no pipes");
        };
        let id = process.id().context("redstart lsp has ended")?;
        let connection = Arc::new(Connection::start(input, output));
        let workspace = tempfile::tempdir().context("cannot make a folder for the replayed files")?;
        let mut server = Self { process, id, connection, workspace, model: String::new(), reviews: false };
        if let Err(error) = server.initialize().await {
            // What the server has to say about it is on the same stderr.
            let ended = tokio::time::timeout(Duration::from_secs(1), server.process.wait()).await;
            return Err(match ended {
                Ok(Ok(status)) => error.context(format!("redstart lsp did not start ({status})")),
                _ => error,
            });
        }
        Ok(server)
    }

    async fn initialize(&mut self) -> anyhow::Result<()> {
        let capabilities = json!({
            "general": {"positionEncodings": ["utf-8"]},
            "textDocument": {"inlineCompletion": {}},
        });
        let folders = json!([{"uri": self.uri(""), "name": "typing"}]);
        let parameters = json!({
            "processId": std::process::id(),
            "capabilities": capabilities,
            "workspaceFolders": folders,
        });
        self.connection.request("initialize", parameters).await?;
        self.connection.notify("initialized", json!({})).await?;
        loop {
            let status = self.connection.request("redstart/status", Value::Null).await?;
            let text = |key: &str| status[key].as_str().unwrap_or_default();
            match text("state") {
                "ready" => {
                    self.model = format!("{} on {}", text("model"), text("description"));
                    self.reviews = status.get("noReviews").is_none();
                    return Ok(());
                }
                "loading" => tokio::time::sleep(Duration::from_millis(20)).await,
                _ => bail!("the server's model failed: {}", text("message")),
            }
        }
    }

    /// The URI of a file in the workspace.
    pub(super) fn uri(&self, file: &str) -> String {
        let path = self.workspace.path().display().to_string().replace('\\', "/");
        let slash = if path.starts_with('/') { "" } else { "/" };
        format!("file://{slash}{path}/{file}")
    }

    /// The totals it counts.
    pub(super) async fn totals(&self) -> anyhow::Result<super::tally::Totals> {
        let totals = self.connection.request("redstart/typingStats", Value::Null).await?;
        Ok(serde_json::from_value(totals)?)
    }

    /// Processor time that it has taken since its start, where the system tells (Linux).
    pub(super) fn cpu_seconds(&self) -> Option<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.id)).ok()?;
        // The second field, a name in brackets, may hold blanks; utime and stime are the 14th and 15th.
        let (_, after_name) = stat.rsplit_once(") ")?;
        let mut times = after_name.split(' ').skip(11);
        let mut ticks = || times.next()?.parse::<f64>().ok();
        Some((ticks()? + ticks()?) / USER_HZ)
    }

    /// How long its first thread, which takes the messages, has waited for a processor since its start, in
    /// milliseconds, where the system tells (Linux).
    pub(super) fn processor_wait_ms(&self) -> Option<f64> {
        let times = std::fs::read_to_string(format!("/proc/{}/schedstat", self.id)).ok()?;
        // Nanoseconds on a processor, nanoseconds waiting for one, times that it got one.
        Some(times.split(' ').nth(1)?.parse::<f64>().ok()? / 1e6)
    }

    /// Ends it as an editor does.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.connection.request("shutdown", Value::Null).await?;
        self.connection.notify("exit", Value::Null).await?;
        let status = tokio::time::timeout(ENDING, self.process.wait())
            .await
            .context("the server did not end after it was told to")??;
        if !status.success() {
            bail!("the server ended with {status}");
        }
        Ok(())
    }
}
