//! `initialized`

use serde_json::Value;
use tower_lsp::gen_lsp_types::{ConfigurationItem, Registration};

use crate::server::sync::lock;
use crate::server::{Server, model_state, parent, surroundings};
use crate::settings::SECTION;

/// Starts what goes on for the whole session: settings, the model's state, the editor's life. Ends
/// with the session.
pub(in crate::server) async fn initialized(server: &Server) {
    tokio::join!(
        follow_settings(server),
        model_state::follow(server, server.assistant.model()),
        model_state::follow(server, server.assistant.reviewer()),
        watch_editor(server)
    );
}

async fn follow_settings(server: &Server) {
    if server.profile().configuration {
        pull_configuration(server).await;
    } else {
        server.configure(&Value::Null);
    }
    surroundings::index(server, lock(&server.workspace).folders.clone());
    register(server).await;
}

/// Asks to be told of changed settings and files, where the client takes such wishes.
async fn register(server: &Server) {
    let mut wishes = Vec::new();
    if server.profile().registers_watchers && server.assistant.uses_context() {
        wishes.push(Registration {
            id: "redstart/files".to_owned(),
            method: "workspace/didChangeWatchedFiles".to_owned(),
            register_options: Some(serde_json::json!({ "watchers": [{ "globPattern": "**/*" }] })),
        });
    }
    if server.profile().registers_configuration {
        wishes.push(Registration {
            id: "redstart/configuration".to_owned(),
            method: "workspace/didChangeConfiguration".to_owned(),
            register_options: Some(serde_json::json!({ "section": SECTION })),
        });
    }
    if wishes.is_empty() {
        return;
    }
    if let Err(error) = server.client.register_capability(wishes).await {
        tracing::warn!(%error, "the client will not say when settings or files change");
    }
}

/// Asks the client for its settings and takes them over.
pub(super) async fn pull_configuration(server: &Server) {
    let item = ConfigurationItem { scope_uri: None, section: Some(SECTION.to_owned()) };
    let section = match server.client.configuration(vec![item]).await {
        Ok(mut sections) if !sections.is_empty() => sections.swap_remove(0),
        Ok(_) => Value::Null,
        Err(error) => {
            tracing::warn!(%error, "the client did not answer workspace/configuration");
            Value::Null
        }
    };
    server.configure(&section);
}

async fn watch_editor(server: &Server) {
    if let Some(&editor) = server.editor_process.get() {
        parent::ended(editor, server.options.parent_poll).await;
        tracing::info!("the editor's process {editor} has ended");
        server.stop.notify_one();
    }
}
