//! A card's primary context, which all code of a process shares.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUcontext, CUdevice};

use super::error::check;
use crate::device::DeviceError;

thread_local! {
    /// The context that this crate made current on the thread; 0 for none. Numbers and not handles, because the
    /// driver may give a released context's handle to the next.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A hold on a card's primary context. The driver keeps the context until the last hold is gone.
pub(super) struct Context {
    device: CUdevice,
    handle: CUcontext,
    number: u64,
}

// SAFETY: a context belongs to the process; the driver lets any thread use it and locks by itself.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Takes hold of it. The first hold makes it, which takes a moment and some hundred megabytes.
    pub(super) fn retain(device: CUdevice) -> Result<Arc<Self>, DeviceError> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let mut handle = std::ptr::null_mut();
        // SAFETY: the driver has been started and gave us the device.
        let result = unsafe { sys::cuDevicePrimaryCtxRetain(&mut handle, device) };
        check(result, "the GPU cannot be opened")?;
        Ok(Arc::new(Self { device, handle, number: NEXT.fetch_add(1, Ordering::Relaxed) }))
    }

    /// Makes it current on the calling thread; almost free when it is.
    pub(super) fn bind(&self) -> Result<(), DeviceError> {
        if CURRENT.get() == self.number {
            return Ok(());
        }
        // SAFETY: we hold the context.
        check(unsafe { sys::cuCtxSetCurrent(self.handle) }, "the GPU's context cannot be used")?;
        CURRENT.set(self.number);
        Ok(())
    }

    /// Bytes of device memory that are free, and all there are.
    pub(super) fn memory(&self) -> Result<(u64, u64), DeviceError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the context is current; the function wants two places for numbers.
        let result = unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        check(result, "the GPU's free memory cannot be read")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        if CURRENT.get() == self.number {
            CURRENT.set(0);
            // SAFETY: no context is always a good context to have. The one below may be gone in a moment.
            unsafe { sys::cuCtxSetCurrent(std::ptr::null_mut()) };
        }
        // SAFETY: this gives back the hold that `retain` took. An error means that the driver is going away.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}
