//! The language server: LSP on one side, documents and the [`Assistant`] on the other.
//!
//! [`serve`] runs one session over any pair of byte streams. Messages are taken in order by
//! [`main_loop`]; each method has a file under `requests/` or `notifications/`. A handler does what
//! must be in order (apply an edit, take a snapshot) before its first `await` and the rest after it;
//! when the client cancels a request, its handler's future is dropped and the work stops with it.

mod client;
mod convert;
mod feedback;
mod findings;
mod frames;
mod main_loop;
mod model_state;
mod notifications;
mod outbox;
mod parent;
mod progress;
mod requests;
mod settle;
mod surroundings;
mod sync;
mod workspace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tower_lsp::gen_lsp_types::{
    InitializeParams, InitializeResult, InitializedParams, MessageType, PublishDiagnosticsNotification,
    PublishDiagnosticsParams, Uri,
};
use tower_lsp::{Client, LanguageServer, LspService, LspServiceBuilder, jsonrpc};

use self::client::ClientProfile;
use self::main_loop::Arrival;
use self::outbox::Outbox;
use self::progress::{Channel, ProgressBoard};
use self::surroundings::Surroundings;
use self::sync::{Background, lock};
use self::workspace::Workspace;
use crate::assistant::Assistant;
use crate::settings::Settings;

/// Hears of the user's settings.
pub type OnSettings = Box<dyn Fn(&Settings) + Send + Sync>;

/// How to run a session.
pub struct ServeOptions {
    /// Called with the user's settings once they are known, and again whenever they change.
    pub on_settings: Option<OnSettings>,
    /// How often to look whether the editor's process still lives.
    pub parent_poll: Duration,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { on_settings: None, parent_poll: Duration::from_secs(3) }
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The client sent `exit`.
    Exit,
    /// The client closed its side.
    EndOfInput,
    /// The client no longer reads.
    EndOfOutput,
    /// The editor's process has ended.
    ParentEnded,
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Why.
    pub reason: Reason,
    /// Whether the client had asked for `shutdown`, as it should.
    pub shut_down: bool,
}

impl Ended {
    /// The exit code that LSP asks for: 0 after `shutdown`, otherwise 1.
    pub fn exit_code(self) -> u8 {
        u8::from(!self.shut_down)
    }
}

/// Runs one session until the client exits, closes its stream or dies. All work of the session has
/// stopped when this returns.
///
/// The caller of a server on stdin should end the process then: a blocked read of stdin would keep
/// the runtime from shutting down.
pub async fn serve(
    input: impl AsyncRead + Unpin + Send + 'static,
    output: impl AsyncWrite + Unpin + Send + 'static,
    assistant: Arc<Assistant>,
    options: ServeOptions,
) -> Ended {
    let (outbox, writer) = Outbox::new();
    let shut_down = Arc::new(AtomicBool::new(false));
    let stop = Arc::new(Notify::new());
    let record = Arc::new(Mutex::new(feedback::Record::default()));
    let workspace = Arc::new(Mutex::new(Workspace::default()));
    let arrival = Arrival::default();
    let builder = LspService::build_with_lifecycle_methods(|client| Server {
        assistant,
        options,
        progress: ProgressBoard::new(client.clone(), outbox.clone()),
        client,
        outbox: outbox.clone(),
        arrival: arrival.clone(),
        profile: OnceLock::new(),
        editor_process: OnceLock::new(),
        initialization_options: OnceLock::new(),
        settings: Arc::default(),
        settings_warning: Mutex::default(),
        workspace: Arc::clone(&workspace),
        surroundings: Surroundings::default(),
        record: Arc::clone(&record),
        shut_down: Arc::clone(&shut_down),
        background: Background::default(),
        stop: Arc::clone(&stop),
    });
    let (service, socket) = with_methods(builder).finish();
    let reason = main_loop::run(service, socket, input, output, (outbox, writer), &arrival, &stop).await;
    // Work on threads of their own may keep the documents a little longer.
    lock(&workspace).documents.iter().for_each(|document| document.typing().abandon());
    feedback::close(&record).await;
    Ended { reason, shut_down: shut_down.load(Ordering::Relaxed) }
}

