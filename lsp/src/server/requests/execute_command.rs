//! `workspace/executeCommand`

use serde::de::DeserializeOwned;
use serde_json::Value;
use tower_lsp::gen_lsp_types::{ExecuteCommandParams, MessageType, Range};
use tower_lsp::jsonrpc::{Error, Result};

use super::review;
use crate::encoding::Position;
use crate::server::convert::position;
use crate::server::sync::lock;
use crate::server::{Server, feedback};

/// Reviews a function: `[uri, line or range, version?]`. Answers `{ "findings": number }`.
pub(super) const REVIEW: &str = "redstart.review";
/// Takes a finding off the list: `[uri, finding]`.
pub(super) const DISMISS: &str = "redstart.dismiss";
/// Shows why something is not possible: `[reason]`.
pub(super) const EXPLAIN: &str = "redstart.explain";
/// Says that a suggestion was accepted: `[uri, suggestion]`. Editors run it with the item.
pub(in crate::server) const ACCEPTED: &str = "redstart.accepted";
/// All of them.
pub(super) const COMMANDS: [&str; 4] = [REVIEW, DISMISS, EXPLAIN, ACCEPTED];

/// Runs a command.
pub(in crate::server) async fn execute_command(
    server: &Server,
    params: ExecuteCommandParams,
) -> Result<Option<Value>> {
    let arguments = Arguments { command: &params.command, values: params.arguments };
    match params.command.as_str() {
        REVIEW => {
            let uri: String = arguments.get(0, "the document's URI")?;
            let place: Place = arguments.get(1, "a line number or a range")?;
            let version: Option<i32> = arguments.get(2, "the document's version")?;
            let token = params.work_done_progress_params.work_done_token;
            review::review(server, &uri, place.start(), version, token).await
        }
        DISMISS => {
            let uri: String = arguments.get(0, "the document's URI")?;
            let finding: u64 = arguments.get(1, "the finding's number")?;
            dismiss(server, &uri, finding);
            Ok(None)
        }
        ACCEPTED => {
            let uri: String = arguments.get(0, "the document's URI")?;
            let suggestion: u64 = arguments.get(1, "the suggestion's number")?;
            feedback::accepted(server, &uri, suggestion);
            Ok(None)
        }
        EXPLAIN => {
            let reason: String = arguments.get(0, "the reason")?;
            server.outbox.show(MessageType::Info, format!("Redstart: {reason}"));
            Ok(None)
        }
        unknown => Err(Error::invalid_params(format!(
            "there is no command {unknown}; there are {}",
            COMMANDS.join(", ")
        ))),
    }
}

fn dismiss(server: &Server, uri: &str, finding: u64) {
    let mut workspace = lock(&server.workspace);
    if workspace.findings.dismiss(uri, finding) {
        server.publish(&workspace, uri);
        server.refresh_diagnostics();
    }
}

/// Where a function is, as an editor or a person says it.
#[derive(serde::Deserialize)]
#[serde(untagged)]
enum Place {
    Line(usize),
    Range(Range),
}

impl Place {
    fn start(&self) -> Position {
        match self {
            // The end of the line, where the caret would be after typing it.
            Self::Line(line) => Position { line: *line, character: usize::MAX },
            Self::Range(range) => position(range.start),
        }
    }
}

struct Arguments<'a> {
    command: &'a str,
    values: Option<Vec<Value>>,
}

impl Arguments<'_> {
    fn get<T: DeserializeOwned>(&self, index: usize, what: &str) -> Result<T> {
        let value = self.values.as_ref().and_then(|values| values.get(index));
        serde_json::from_value(value.cloned().unwrap_or_default()).map_err(|error| {
            let number = index + 1;
            let command = self.command;
            Error::invalid_params(format!("argument {number} of {command} is {what}: {error}"))
        })
    }
}
