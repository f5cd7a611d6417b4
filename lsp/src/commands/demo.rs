//! `redstart demo`: a real LSP session in one process, typed key by key.

mod session;
mod show;

use std::process::ExitCode;

use clap::Args;

use super::{ModelArgs, report, runtime};
use crate::embedded;

/// Watch completions appear while a few lines are typed.
///
/// Runs a real LSP session, client and server in this one process over a pipe, on a small sample
/// project: types a few lines key by key, asks for a completion after each key as an editor does, and
/// prints the ghost text with the time to its first complete line, the prompt's size and the share of it
/// that came from the cache. Then it accepts one. Nothing is staged: with another model, other text.
#[derive(Args)]
pub(super) struct DemoArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Print one JSON object a keystroke and one at the end instead
    #[arg(long)]
    json: bool,

    /// Type into a file of 10,000 lines instead, and report what the server costs besides the model
    #[arg(long)]
    large_file: bool,
}

pub(super) fn run(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let show = show::Show::new(args.json);
    if !args.json && args.model.model.is_none() {
        report(&format!(
            "Model: {}, 6.8 M parameters. It is here so that you can try Redstart at once, and it is weak.\n\
             A real model replaces it with one option: redstart demo --model DIR\n",
            embedded::NAME
        ));
    }
    let text = if args.large_file { session::large_file() } else { session::SAMPLE.to_owned() };
    let runtime = runtime()?;
    let outcome = runtime.block_on(session::run(&args.model, text, &show));
    runtime.shutdown_background();
    show.summary(&outcome?)?;
    Ok(ExitCode::SUCCESS)
}
