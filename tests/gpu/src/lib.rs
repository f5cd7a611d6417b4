//! Checks and measures the CUDA backend on whatever [`Device`](redstart_kernels::device::Device) is at hand: a
//! card, by the `redstart-gpu` command, or the host shim, in the tests, so that the command is known to work before
//! it meets a card.
//!
//! - [`check`]: every kernel against its float64 reference.
//! - [`engine`]: whole models against reference log-probabilities and against the CPU backend.
//! - [`kernels`]: what each kernel reaches of what the card can do.

pub mod check;
pub mod engine;
pub mod kernels;
