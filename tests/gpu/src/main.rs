//! `redstart-gpu`: checks and measures the CUDA backend on this machine's GPU. Every other command is
//! `redstart`'s own, so that one program is enough to carry.

#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the output of a terminal command")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use redstart_engine::cuda::{self, Urgency, machine};
use redstart_engine::synthetic::SyntheticModel;
use redstart_gpu::{check, engine, kernels};

/// Check and measure the CUDA backend on this machine's GPU.
#[derive(Parser)]
#[command(name = "redstart-gpu")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Compare every kernel and the whole engine with the processor's results
    GpuCheck {
        /// Only small shapes: for compute-sanitizer, which is slow
        #[arg(long)]
        small: bool,
        /// Folder with the reference checkpoints
        #[arg(long, value_name = "DIR")]
        oracle: PathBuf,
        /// Seed of the random inputs; other ones in every run unless given
        #[arg(long)]
        seed: Option<u64>,
    },
    /// Measure the card, and each kernel against it, in the shapes of a 7B model
    GpuKernels {
        /// Tokens in the cache
        #[arg(long, default_value_t = 4096)]
        context: u32,
        /// Rows of a step
        #[arg(long, value_delimiter = ',', default_values_t = [1, 2, 4, 8, 16, 32, 64, 128, 2048])]
        rows: Vec<usize>,
    },
}

fn main() -> ExitCode {
    let is_ours = std::env::args().nth(1).is_some_and(|word| word.starts_with("gpu-"));
    if !is_ours {
        return redstart::commands::run(std::env::args_os());
    }
    match run(Cli::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether everything that was checked is well.
fn run(command: Command) -> anyhow::Result<bool> {
    match command {
        Command::GpuCheck { small, oracle, seed } => {
            let seed = seed.unwrap_or_else(|| fastrand::u64(..));
            let mut device = cuda::open(Urgency::First)?;
            println!("{}", describe(device.properties()));
            let failed = check::run(device.as_mut(), small, seed, &mut std::io::stdout().lock())?;
            drop(device);
            let mut open = || Ok(cuda::open(Urgency::First)?);
            let right = engine::check(&mut open, &oracle, small, seed, &mut std::io::stdout().lock())
                .context("checking the whole engine")?;
            Ok(failed == 0 && right)
        }
        Command::GpuKernels { context, rows } => {
            let mut device = cuda::open(Urgency::First)?;
            let rates = machine::measure(device.as_mut(), machine::Effort::CARD)?;
            println!("{}", describe(device.properties()));
            let measured = kernels::measure(device.as_mut(), &SyntheticModel::B7.config(), &rows, context)?;
            print!("{}", kernels::table(&measured, &rates));
            Ok(true)
        }
    }
}

fn describe(card: &redstart_kernels::device::DeviceProperties) -> String {
    let (major, minor) = card.compute_capability;
    format!(
        "{}, compute capability {major}.{minor}, {} multiprocessors, {} MB",
        card.name,
        card.multiprocessors,
        card.memory_bytes >> 20
    )
}
