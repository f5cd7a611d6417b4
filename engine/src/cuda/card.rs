//! The machine's GPU, by way of the CUDA driver, where there are CUDA drivers.

pub use redstart_kernels::card::{CardInfo, KernelOrigin, Urgency};
use redstart_kernels::device::Device;

#[cfg(any(target_os = "linux", target_os = "windows"))]
pub use redstart_kernels::driver::{NoCuda, OpenError, probe};
#[cfg(not(any(target_os = "linux", target_os = "windows")))]
pub use without_driver::{NoCuda, OpenError, probe};

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
    use super::{CardInfo, Device, Urgency};

    /// Why no card can be used.
    #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
    #[error("there is no CUDA driver for this operating system")]
    pub struct NoCuda;

    /// Why no card was opened.
    pub type OpenError = NoCuda;

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
