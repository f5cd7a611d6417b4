//! The records of the contract as Rust types; `plugins/wit/prompt.wit` explains each field.

pub use bindings::exports::redstart::prompt::plugin::{
    Answer, ChatFrame, Context, Finding, Info, Model, Piece, Prompt, Segment, Snippet, Stability, Trim,
};

/// What wasmtime's `bindgen!` makes of the contract.
#[expect(missing_docs, reason = "generated; the documentation is that of the WIT file")]
pub(crate) mod bindings {
    wasmtime::component::bindgen!({
        path: "../wit",
        world: "prompt-plugin",
        additional_derives: [PartialEq],
    });
}
