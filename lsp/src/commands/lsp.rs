//! `redstart lsp`: the server on stdio.

use std::process::ExitCode;

use clap::Args;

use super::{ModelArgs, runtime};
use crate::assistant::Assistant;
use crate::model::Loader;
use crate::server;

/// Serve an editor over standard input and output.
///
/// The editor starts this command; see editors/ for the lines to paste. It answers at once and loads
/// the model in the background. Logs go to standard error; REDSTART_LOG=debug shows more.
#[derive(Args)]
pub(super) struct LspArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// Keep model and server in this one process. For now that is the only way it runs
    #[arg(long)]
    standalone: bool,

    /// Accepted because editors pass it; stdio is the only transport
    #[arg(long, hide = true)]
    stdio: bool,
}

pub(super) fn run(args: LspArgs) -> anyhow::Result<ExitCode> {
    let loader = Loader::new(args.model.options(), args.model.plugins());
    let assistant = Assistant::new(loader.watch());
    let source = args.model.source();
    loader.load(source.clone());
    let options = server::ServeOptions {
        on_settings: Some(Box::new(move |settings| loader.apply(&source, settings))),
        ..server::ServeOptions::default()
    };
    let runtime = runtime()?;
    let ended = runtime.block_on(server::serve(tokio::io::stdin(), tokio::io::stdout(), assistant, options));
    // A read of stdin cannot be interrupted; waiting for it would hang the exit.
    runtime.shutdown_background();
    Ok(ExitCode::from(ended.exit_code()))
}
