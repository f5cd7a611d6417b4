//! `redstart/status`: where the model stands.

use serde::Serialize;
use tower_lsp::jsonrpc::Result;

use crate::model::ModelState;
use crate::server::Server;

/// The model's state.
#[derive(Serialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", tag = "state")]
pub(in crate::server) enum Status {
    /// On its way.
    Loading { message: String },
    /// Serving.
    Ready {
        model: String,
        description: String,
        max_model_len: usize,
        /// Why it cannot review; absent if it can.
        #[serde(skip_serializing_if = "Option::is_none")]
        no_reviews: Option<String>,
    },
    /// Not coming.
    Failed { message: String },
}

/// Says where the model stands.
pub(in crate::server) async fn status(server: &Server) -> Result<Status> {
    Ok(match &*server.assistant.model().borrow() {
        ModelState::Loading { what } => Status::Loading { message: what.clone() },
        ModelState::Failed { message } => Status::Failed { message: message.clone() },
        ModelState::Ready(model) => {
            let info = model.generator.model();
            Status::Ready {
                model: info.name.clone(),
                description: info.description.clone(),
                max_model_len: info.max_model_len,
                no_reviews: model.can_review().err(),
            }
        }
    })
}
