//! The driver's errors as the launch interface's.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::{self, CUresult};

use crate::device::DeviceError;

/// Turns a result of the driver into ours; `doing` says in a few words what failed.
pub(super) fn check(result: CUresult, doing: &str) -> Result<(), DeviceError> {
    if result == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    if is_loss(result) {
        return Err(DeviceError::Lost(format!("{doing}: {}", name(result))));
    }
    Err(DeviceError::Failed(format!("{doing}: {}", describe(result))))
}

/// Whether nothing works on the card any more: a kernel faulted, which makes every later call of this process
/// fail, or the hardware did.
fn is_loss(result: CUresult) -> bool {
    use CUresult::*;
    matches!(
        result,
        CUDA_ERROR_DEINITIALIZED
            | CUDA_ERROR_ECC_UNCORRECTABLE
            | CUDA_ERROR_NVLINK_UNCORRECTABLE
            | CUDA_ERROR_CONTAINED
            | CUDA_ERROR_ILLEGAL_ADDRESS
            | CUDA_ERROR_LAUNCH_TIMEOUT
            | CUDA_ERROR_CONTEXT_IS_DESTROYED
            | CUDA_ERROR_ASSERT
            | CUDA_ERROR_HARDWARE_STACK_ERROR
            | CUDA_ERROR_ILLEGAL_INSTRUCTION
            | CUDA_ERROR_MISALIGNED_ADDRESS
            | CUDA_ERROR_INVALID_ADDRESS_SPACE
            | CUDA_ERROR_INVALID_PC
            | CUDA_ERROR_LAUNCH_FAILED
            | CUDA_ERROR_TENSOR_MEMORY_LEAK
            | CUDA_ERROR_EXTERNAL_DEVICE
            | CUDA_ERROR_UNKNOWN
    )
}

/// The driver's name of an error, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
pub(super) fn name(result: CUresult) -> String {
    // SAFETY: the library is loaded, for it gave the result; the function wants a place for a pointer.
    text(|place| unsafe { sys::cuGetErrorName(result, place) })
        .unwrap_or_else(|| format!("CUDA error {}", result as u32))
}

/// Name and explanation.
pub(super) fn describe(result: CUresult) -> String {
    // SAFETY: as in `name`.
    match text(|place| unsafe { sys::cuGetErrorString(result, place) }) {
        Some(explanation) => format!("{} ({explanation})", name(result)),
        None => name(result),
    }
}

fn text(ask: impl FnOnce(*mut *const c_char) -> CUresult) -> Option<String> {
    let mut text = std::ptr::null();
    if ask(&mut text) != CUresult::CUDA_SUCCESS || text.is_null() {
        return None;
    }
    // SAFETY: the driver's texts are constants that end with a zero.
    Some(unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
}
