//! The crate as its caller sees it: a workspace in a temporary directory, an editor's events, chunks.

mod definitions;
mod hygiene;
mod index;
mod limits;
mod random;
mod sources;
mod support;
