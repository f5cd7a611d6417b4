//! LSP sessions between a small editor and the server, in this process.

mod actions;
mod context;
mod lifecycle;
mod malformed;
mod ordering;
mod scripted;
mod session;
mod settings;
mod suggestions;
mod sync;
mod typing;

use serde_json::{Value, json};

/// What VS Code (languageclient 10) says, as far as it matters here.
fn vscode() -> Value {
    json!({
        "general": { "positionEncodings": ["utf-16"] },
        "window": { "workDoneProgress": true },
        "workspace": {
            "configuration": true,
            "didChangeConfiguration": { "dynamicRegistration": true },
            "workspaceEdit": { "documentChanges": true },
            "diagnostics": { "refreshSupport": true },
        },
        "textDocument": {
            "inlineCompletion": { "dynamicRegistration": true },
            "completion": { "contextSupport": true },
            "diagnostic": { "dynamicRegistration": true },
            "codeAction": {
                "dataSupport": true,
                "disabledSupport": true,
                "resolveSupport": { "properties": ["edit"] },
                "tagSupport": { "valueSet": [1] },
            },
        },
    })
}

/// What Neovim 0.12 says.
fn neovim() -> Value {
    json!({
        "general": { "positionEncodings": ["utf-8", "utf-16", "utf-32"] },
        "window": { "workDoneProgress": true },
        "workspace": {
            "configuration": true,
            "didChangeConfiguration": { "dynamicRegistration": false },
            "workspaceEdit": { "resourceOperations": ["rename"] },
        },
        "textDocument": {
            "inlineCompletion": { "dynamicRegistration": false },
            "diagnostic": { "dynamicRegistration": false },
            "codeAction": {
                "dataSupport": true,
                "disabledSupport": true,
                "resolveSupport": { "properties": ["edit", "command"] },
            },
        },
    })
}

/// What Helix 25.07 says.
fn helix() -> Value {
    json!({
        "general": { "positionEncodings": ["utf-8", "utf-32", "utf-16"] },
        "window": { "workDoneProgress": true },
        "workspace": {
            "configuration": true,
            "didChangeConfiguration": { "dynamicRegistration": false },
            "workspaceEdit": { "documentChanges": true },
        },
        "textDocument": {
            "completion": { "completionItem": { "snippetSupport": true } },
            "codeAction": {
                "dataSupport": true,
                "disabledSupport": true,
                "resolveSupport": { "properties": ["edit", "command"] },
            },
        },
    })
}
