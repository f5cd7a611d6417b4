//! `redstart bench`: how fast a model is on this machine.
//!
//! [`measure`] drives the engine as a user's requests do and [`report`] shows what came out; [`seed`] is
//! another set of measurements, with [`html`] for a page of [`chart`]s. Both load their model through
//! [`target`]. [`typing`] measures the whole server as an editor sees it.

mod bandwidth;
mod chart;
mod html;
mod measure;
mod prompts;
mod report;
mod requests;
mod seed;
mod target;
mod typing;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};

use self::target::TargetArgs;
use super::print;

/// Measure how fast a model is on this machine.
///
/// Runs requests through the engine that also serves editors and reports how long the model takes to
/// load, how fast it reads a prompt (prefill) and writes tokens (decode), how long a first token takes
/// with nothing cached and with all but 16 tokens cached, what four sequences together reach, how many
/// bytes a token reads and which share of this machine's read bandwidth (of a GPU's copy bandwidth) that
/// is, and the peak of memory.
/// Prompts are random tokens, other ones in every repeat, so that the prefix cache cannot flatter.
/// Figures are medians over the repeats. An MB is 2^20 bytes, a GB 10^9.
#[derive(Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  \
        redstart bench                                     the model inside this program\n  \
        redstart bench --model ~/models/Qwen2.5-Coder-1.5B-Instruct-AWQ --depth 2048\n  \
        redstart bench --synthetic 1.5b --json             without a download: random weights, speed only\n  \
        redstart bench --synthetic 0.5b --write /tmp/0.5b  those weights as a model directory\n  \
        redstart bench seed --html report.html             everyday requests, and a page of plots\n  \
        redstart bench typing                              recorded typing, through the server behind a pipe"
)]
pub(super) struct BenchArgs {
    #[command(subcommand)]
    command: Option<BenchCommand>,

    #[command(flatten)]
    measure: MeasureArgs,
}

#[derive(Subcommand)]
enum BenchCommand {
    Seed(seed::SeedArgs),
    Typing(Box<typing::TypingArgs>),
    ReadBandwidth(bandwidth::ReadBandwidthArgs),
}

#[derive(Args)]
struct MeasureArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// Tokens of the prompt whose prefill and first token are measured
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least::<1>)]
    prompt: usize,

    /// Tokens to generate, at least 2; the first is not counted as decoding
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least::<2>)]
    tokens: usize,

    /// Tokens already in the context when decoding begins
    #[arg(long, value_name = "N", default_value_t = 0)]
    depth: usize,

    /// Sequences that decode together, each at the given depth
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = at_least::<1>)]
    batch: usize,

    /// How often each measurement is repeated
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least::<1>)]
    repeat: usize,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write the synthetic model to this directory and measure nothing
    #[arg(long, value_name = "DIR", requires = "synthetic")]
    write: Option<PathBuf>,
}

pub(super) fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match (args.command, args.measure) {
        (Some(BenchCommand::Seed(args)), _) => seed::run_seed(&args)?,
        (Some(BenchCommand::Typing(args)), _) => typing::run(&args)?,
        (Some(BenchCommand::ReadBandwidth(args)), _) => bandwidth::run(&args)?,
        (None, MeasureArgs { write: Some(directory), target, .. }) => {
            print(&format!("{}\n", target.write(&directory)?))?;
        }
        (None, args) => {
            let report = measure::run(&args)?;
            print(&if args.json { report.json()? } else { report.table() })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A number that is not below `LEAST`.
fn at_least<const LEAST: usize>(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number >= LEAST => Ok(number),
        _ => Err(format!("a whole number of at least {LEAST} is wanted")),
    }
}

/// A bar on stderr; nothing where that is no terminal. It has no thread of its own that would disturb
/// what is measured, and moves only when told.
fn progress(steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed:>4}  {msg}");
    ProgressBar::new(steps as u64).with_style(style.expect("the template is well-formed"))
}

/// Rounds to three significant digits below a thousand and to whole numbers above: what the
/// measurements can tell apart.
fn rounded(value: f64) -> f64 {
    let digits = (2.0 - value.abs().max(1e-9).log10().floor()).max(0.0);
    let scale = 10f64.powf(digits);
    (value * scale).round() / scale
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_three_digits() {
        for (value, expected) in [
            (12_345.6, 12_346.0),
            (123.456, 123.0),
            (12.345, 12.3),
            (1.2345, 1.23),
            (0.98765, 0.988),
            (0.0, 0.0),
        ] {
            assert_eq!(rounded(value), expected);
        }
    }
}