/// Every method besides those of the life cycle. Whatever is not here is answered with
/// `MethodNotFound`.
fn with_methods(builder: LspServiceBuilder<Server>) -> LspServiceBuilder<Server> {
    builder
        .custom_method("textDocument/didOpen", notifications::did_open::did_open)
        .custom_method("textDocument/didChange", notifications::did_change::did_change)
        .custom_method("textDocument/didClose", notifications::did_close::did_close)
        .custom_method("textDocument/didSave", notifications::did_save::did_save)
        .custom_method(
            "workspace/didChangeConfiguration",
            notifications::did_change_configuration::did_change_configuration,
        )
        .custom_method(
            "workspace/didChangeWatchedFiles",
            notifications::did_change_watched_files::did_change_watched_files,
        )
        .custom_method(
            "workspace/didChangeWorkspaceFolders",
            notifications::did_change_workspace_folders::did_change_workspace_folders,
        )
        .custom_method(
            "textDocument/didShowCompletion",
            notifications::completion_feedback::did_show_completion,
        )
        .custom_method(
            "textDocument/didPartiallyAcceptCompletion",
            notifications::completion_feedback::did_partially_accept_completion,
        )
        .custom_method("textDocument/didFocus", notifications::completion_feedback::did_focus)
        .custom_method(
            "window/workDoneProgress/cancel",
            notifications::work_done_progress_cancel::work_done_progress_cancel,
        )
        .custom_method("textDocument/inlineCompletion", requests::inline_completion::inline_completion)
        .custom_method("textDocument/completion", requests::completion::completion)
        .custom_method("textDocument/codeAction", requests::code_action::code_action)
        .custom_method("codeAction/resolve", requests::code_action_resolve::code_action_resolve)
        .custom_method("textDocument/diagnostic", requests::diagnostic::diagnostic)
        .custom_method("workspace/executeCommand", requests::execute_command::execute_command)
        .custom_method("redstart/viewFileText", requests::view_file_text::view_file_text)
        .custom_method("redstart/lastSuggestion", requests::last_suggestion::last_suggestion)
        .custom_method("redstart/typingStats", requests::typing_stats::typing_stats)
        .custom_method("redstart/status", requests::status::status)
}

/// One session.
struct Server {
    assistant: Arc<Assistant>,
    options: ServeOptions,
    client: Client,
    outbox: Outbox,
    arrival: Arrival,
    progress: ProgressBoard,
    /// Set by `initialize`, which comes before everything that reads it.
    profile: OnceLock<ClientProfile>,
    editor_process: OnceLock<u32>,
    initialization_options: OnceLock<Value>,
    settings: Arc<Mutex<Settings>>,
    settings_warning: Mutex<String>,
    workspace: Arc<Mutex<Workspace>>,
    surroundings: Surroundings,
    record: Arc<Mutex<feedback::Record>>,
    shut_down: Arc<AtomicBool>,
    background: Background,
    stop: Arc<Notify>,
}

impl LanguageServer for Server {
    async fn initialize(&self, params: InitializeParams) -> jsonrpc::Result<InitializeResult> {
        Ok(requests::initialize::initialize(self, params))
    }

    async fn initialized(&self, _: InitializedParams) {
        notifications::initialized::initialized(self).await;
    }

    async fn shutdown(&self) -> jsonrpc::Result<()> {
        self.shut_down.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Server {
    fn profile(&self) -> &ClientProfile {
        self.profile.get_or_init(ClientProfile::default)
    }

    fn settings(&self) -> Settings {
        lock(&self.settings).clone()
    }

    /// Works out the settings anew with `section` from the editor's configuration on top.
    fn configure(&self, section: &Value) {
        let mut settings = Settings::default();
        let mut problems = Vec::new();
        if let Some(options) = self.initialization_options.get() {
            problems.extend(settings.merge(options));
        }
        problems.extend(settings.merge(section));
        problems.dedup();
        self.warn_of_settings(&problems);
        self.assistant.set_ahead(settings.completion.ahead);
        feedback::configure(self, &settings);
        let before = std::mem::replace(&mut *lock(&self.settings), settings.clone());
        if before.completion.context != settings.completion.context {
            surroundings::index(self, lock(&self.workspace).folders.clone());
            for document in lock(&self.workspace).documents.iter() {
                settle::opened(self, document);
            }
        }
        if let Some(on_settings) = &self.options.on_settings {
            on_settings(&settings);
        }
    }

    /// Shows what is wrong with the settings, once for as long as it stays the same.
    fn warn_of_settings(&self, problems: &[String]) {
        let warning = problems.join("; ");
        let mut shown = lock(&self.settings_warning);
        if !warning.is_empty() && *shown != warning {
            let message = format!("Redstart settings: {warning}. The rest is in effect.");
            self.outbox.show(MessageType::Warning, message);
        }
        *shown = warning;
    }

    /// How to show the progress of work that we start ourselves.
    fn progress_channel(&self) -> Channel {
        if self.profile().progress { Channel::Offered } else { Channel::Silent }
    }

    /// Sends the findings of a document, if the client does not ask for them itself. Called with the
    /// lock held, so that what is sent last is what holds.
    fn publish(&self, workspace: &Workspace, uri: &str) {
        if self.profile().pulls_diagnostics {
            return;
        }
        let document = workspace.documents.get(uri);
        let diagnostics = document.map_or_else(Vec::new, |document| {
            let text = &document.snapshot().text;
            let findings = workspace.findings.of(uri).iter();
            findings.map(|held| convert::diagnostic(held, text, self.profile().encoding)).collect()
        });
        self.outbox.notify::<PublishDiagnosticsNotification>(PublishDiagnosticsParams {
            uri: Uri(uri.to_owned()),
            version: document.map(|document| document.snapshot().version),
            diagnostics,
        });
    }

    /// Asks a client that pulls diagnostics to do so again, since they changed without an edit.
    fn refresh_diagnostics(&self) {
        if self.profile().pulls_diagnostics {
            let client = self.client.clone();
            self.background.spawn(async move {
                if let Err(error) = client.workspace_diagnostic_refresh().await {
                    tracing::debug!(%error, "the client did not refresh its diagnostics");
                }
            });
        }
    }
}
