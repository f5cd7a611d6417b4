//! `redstart stats`: what became of the suggestions, from the local record.

mod html;
mod summary;
mod text;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use clap::Args;

use self::summary::Summary;
use super::{print, report};
use crate::record;

/// Show how suggestions fared: acceptance by language, latency, and both as plots.
///
/// Reads the record that the server keeps on this machine if the setting "completion.record" is true. It has
/// counts and times, no text and no paths, and it is never sent anywhere; delete the file to forget it all.
///
/// "accepted" are suggestions taken as a whole, "partly" those of which only the beginning was; "left after
/// 30 s" is how much of the accepted text was still there then. Latency is from the editor's request to the answer.
#[derive(Args)]
pub(super) struct StatsArgs {
    /// Only what was shown in the last while: 12h, 7d, "2 weeks"
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration)]
    since: Option<Duration>,

    /// One JSON object instead of tables and plots
    #[arg(long)]
    json: bool,

    /// Another record than the user's own
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,

    /// Write a page with the same tables and plots to FILE
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

const HOW_TO_RECORD: &str = "\
Suggestions are recorded only if you ask for it. Set \"completion.record\" to true in Redstart's settings:\n\n  \
{ \"completion\": { \"record\": true } }\n\n\
The record stays on this machine. It has counts and times, no text and no paths.\n";

pub(super) fn run(args: StatsArgs) -> anyhow::Result<ExitCode> {
    let path = match &args.file {
        Some(file) => file.clone(),
        None => record::default_path().context("the system names no folder for the user's data")?,
    };
    if args.file.is_none() && !path.exists() {
        let hint = format!("There is no record yet at {}.\n{HOW_TO_RECORD}", path.display());
        if args.json {
            report(&hint);
            print(&format!("{}\n", Summary::default().json()))?;
        } else {
            print(&hint)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut events = record::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let from = args.since.and_then(|since| SystemTime::now().checked_sub(since)).map_or(0, unix_ms);
    let mut summary = Summary::of(events.by_ref(), from);
    summary.damaged = events.damaged();
    if let Some(file) = &args.html {
        std::fs::write(file, html::page(&summary))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    if args.json {
        print(&format!("{}\n", summary.json()))?;
    } else if summary.shown() == 0 {
        print(&format!("No suggestion was shown in that time, says {}.\n", path.display()))?;
    } else {
        print(&text::render(&summary, &text::Style::of_stdout()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Milliseconds since 1970.
fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
