//! The model's life in the background: loading, ready, failed.

use std::sync::Arc;

use redstart_engine::generator::Generator;
use tokio::sync::watch;

/// Where the model stands.
#[derive(Clone)]
pub enum ModelState {
    /// Being loaded; `what` is for people: `loading Qwen2.5-Coder-1.5B-AWQ`.
    Loading {
        /// What is going on.
        what: String,
    },
    /// Ready to serve.
    Ready(Arc<LoadedModel>),
    /// Will not come; the message says why and what to do.
    Failed {
        /// For the user.
        message: String,
    },
}

/// A model that can serve, with what its directory says about prompts.
pub struct LoadedModel {
    /// Generates.
    pub generator: Arc<dyn Generator>,
    /// Chat template source, when the model has one; without it there are no reviews.
    pub chat_template: Option<String>,
}

impl LoadedModel {
    /// Whether the model can follow instructions; if not, why, in words for the user.
    pub fn can_review(&self) -> Result<(), String> {
        match self.chat_template {
            Some(_) => Ok(()),
            None => Err(format!(
                "{} completes code but cannot review it: it has no chat template. Point --model (or the setting \
                 `model`) at an instruct model's directory, such as Qwen2.5-Coder-7B-Instruct-AWQ.",
                self.generator.model().name
            )),
        }
    }
}

/// Follows the model's state; cloned freely.
pub type ModelWatch = watch::Receiver<ModelState>;
