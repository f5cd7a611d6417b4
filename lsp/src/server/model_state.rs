//! Telling the user where a model stands.

use std::time::Duration;

use tower_lsp::gen_lsp_types::MessageType;

use super::Server;
use super::progress::Progress;
use crate::model::{ModelState, ModelWatch};

/// A model that is ready sooner is not announced.
const PATIENCE: Duration = Duration::from_millis(500);

/// Shows loading as progress and failure as a message, for as long as the session lasts.
pub(super) async fn follow(server: &Server, model: &ModelWatch) {
    let mut states = model.clone();
    let mut progress: Option<Progress> = None;
    let mut last_failure = None;
    loop {
        let state = states.borrow_and_update().clone();
        match state {
            ModelState::Loading { what } => match &progress {
                Some(progress) => progress.report(&what),
                None => {
                    if let Ok(changed) = tokio::time::timeout(PATIENCE, states.changed()).await {
                        if changed.is_err() {
                            return;
                        }
                        continue;
                    }
                    progress = Some(show_loading(server, &what));
                }
            },
            ModelState::Ready(model) => {
                for warning in &model.warnings {
                    server.outbox.show(MessageType::Warning, format!("Redstart: {warning}"));
                }
                let model = model.generator.model();
                let message = format!("{} is ready: {}", model.name, model.description);
                if let Some(progress) = progress.take() {
                    progress.end(&message);
                }
                server.outbox.log(MessageType::Info, message);
                last_failure = None;
            }
            ModelState::Failed { message } => {
                drop(progress.take());
                if last_failure.as_ref() != Some(&message) {
                    server.outbox.show(MessageType::Error, format!("Redstart: {message}"));
                }
                last_failure = Some(message);
            }
            ModelState::Unset => {
                drop(progress.take());
                last_failure = None;
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn show_loading(server: &Server, what: &str) -> Progress {
    if !server.profile().progress {
        server.outbox.show(MessageType::Info, format!("Redstart: {what}"));
    }
    server.progress.start(server.progress_channel(), "Redstart", what, false).0
}
