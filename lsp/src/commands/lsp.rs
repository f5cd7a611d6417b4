//! `redstart lsp`: the server on stdio.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::{ModelArgs, runtime, stdio};
use crate::assistant::Assistant;
use crate::loader::{Choice, Models};
use crate::server;
use crate::settings::Settings;
use crate::typing::options::{Measure, TypingOptions};

/// Serve an editor over standard input and output.
///
/// The editor starts this command; see editors/ for the lines to paste. It answers at once and loads
/// the model in the background. Logs go to standard error; REDSTART_LOG=debug shows more.
#[derive(Args)]
pub(super) struct LspArgs {
    #[command(flatten)]
    model: ModelArgs,

    /// A second model directory, for reviews: the first one then only completes. Both share the memory of
    /// the GPU or the machine
    #[arg(long, value_name = "DIR")]
    review_model: Option<PathBuf>,

    /// Keep model and server in this one process. For now that is the only way it runs
    #[arg(long)]
    standalone: bool,

    /// Measures to switch off, to see what each brings (`redstart bench typing --compare` does that)
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',')]
    without: Vec<Measure>,

    /// Accepted because editors pass it; stdio is the only transport
    #[arg(long, hide = true)]
    stdio: bool,
}

pub(super) fn run(args: LspArgs) -> anyhow::Result<ExitCode> {
    let models = Models::new(&args.model.options(), &args.model.plugins());
    let assistant =
        Assistant::with_reviewer(models.typing(), models.reviewing(), TypingOptions::without(&args.without));
    let choice = Choice { typing: args.model.source(), reviewing: args.review_model };
    models.apply(&choice, &Settings::default());
    let options = server::ServeOptions {
        on_settings: Some(Box::new(move |settings| models.apply(&choice, settings))),
        ..server::ServeOptions::default()
    };
    let runtime = runtime()?;
    let ended =
        runtime.block_on(async { server::serve(stdio::input(), stdio::output(), assistant, options).await });
    // A read of stdin cannot be interrupted; waiting for it would hang the exit.
    runtime.shutdown_background();
    Ok(ExitCode::from(ended.exit_code()))
}
