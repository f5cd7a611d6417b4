//! Prompt plugins: WebAssembly components that turn what the editor knows into a prompt, and what the
//! model wrote into items.
//!
//! The contract is `plugins/wit/prompt.wit`; its records are Rust types in [`prompt`]. The way of a
//! request through this crate:
//!
//! 1. [`PluginHost`] compiles a plugin once ([`PluginHost::load`]) and refuses what does not keep to
//!    the contract: another version, imports of any kind, a file that is no component.
//! 2. [`Plugin::build_on`] calls it in a fresh instance, on a thread of the host's own ([`Plugin::run`]), within limits of
//!    time, memory, stack and output ([`Limits`]). Whatever goes wrong is a [`PluginError`]; the caller
//!    then uses the [`builtin`] prompt. A plugin that keeps failing is suspended.
//! 3. [`Assembler`] orders the prompt's segments by stability, cuts them to the token budget in blocks
//!    that do not move with every keystroke, and tokenizes what it has not seen before. Control tokens
//!    come from control pieces alone; text cannot spell one.
//! 4. [`Plugin::finish`] shapes the model's raw text.
//!
//! This crate knows no model: tokens come from whatever implements [`Tokenize`].

pub mod assemble;
pub mod builtin;
mod check;
mod compiled_cache;
mod error;
mod host;
mod plugin;
pub mod prompt;
pub mod shipped;
mod ticker;
mod workers;

pub use assemble::{AssembleError, Assembled, Assembler, Budget, Tokenize};
pub use error::PluginError;
pub use host::{Limits, PluginHost};
pub use plugin::Plugin;
pub use workers::{GuestThread, Outcome};
