//! Text and syntax around a caret, without a protocol and without a model.
//!
//! A suggestion goes through here twice. Before the model is asked: [`caret::Caret`] reads a bounded
//! window around the caret, [`trigger`] says whether a suggestion is welcome there, and [`scope`]
//! whether to ask for a line or a block. After that: [`stop::StopPolicy`] watches the text stream in
//! and says when there is enough, and [`shape::shape`] makes what was generated fit what is already
//! in the document.
//!
//! [`tree::SyntaxTree`] follows a document edit by edit, and [`function::enclosing_function`] finds
//! the function at the caret. Suggestions work without a tree: the text near the caret decides, so
//! that they work in a language without a grammar and in code that does not parse.
//!
//! Everything is pure: no I/O, no clock but the parser's time budget. Offsets are bytes, lines are zero-based, and line
//! ends are `\n`, `\r\n` and `\r` as in the Language Server Protocol.

mod brackets;
pub mod caret;
pub mod function;
pub mod language;
mod lexer;
mod memory;
mod repetition;
pub mod scope;
pub mod shape;
pub mod stop;
pub mod tree;
pub mod trigger;
