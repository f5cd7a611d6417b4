//! The plugins that come with Redstart, compiled. `cargo xtask plugins` rebuilds them.

/// Fill-in-the-middle completion.
pub const COMPLETE: &[u8] = include_bytes!("../../guests/built/complete.wasm");

/// Review of a function, for models that can chat.
pub const REVIEW: &[u8] = include_bytes!("../../guests/built/review.wasm");
