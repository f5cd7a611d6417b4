//! Text and syntax around a caret, without a protocol and without a model.

pub mod language;
