//! `initialize`

use tower_lsp::gen_lsp_types::{
    CodeActionKind, CodeActionOptions, CodeActionProvider, CompletionOptions, DiagnosticOptions,
    DiagnosticProvider, ExecuteCommandOptions, InitializeParams, InitializeResult, InlineCompletionProvider,
    PositionEncodingKind, Save, SaveOptions, ServerCapabilities, ServerInfo, TextDocumentSync,
    TextDocumentSyncKind, TextDocumentSyncOptions, WorkDoneProgressOptions, WorkspaceFolders,
    WorkspaceFoldersServerCapabilities, WorkspaceOptions,
};

use super::{code_action, execute_command};
use crate::encoding::PositionEncoding;
use crate::server::Server;
use crate::server::client::ClientProfile;
use crate::server::convert::path_of;
use crate::server::sync::lock;
use crate::settings::{CompletionMenu, Settings};

/// After these a suggestion is worth having although no word was begun.
const TRIGGER_CHARACTERS: [&str; 12] = [".", ":", "(", "[", "{", ",", "=", " ", "\"", "'", "/", ">"];

/// Notes what the client can do and says what we can. Answers at once, whatever the model is doing.
pub(in crate::server) fn initialize(server: &Server, params: InitializeParams) -> InitializeResult {
    let profile = ClientProfile::new(&params);
    if let Some(process) = params.process_id.and_then(|id| u32::try_from(id).ok()) {
        let _ = server.editor_process.set(process);
    }
    lock(&server.workspace).folders = folders(&params);
    if server.assistant.uses_context() {
        server.surroundings.follow_documents();
    }
    let mut settings = Settings::default();
    if let Some(options) = params.initialization_options {
        // Its warnings come with those of the configuration, once the client listens.
        settings.merge(&options);
        let _ = server.initialization_options.set(options);
    }
    let capabilities = capabilities(&profile, &settings);
    server.assistant.set_ahead(settings.completion.ahead);
    *lock(&server.settings) = settings;
    let _ = server.profile.set(profile);
    InitializeResult {
        capabilities,
        server_info: Some(ServerInfo {
            name: "redstart".to_owned(),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        }),
    }
}

#[expect(deprecated, reason = "clients of the time before workspace folders send only the root")]
fn folders(params: &InitializeParams) -> Vec<std::path::PathBuf> {
    match &params.workspace_folders_initialize_params.workspace_folders {
        Some(WorkspaceFolders::WorkspaceFolderList(folders)) => {
            folders.iter().map(|folder| path_of(&folder.uri.0)).collect()
        }
        _ => params.root_uri.iter().map(|uri| path_of(&uri.0)).collect(),
    }
}

fn capabilities(client: &ClientProfile, settings: &Settings) -> ServerCapabilities {
    let menu = match settings.completion.menu {
        CompletionMenu::Auto => !client.inline_completion,
        CompletionMenu::On => true,
        CompletionMenu::Off => false,
    };
    ServerCapabilities {
        position_encoding: Some(match client.encoding {
            PositionEncoding::Utf8 => PositionEncodingKind::UTF8,
            PositionEncoding::Utf16 => PositionEncodingKind::UTF16,
            PositionEncoding::Utf32 => PositionEncodingKind::UTF32,
        }),
        text_document_sync: Some(TextDocumentSync::Options(TextDocumentSyncOptions {
            open_close: Some(true),
            change: Some(TextDocumentSyncKind::Incremental),
            save: Some(Save::SaveOptions(SaveOptions { include_text: Some(true) })),
            ..TextDocumentSyncOptions::default()
        })),
        inline_completion_provider: Some(InlineCompletionProvider::Bool(true)),
        completion_provider: menu.then(|| CompletionOptions {
            trigger_characters: Some(TRIGGER_CHARACTERS.map(str::to_owned).to_vec()),
            ..CompletionOptions::default()
        }),
        code_action_provider: Some(CodeActionProvider::CodeActionOptions(CodeActionOptions {
            code_action_kinds: Some(vec![
                CodeActionKind::QuickFix,
                CodeActionKind::Custom(code_action::REVIEW_KIND.into()),
            ]),
            resolve_provider: Some(true),
            ..CodeActionOptions::default()
        })),
        execute_command_provider: Some(ExecuteCommandOptions {
            commands: execute_command::COMMANDS.map(str::to_owned).to_vec(),
            work_done_progress_options: WorkDoneProgressOptions { work_done_progress: Some(true) },
        }),
        diagnostic_provider: client.pulls_diagnostics.then(|| {
            DiagnosticProvider::DiagnosticOptions(DiagnosticOptions {
                identifier: Some("redstart".to_owned()),
                inter_file_dependencies: false,
                workspace_diagnostics: false,
                ..DiagnosticOptions::default()
            })
        }),
        workspace: Some(WorkspaceOptions {
            workspace_folders: Some(WorkspaceFoldersServerCapabilities {
                supported: Some(true),
                change_notifications: Some(true.into()),
            }),
            ..WorkspaceOptions::default()
        }),
        ..ServerCapabilities::default()
    }
}
