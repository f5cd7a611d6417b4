//! Redstart's language server and command.
//!
//! [`server`] speaks LSP and owns the documents; [`assistant`] turns a document snapshot into a
//! suggestion ([`complete`]) or a review ([`review`]), by way of a prompt plugin and the engine. The
//! protocol's types stay in [`server`]; the assistant knows ropes and byte offsets only.
//! [`model`] is a model that serves, [`loader`] what loads it in the background.
//! [`record`] keeps, for those who want it, what became of suggestions.
//! [`commands`] are the subcommands of `redstart`.

mod ahead;
pub mod assistant;
pub mod backend;
pub mod chat;
pub mod client;
pub mod commands;
pub mod complete;
pub mod document;
pub mod embedded;
pub mod encoding;
mod generate;
pub mod loader;
pub mod model;
pub mod plugins;
mod power;
mod readers;
pub mod record;
pub mod review;
pub mod server;
pub mod settings;
pub mod snapshot;
pub mod typing;
pub mod window;
