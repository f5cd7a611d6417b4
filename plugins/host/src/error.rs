//! What can go wrong with a plugin, in words for its user.

use std::time::Duration;

/// Why a plugin could not be loaded or did not answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum PluginError {
    /// The sandbox itself could not be set up.
    #[error("the plugin sandbox cannot start: {0}")]
    Sandbox(String),
    /// The file is larger than any plugin should be.
    #[error("the plugin is {bytes} bytes; the limit is {limit}")]
    TooLarge {
        /// Its size.
        bytes: usize,
        /// [`crate::Limits::component_bytes`].
        limit: usize,
    },
    /// The file is something else, or damaged.
    #[error("not a WebAssembly component: {0}")]
    NotAComponent(String),
    /// It is written for another version of the contract, or for another contract.
    #[error("the plugin speaks {have}, this server speaks {wanted}")]
    Incompatible {
        /// The interface this server calls.
        wanted: String,
        /// What the plugin exports.
        have: String,
    },
    /// It asks for abilities that plugins do not have.
    #[error("plugins may not import anything, and this one imports {}; build it for wasm32-unknown-unknown, without WASI", .0.join(", "))]
    MissingImport(Vec<String>),
    /// The context is larger than what is passed to plugins.
    #[error("the context is {bytes} bytes; the limit for plugins is {limit}")]
    ContextTooLarge {
        /// Its size.
        bytes: usize,
        /// [`crate::Limits::input_bytes`].
        limit: usize,
    },
    /// The call took too long.
    #[error("the plugin did not answer within {} ms", .budget.as_millis())]
    Timeout {
        /// [`crate::Limits::deadline`].
        budget: Duration,
    },
    /// The plugin wanted more memory than it may have.
    #[error("the plugin needs more than {} MiB of memory", .limit >> 20)]
    OutOfMemory {
        /// [`crate::Limits::memory_bytes`].
        limit: usize,
    },
    /// The plugin's calls nest too deep.
    #[error("the plugin overflowed its stack")]
    StackOverflow,
    /// The answer is larger than what is accepted.
    #[error("the plugin's answer is larger than {limit} bytes")]
    OutputTooLarge {
        /// [`crate::Limits::output_bytes`].
        limit: usize,
    },
    /// The plugin crashed: a panic, or an illegal operation.
    #[error("the plugin crashed: {reason}")]
    Trap {
        /// What kind of trap.
        reason: String,
        /// The guest's call stack, one frame a line; for the plugin's author.
        backtrace: String,
    },
    /// The bytes that the plugin returned are not what the contract says.
    #[error("the plugin's answer cannot be read: {0}")]
    Malformed(String),
    /// The prompt cannot be used; says what is wrong with it.
    #[error("the plugin built a prompt that cannot be used: {0}")]
    BadPrompt(String),
    /// The answer cannot be used; says what is wrong with it.
    #[error("the plugin's answer cannot be used: {0}")]
    BadAnswer(String),
    /// The plugin itself says why it has no answer.
    #[error("{0}")]
    Returned(String),
    /// The plugin failed several times in a row and is not called any more.
    #[error("the plugin is suspended after {failures} failures in a row; the last: {last}")]
    Suspended {
        /// How many.
        failures: u32,
        /// Message of the last one.
        last: String,
    },
}

impl PluginError {
    /// Whether the plugin is to blame, so that it counts toward suspension. A plugin that says why it
    /// cannot answer is sound, and a context too large is the caller's doing.
    pub fn is_misbehaviour(&self) -> bool {
        !matches!(
            self,
            Self::Returned(_) | Self::ContextTooLarge { .. } | Self::Sandbox(_) | Self::Suspended { .. }
        )
    }
}
