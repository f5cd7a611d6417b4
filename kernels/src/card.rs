//! What is said of a card, and to it. The driver behind it exists on some systems only; these types on all.

/// A card that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardInfo {
    /// The driver's number of it, from 0; CUDA_VISIBLE_DEVICES changes what is counted.
    pub ordinal: usize,
    /// Its name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Device memory in bytes, all of it.
    pub memory_bytes: u64,
    /// Where its kernels come from.
    pub kernels: KernelOrigin,
}

/// Where a card's kernels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelOrigin {
    /// They were compiled when the program was built.
    Embedded,
    /// NVRTC, the compiler library of this release, compiles them at the first start.
    Nvrtc(u32, u32),
}

/// Whose work goes first where several devices are on one card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Urgency {
    /// Blocks of this device's kernels start before those of others that wait.
    #[default]
    First,
    /// They start when nobody else's do.
    Yields,
}
