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
        /// The model for reviews, where it is another one and it is there.
        #[serde(skip_serializing_if = "Option::is_none")]
        review_model: Option<String>,
        /// Why there are no reviews; absent if there are.
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
        ModelState::Unset => Status::Failed { message: "no model was asked for".to_owned() },
        ModelState::Ready(model) => {
            let info = model.generator.model();
            Status::Ready {
                model: info.name.clone(),
                description: info.description.clone(),
                max_model_len: info.max_model_len,
                review_model: server
                    .assistant
                    .reviewer()
                    .borrow()
                    .ready()
                    .ok()
                    .map(|reviewer| reviewer.generator.model().name.clone()),
                no_reviews: server.assistant.ready_to_review().err(),
            }
        }
    })
}
