//! `redstart doctor`: what works here, and why the rest does not.

use std::fmt::Write;
use std::process::ExitCode;

use clap::Args;
use redstart_engine::cuda::{self, KernelOrigin};
use ropey::Rope;

use super::{ModelArgs, print, runtime};
use crate::assistant::{Assistant, Trigger};
use crate::complete::Asked;
use crate::model::{self, LoadedModel};
use crate::snapshot::Snapshot;

/// Say what works on this machine and what does not.
///
/// Loads the model and the plugins as the server would, completes one line, and says in a sentence each
/// what is fine, what is missing and what to do about it. Exit code 1 when the server could not serve.
#[derive(Args)]
pub(super) struct DoctorArgs {
    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: DoctorArgs) -> anyhow::Result<ExitCode> {
    let mut text = String::new();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    line(
        &mut text,
        "redstart",
        &format!("{} for {}-{}", env!("CARGO_PKG_VERSION"), std::env::consts::ARCH, std::env::consts::OS),
    );
    line(&mut text, "processor", &format!("{cores} cores available"));
    describe_gpus(&mut text);
    print(&text)?;

    let mut text = String::new();
    let loaded = model::load(&args.model.source(), &args.model.options(), &args.model.plugins());
    let healthy = match loaded {
        Err(message) => {
            line(&mut text, "model", &format!("FAILED: {message}"));
            false
        }
        Ok(loaded) => {
            describe(&mut text, &loaded);
            complete_one_line(&mut text, loaded)?
        }
    };
    print(&text)?;
    Ok(if healthy { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Which GPUs can serve and where their kernels come from, or why none can.
fn describe_gpus(text: &mut String) {
    match cuda::probe() {
        Err(why) => line(text, "gpu", &format!("none that can serve: {why}")),
        Ok(cards) => {
            for card in cards {
                let (major, minor) = card.compute_capability;
                let kernels = match card.kernels {
                    KernelOrigin::Embedded => "its kernels are in this program".to_owned(),
                    KernelOrigin::Nvrtc(..) => {
                        "NVRTC compiles its kernels at the first start, which takes a minute or so".to_owned()
                    }
                };
                let memory = card.memory_bytes >> 20;
                line(
                    text,
                    "gpu",
                    &format!("{}, {memory} MB, compute capability {major}.{minor}; {kernels}", card.name),
                );
            }
        }
    }
}

fn line(text: &mut String, name: &str, value: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{name:<12} {value}");
}

fn describe(text: &mut String, loaded: &LoadedModel) {
    let info = loaded.generator.model();
    line(text, "model", &format!("{}, ready in {:.0} ms", info.name, loaded.load_time.as_secs_f64() * 1e3));
    line(text, "backend", &info.description);
    line(
        text,
        "context",
        &format!(
            "{} tokens; completion prompts of up to {}",
            info.max_model_len,
            loaded.hints.window_tokens.min(info.max_model_len)
        ),
    );
    line(
        text,
        "review",
        &loaded.can_review().map_or_else(|why| format!("not with this model: {why}"), |()| "works".into()),
    );
    for (task, plugin) in [("complete", &loaded.plugins.complete), ("review", &loaded.plugins.review)] {
        let value = match plugin {
            Some(plugin) => format!("{task}: {} {}", plugin.info().name, plugin.info().version),
            None => format!("{task}: none"),
        };
        line(text, "plugin", &value);
    }
    for warning in &loaded.warnings {
        line(text, "warning", warning);
    }
}

/// One completion from end to end, so that "ready" is more than a word.
fn complete_one_line(text: &mut String, loaded: LoadedModel) -> anyhow::Result<bool> {
    let source = "def add(a, b):\n    return ";
    let rope = Rope::from_str(&format!("{source}\n\n\ndef sub(a, b):\n    return a - b\n"));
    let snapshot = Snapshot::new("doctor", "add.py".into(), "python", 0, rope);
    let assistant = Assistant::new(model::ready(loaded));
    let typing = std::sync::Arc::default();
    let asked = Asked::new(&typing, &snapshot, source.len(), Trigger::Invoked);
    let outcome = runtime()?.block_on(assistant.complete(&asked));
    Ok(match outcome {
        Ok(suggestion) => {
            let ms = suggestion.stats.first_line.as_secs_f64() * 1e3;
            line(
                text,
                "completion",
                &format!("works: 'return ' is continued with {:?} in {ms:.0} ms", suggestion.text),
            );
            true
        }
        Err(reason) => {
            line(text, "completion", &format!("FAILED: {reason}"));
            false
        }
    })
}
