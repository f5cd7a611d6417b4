//! `redstart complete FILE:LINE:COL`: one completion, for a shell or a script.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::Args;
use redstart_syntax::language::Language;
use ropey::Rope;

use super::{ModelArgs, print, report, runtime};
use crate::assistant::{Assistant, Trigger};
use crate::complete::Asked;
use crate::model;
use crate::snapshot::Snapshot;

/// Complete code at a place in a file.
///
/// Prints the completion on standard output and a line of timing on standard error. LINE and COL
/// count from 1, as editors show them; COL counts characters, and may be one past the line's end.
/// Exit code 1 when there is nothing to suggest.
///
/// Example: redstart complete src/main.rs:10:5
#[derive(Args)]
pub(super) struct CompleteArgs {
    /// Where: FILE:LINE:COL
    place: String,

    #[command(flatten)]
    model: ModelArgs,
}

pub(super) fn run(args: CompleteArgs) -> anyhow::Result<ExitCode> {
    let place = Place::parse(&args.place)?;
    let bytes =
        std::fs::read(&place.file).with_context(|| format!("cannot read {}", place.file.display()))?;
    let text = Rope::from_str(
        std::str::from_utf8(&bytes)
            .map_err(|error| anyhow::anyhow!("{} is not UTF-8 text: {error}", place.file.display()))?,
    );
    let caret = place.byte_offset(&text)?;

    let started = Instant::now();
    let loaded = model::load(&args.model.source(), &args.model.options(), &args.model.plugins())
        .map_err(anyhow::Error::msg)?;
    for warning in &loaded.warnings {
        report(&format!("redstart: {warning}"));
    }
    let loading = started.elapsed();
    let assistant = Assistant::new(model::ready(loaded));
    let snapshot = Snapshot::of_file(&place.file, text);
    let typing = Arc::default();
    let asked = Asked::new(&typing, &snapshot, caret, Trigger::Invoked);
    match runtime()?.block_on(assistant.complete(&asked)) {
        Ok(suggestion) => {
            print(&format!("{}\n", suggestion.text))?;
            let stats = &suggestion.stats;
            report(&format!(
                "first line {:.1} ms, total {:.1} ms, {} prompt tokens, {} generated, model loaded in {:.0} ms",
                stats.first_line.as_secs_f64() * 1e3,
                stats.total.as_secs_f64() * 1e3,
                stats.prompt_tokens,
                stats.generated_tokens,
                loading.as_secs_f64() * 1e3,
            ));
            Ok(ExitCode::SUCCESS)
        }
        Err(reason) => {
            report(&format!("redstart: no completion: {reason}"));
            Ok(ExitCode::FAILURE)
        }
    }
}

/// A place in a file, one-based.
struct Place {
    file: PathBuf,
    line: usize,
    column: usize,
}

impl Place {
    fn parse(place: &str) -> anyhow::Result<Self> {
        let mut parts = place.rsplitn(3, ':');
        let (column, line, file) = (parts.next(), parts.next(), parts.next());
        let number =
            |part: Option<&str>| part.and_then(|part| part.parse().ok()).filter(|number| *number > 0);
        match (file, number(line), number(column)) {
            (Some(file), Some(line), Some(column)) if !file.is_empty() => {
                Ok(Self { file: file.into(), line, column })
            }
            _ => bail!(
                "'{place}' is not FILE:LINE:COL with line and column counted from 1, such as src/main.rs:10:5"
            ),
        }
    }

    fn byte_offset(&self, text: &Rope) -> anyhow::Result<usize> {
        let lines = text.len_lines();
        if self.line > lines {
            bail!("{} has {lines} lines, line {} was asked for", self.file.display(), self.line);
        }
        let line = text.line(self.line - 1);
        let length = line.chars().filter(|character| !matches!(character, '\n' | '\r')).count();
        if self.column > length + 1 {
            bail!("line {} has {length} characters, column {} was asked for", self.line, self.column);
        }
        Ok(text.char_to_byte(text.line_to_char(self.line - 1) + self.column - 1))
    }
}

impl Snapshot {
    /// A file on disk as a document of its own.
    fn of_file(file: &Path, text: Rope) -> Self {
        let language = Language::from_path(file).map_or("plaintext", Language::id);
        let name = file.file_name().map(PathBuf::from).unwrap_or_else(|| file.to_owned());
        Self::new(file.display().to_string(), name, language, 0, text)
    }
}
