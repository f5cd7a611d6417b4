//! The CUDA driver as a [`Device`](crate::device::Device).
//!
//! Nothing here links to CUDA: the driver's library is looked for when it is first asked for, and where there
//! is none, [`probe`] says so. What a machine has, and why it cannot be used, is known without making a context
//! on a card.
//!
//! - `library`: the driver's library, found and started, or the reason why not.
//! - `cards`: the cards, and which of them can run the kernels.
//! - `kernels`: where a card's kernels come from, and loading them.
//! - `nvrtc`, `cache`: compiling the sources on a user's machine, once.
//! - `context`, `error`: a card's primary context; the driver's errors as ours.
//! - `cuda_device`: the launch interface.

mod cache;
mod cards;
mod context;
mod cuda_device;
mod error;
mod kernels;
mod library;
mod nvrtc;

pub use cards::{DeviceChoice, probe};
pub use cuda_device::{CudaDevice, OpenError};
pub use library::NoCuda;
