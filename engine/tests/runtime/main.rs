//! The engine's runtime (scheduler, prefix cache, streams, thread) over a toy backend, and its tokenizer.

mod ahead;
mod inspect;
mod lifecycle;
mod property;
mod scheduling;
mod tokenizer;
mod toy_backend;
