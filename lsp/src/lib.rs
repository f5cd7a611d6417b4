//! Redstart's language server and command.
//!
//! [`server`] speaks LSP and owns the documents; [`assistant`] turns a document snapshot into a
//! suggestion or a review, by way of a prompt plugin and the engine. The protocol's types stay in
//! [`server`]; the assistant knows ropes and byte offsets only.

pub mod assistant;
pub mod document;
pub mod encoding;
pub mod model;
pub mod server;
pub mod settings;
pub mod snapshot;
