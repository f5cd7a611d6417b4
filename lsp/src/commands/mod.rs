//! The subcommands of `redstart`.

mod bench;
mod complete;
mod demo;
mod doctor;
mod inspect;
mod lsp;
mod memory;
mod stats;
mod stdio;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use redstart_engine::engine::{EngineOptions, KvCacheSize};
use redstart_engine::turns::give_way;
use tracing_subscriber::EnvFilter;

use crate::model::{BackendChoice, GpuOptions, HeadType, KvCacheType, ModelSource, RunOptions, WeightType};
use crate::plugins::PluginFiles;

/// A language server with the language model inside it.
///
/// Editors start `redstart lsp`; see the pages under editors/ for the lines to paste. To see it work
/// without an editor, run `redstart demo`. Nothing you type leaves this machine.
#[derive(Parser)]
#[command(name = "redstart", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

// Each subcommand's help is the documentation of its arguments.
#[derive(Subcommand)]
enum Command {
    Lsp(lsp::LspArgs),
    Demo(demo::DemoArgs),
    Complete(complete::CompleteArgs),
    Inspect(inspect::InspectArgs),
    Doctor(doctor::DoctorArgs),
    Bench(bench::BenchArgs),
    Stats(stats::StatsArgs),
}

/// Which model, and how to run it.
#[derive(Args, Clone)]
struct ModelArgs {
    /// A Hugging Face model directory (config.json, tokenizer.json, *.safetensors). Default: the small
    /// model inside this program
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// What computes
    #[arg(long, value_enum, default_value_t)]
    backend: BackendChoice,

    #[command(flatten)]
    gpu: GpuArgs,

    /// Worker threads on the processor. Default: the physical cores, less one if there are more than four,
    /// at most eight
    #[arg(long, value_name = "N", value_parser = thread_count)]
    threads: Option<usize>,

    /// Memory for the KV cache, in MB. Default: 512 on the processor; on a GPU what --gpu-memory-utilization
    /// leaves
    #[arg(long, value_name = "MB")]
    kv_cache_mb: Option<usize>,

    /// How keys and values are kept in the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    kv_cache_type: KvCacheType,

    /// Longest prompt plus answer, in tokens. Default: what the model allows, as far as the cache holds it
    #[arg(long, value_name = "N")]
    max_model_len: Option<usize>,

    /// A prompt plugin (a .wasm component) to use instead of the shipped ones; may be repeated
    #[arg(long, value_name = "FILE")]
    plugin: Vec<PathBuf>,
}

/// What concerns a GPU only.
#[derive(Args, Clone)]
struct GpuArgs {
    /// Share of the GPU's memory that may be in use, other programs' included, 0.1 to 1. The default leaves
    /// room for a desktop; on a machine without a screen 0.95 is fine
    #[arg(long, value_name = "SHARE", default_value_t = 0.85, value_parser = share)]
    gpu_memory_utilization: f32,

    /// How the output head is kept on a GPU
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    lm_head: HeadType,

    /// How the weights of a model that is not quantized are kept on a GPU
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    weights: WeightType,
}

impl GpuArgs {
    fn options(&self) -> GpuOptions {
        GpuOptions {
            memory_utilization: self.gpu_memory_utilization,
            head: self.lm_head,
            weights: self.weights,
            ..GpuOptions::default()
        }
    }
}

impl ModelArgs {
    fn source(&self) -> ModelSource {
        ModelSource::from_option(self.model.clone())
    }

    fn options(&self) -> RunOptions {
        RunOptions {
            threads: self.threads,
            exact: false,
            backend: self.backend,
            kv: self.kv_cache_type,
            gpu: self.gpu.options(),
            kv_cache: self.kv_cache_mb.map(|megabytes| KvCacheSize::Bytes(megabytes << 20)),
            engine: EngineOptions { max_model_len: self.max_model_len, ..EngineOptions::default() },
        }
    }

    fn plugins(&self) -> PluginFiles {
        PluginFiles(self.plugin.clone())
    }
}

/// A number of threads that makes sense on some machine.
fn thread_count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(count @ 1..=256) => Ok(count),
        _ => Err("a number from 1 to 256 is wanted".to_owned()),
    }
}

/// A share that leaves anything to work with.
fn share(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(share @ 0.1..=1.0) => Ok(share),
        _ => Err("a number from 0.1 to 1 is wanted".to_owned()),
    }
}

/// Runs the command that a command line asks for; its first word is the program's name.
pub fn run(command_line: impl Iterator<Item = OsString>) -> ExitCode {
    let cli = Cli::parse_from(command_line);
    // Editors show what a server writes there as errors, and the protocol's library tells of each request that is cancelled.
    log_to_stderr(if matches!(cli.command, Command::Lsp(_)) { "warn,redstart=info" } else { "warn" });
    let result = match cli.command {
        Command::Lsp(args) => lsp::run(args),
        Command::Demo(args) => demo::run(args),
        Command::Complete(args) => complete::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Stats(args) => stats::run(args),
    };
    result.unwrap_or_else(|error| {
        report(&format!("redstart: {error:#}"));
        ExitCode::FAILURE
    })
}

/// Log lines go to stderr, since stdout belongs to the protocol. `REDSTART_LOG=debug` shows more.
fn log_to_stderr(default: &str) {
    let filter = EnvFilter::try_from_env("REDSTART_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

/// A line on stderr. A closed stderr is no reason to die.
fn report(line: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "{line}");
}

/// Text on stdout.
fn print(text: &str) -> std::io::Result<()> {
    use std::io::Write;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Runs everything on the thread that blocks on it. A message then comes and goes without waking another thread,
/// each of which is a wait for a processor; whatever computes for long has threads of its own, which give way to that one.
fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().on_thread_start(give_way).enable_all().build()
}
