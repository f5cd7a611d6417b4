//! Redstart's engine: tokens in, tokens out.
//!
//! A [`Checkpoint`](checkpoint::Checkpoint) (a Hugging Face directory, or the same bytes embedded in
//! a binary) becomes a [`Backend`](backend::Backend): weights repacked for one device, a paged KV
//! cache, and one function that runs a [`StepPlan`](step_plan::StepPlan). One thread owns the backend
//! and runs the [`Scheduler`](scheduler::Scheduler): it batches sequences, splits long prompts into
//! chunks, reuses cached prefixes and streams tokens to whoever asked, through
//! [`Generator`](generator::Generator), the only thing the rest of Redstart sees.
//!
//! The words are the field's: block, block table, prefix index, sequence, step plan, prefill, decode.
//!
//! Where to read on, from the outside in:
//! - [`generator`], [`request`]: what callers see. [`tokenizer`]: text to ids, for prompts.
//! - [`engine`]: the thread. [`scheduler`]: who computes what next; pure, so that tests can drive it.
//! - [`block_pool`], [`prefix_index`]: the paged KV cache's accounts. A `Sequence` holds a block table.
//! - [`sampling`]: logits to a token; `exponentials` and `nucleus` are what it computes with.
//! - [`detokenizer`], [`stop`]: tokens to text that may be shown.
//! - [`backend`], [`step_plan`], [`step_output`]: what a device must do.
//! - [`synthetic`]: random weights in the shapes of real models, to measure speed with.
//! - [`inspect`]: log-probabilities and greedy tokens of bare token ids, for debugging a checkpoint.
//!
//! This crate knows no editor and no prompt.

mod admission;
pub mod awq;
pub mod backend;
pub mod block_pool;
pub mod checkpoint;
pub mod config;
pub mod cpu;
pub mod cuda;
pub mod detokenizer;
pub mod engine;
mod exponentials;
pub mod generator;
mod inbox;
pub mod inspect;
mod nucleus;
mod plan_check;
pub mod prefix_index;
pub mod request;
pub mod sampling;
pub mod scheduler;
mod sequence;
pub mod step_output;
pub mod step_plan;
pub mod stop;
pub mod synthetic;
mod token_stream;
pub mod tokenizer;
pub mod turns;

pub use sequence::SequenceId;
