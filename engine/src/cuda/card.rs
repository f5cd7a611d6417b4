//! The machine's GPU, by way of the CUDA driver, where there are CUDA drivers.

use redstart_kernels::device::Device;

#[cfg(any(target_os = "linux", target_os = "windows"))]
pub use redstart_kernels::driver::{CardInfo, KernelOrigin, NoCuda, OpenError, Urgency, probe};
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
pub use without_driver::{CardInfo, KernelOrigin, NoCuda, OpenError, Urgency, probe};

/// Opens the card with the most free memory. `urgency` decides who goes first where two models share it.
///
/// # Errors
/// Why no card can be used, in a sentence for the user.
#[cfg(any(target_os = "linux", target_os = "windows"))]
pub fn open(urgency: Urgency) -> Result<Box<dyn Device>, OpenError> {
    use redstart_kernels::driver::{CudaDevice, DeviceChoice};
    let device = CudaDevice::open(DeviceChoice::MostFreeMemory, urgency)?;
    tracing::info!(card = device.card().name, kernels = ?device.card().kernels, "opened the GPU");
    Ok(Box::new(device))
}

/// As where there are drivers, except that there is none.
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
pub use without_driver::open;

#[cfg(not(any(target_os = "linux", target_os = "windows")))]
mod without_driver {
    use super::Device;

    /// Why no card can be used.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("there is no CUDA driver for this operating system")]
    pub struct NoCuda;

    /// Why no card was opened.
    pub type OpenError = NoCuda;

    /// A card that can be used.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CardInfo {
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
        /// NVRTC compiles them at the first start.
        Nvrtc(u32, u32),
    }

    /// Whose work goes first.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub enum Urgency {
        /// This one's.
        #[default]
        First,
        /// Everybody else's.
        Yields,
    }

    /// There is no card.
    ///
    /// # Errors
    /// Always.
    pub fn probe() -> Result<Vec<CardInfo>, NoCuda> {
        Err(NoCuda)
    }

    /// There is no card.
    ///
    /// # Errors
    /// Always.
    pub fn open(_: Urgency) -> Result<Box<dyn Device>, OpenError> {
        Err(NoCuda)
    }
}
