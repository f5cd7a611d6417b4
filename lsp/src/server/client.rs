//! What the client can do, reduced to what makes a difference here.

use tower_lsp::gen_lsp_types::{ClientCapabilities, InitializeParams};

use crate::encoding::PositionEncoding;

/// The client's side of the session.
#[derive(Clone, Debug, Default)]
pub(super) struct ClientProfile {
    /// Agreed unit of positions.
    pub(super) encoding: PositionEncoding,
    /// Shows inline completions.
    pub(super) inline_completion: bool,
    /// Asks for diagnostics and can be told to ask again. A client that cannot be told would not see
    /// the findings of a review, so it is sent them instead.
    pub(super) pulls_diagnostics: bool,
    /// Fetches the edit of a code action when it is chosen.
    pub(super) resolves_edits: bool,
    /// Shows code actions that cannot be used, with the reason.
    pub(super) disabled_actions: bool,
    /// Marks code actions by tags.
    pub(super) action_tags: bool,
    /// Takes edits with the version of the document they are for.
    pub(super) versioned_edits: bool,
    /// Shows progress that the server starts.
    pub(super) progress: bool,
    /// Answers `workspace/configuration`.
    pub(super) configuration: bool,
    /// Lets the server ask for `workspace/didChangeWatchedFiles`.
    pub(super) registers_watchers: bool,
    /// Lets the server ask for `workspace/didChangeConfiguration`.
    pub(super) registers_configuration: bool,
}

impl ClientProfile {
    /// Reads the client's capabilities.
    pub(super) fn new(params: &InitializeParams) -> Self {
        let ClientCapabilities { workspace, text_document, window, general, .. } = &params.capabilities;
        let workspace = workspace.as_ref();
        let text_document = text_document.as_ref();
        let action = text_document.and_then(|of| of.code_action.as_ref());
        let diagnostics = workspace.and_then(|of| of.diagnostics.as_ref());
        let refreshes = diagnostics.and_then(|of| of.refresh_support) == Some(true);
        let offered = general.as_ref().and_then(|of| of.position_encodings.as_ref());
        let resolved = action.and_then(|of| of.resolve_support.as_ref());
        let configuration = workspace.and_then(|of| of.did_change_configuration.as_ref());
        let watchers = workspace.and_then(|of| of.did_change_watched_files.as_ref());
        Self {
            encoding: PositionEncoding::negotiate(
                offered.into_iter().flatten().map(|encoding| encoding.as_str()),
            ),
            inline_completion: text_document.is_some_and(|of| of.inline_completion.is_some()),
            pulls_diagnostics: text_document.is_some_and(|of| of.diagnostic.is_some()) && refreshes,
            resolves_edits: action.and_then(|of| of.data_support) == Some(true)
                && resolved.is_some_and(|of| of.properties.iter().any(|name| name == "edit")),
            disabled_actions: action.and_then(|of| of.disabled_support) == Some(true),
            action_tags: action.is_some_and(|of| of.tag_support.is_some()),
            versioned_edits: workspace
                .and_then(|of| of.workspace_edit.as_ref())
                .and_then(|of| of.document_changes)
                == Some(true),
            progress: window.as_ref().and_then(|of| of.work_done_progress) == Some(true),
            configuration: workspace.and_then(|of| of.configuration) == Some(true),
            registers_watchers: watchers.and_then(|of| of.dynamic_registration) == Some(true),
            registers_configuration: configuration.and_then(|of| of.dynamic_registration) == Some(true),
        }
    }
}
