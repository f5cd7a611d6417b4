//! The driver's library: found, new enough, started; or why not, in a sentence that says what to do.

use cudarc::driver::sys::{self, CUresult};

use super::error;

/// Why no card can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoCuda {
    /// There is no library of the driver.
    #[error("no NVIDIA driver library was found: install the NVIDIA driver to use a GPU")]
    NoDriver,
    /// The driver has no card to offer.
    #[error(
        "the NVIDIA driver reports no GPU: see whether `nvidia-smi` lists one and CUDA_VISIBLE_DEVICES hides it"
    )]
    NoDevice,
    /// The kernels, or this program, need a newer driver. Versions are CUDA's.
    #[error(
        "the NVIDIA driver supports CUDA {}.{}, these kernels need {}.{}: update the driver to {} or newer",
        driver.0, driver.1, needed.0, needed.1, driver_for(*needed)
    )]
    DriverTooOld {
        /// What the driver supports.
        driver: (u32, u32),
        /// What is needed.
        needed: (u32, u32),
    },
    /// Library and kernel module are of different versions, as after an update.
    #[error("the NVIDIA driver was updated while it was running: restart the machine")]
    DriverMismatch,
    /// The driver does not start.
    #[error("the NVIDIA driver does not start ({0}): see what `nvidia-smi` says")]
    DriverFails(String),
    /// The card is too old for the kernels.
    #[error(
        "{name} has compute capability {}.{}; Redstart needs 8.0 (Ampere) or newer",
        compute_capability.0, compute_capability.1
    )]
    UnsupportedCard {
        /// The card.
        name: String,
        /// Its compute capability.
        compute_capability: (u32, u32),
    },
    /// There are no kernels for the card, and nothing to compile them with.
    #[error(
        "this program has no kernels for {name} (compute capability {}.{}), and no NVRTC library was found to compile \
         them: install NVRTC {oldest_nvrtc} to {newest_nvrtc}.x (the Python package nvidia-cuda-nvrtc or the CUDA toolkit)",
        compute_capability.0, compute_capability.1
    )]
    NoKernels {
        /// The card.
        name: String,
        /// Its compute capability.
        compute_capability: (u32, u32),
        /// The oldest release of NVRTC that knows both the card and the language, such as `12.0`.
        oldest_nvrtc: String,
        /// The major release of the newest one whose code the driver takes.
        newest_nvrtc: u32,
    },
    /// The card that was asked for is not there.
    #[error("there is no GPU number {ordinal}: the NVIDIA driver reports {count}, counted from 0")]
    NoSuchCard {
        /// The number asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
}

/// The oldest driver that has all the functions used here.
const OLDEST: (u32, u32) = (12, 0);

/// The functions that are called. The bindings panic on the first call of one that is missing, so all are
/// looked up before any is called.
const FUNCTIONS: [&str; 44] = [
    "cuCtxGetStreamPriorityRange",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuDeviceGet",
    "cuDeviceGetAttribute",
    "cuDeviceGetCount",
    "cuDeviceGetName",
    "cuDevicePrimaryCtxRelease_v2",
    "cuDevicePrimaryCtxRetain",
    "cuDeviceTotalMem_v2",
    "cuDriverGetVersion",
    "cuEventCreate",
    "cuEventDestroy_v2",
    "cuEventElapsedTime",
    "cuEventQuery",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuFuncGetAttribute",
    "cuFuncSetAttribute",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuGraphDestroy",
    "cuGraphExecDestroy",
    "cuGraphInstantiateWithFlags",
    "cuGraphLaunch",
    "cuGraphUpload",
    "cuInit",
    "cuLaunchKernelEx",
    "cuMemAlloc_v2",
    "cuMemFreeHost",
    "cuMemFree_v2",
    "cuMemGetInfo_v2",
    "cuMemHostAlloc",
    "cuMemcpyDtoHAsync_v2",
    "cuMemcpyHtoDAsync_v2",
    "cuMemsetD8Async",
    "cuModuleGetFunction",
    "cuModuleLoadDataEx",
    "cuModuleUnload",
    "cuStreamBeginCapture_v2",
    "cuStreamCreateWithPriority",
    "cuStreamDestroy_v2",
    "cuStreamEndCapture",
    "cuStreamSynchronize",
];

/// Loads and starts the driver; returns the version of CUDA it supports. Cheap from the second call on.
pub(super) fn start() -> Result<(u32, u32), NoCuda> {
    use CUresult::*;
    // SAFETY: loading the driver's library runs its initialisers, which is what they are for.
    if !unsafe { sys::is_culib_present() } {
        return Err(NoCuda::NoDriver);
    }
    // SAFETY: the library was loaded a moment ago.
    let library = unsafe { sys::culib() };
    // SAFETY: the symbol is looked up, not called; its type does not matter.
    let has = |name: &str| unsafe { library.get::<*const ()>(name.as_bytes()) }.is_ok();
    if !has("cuDriverGetVersion") {
        return Err(NoCuda::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the function exists, wants a place for a number, and works before `cuInit`.
    let answer = unsafe { sys::cuDriverGetVersion(&mut version) };
    if answer == CUDA_ERROR_STUB_LIBRARY {
        return Err(NoCuda::NoDriver);
    }
    let driver = version_of(version);
    if answer == CUDA_SUCCESS && driver < OLDEST {
        return Err(NoCuda::DriverTooOld { driver, needed: OLDEST });
    }
    if let Some(missing) = FUNCTIONS.into_iter().find(|name| !has(name)) {
        return Err(NoCuda::DriverFails(format!("its library lacks {missing}")));
    }
    // SAFETY: the function exists; 0 is the only value of its flags.
    match unsafe { sys::cuInit(0) } {
        CUDA_SUCCESS if answer == CUDA_SUCCESS => Ok(driver),
        CUDA_ERROR_NO_DEVICE => Err(NoCuda::NoDevice),
        CUDA_ERROR_STUB_LIBRARY => Err(NoCuda::NoDriver),
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => Err(NoCuda::DriverMismatch),
        error => Err(NoCuda::DriverFails(error::describe(error))),
    }
}

/// (12, 4) of 12040.
fn version_of(number: i32) -> (u32, u32) {
    let number = u32::try_from(number).unwrap_or(0);
    (number / 1000, number % 1000 / 10)
}

/// The first branch of the driver that supports a release of CUDA.
fn driver_for(cuda: (u32, u32)) -> u32 {
    match cuda {
        (..=11, _) => 450,
        (12, 0) => 525,
        (12, 1) => 530,
        (12, 2) => 535,
        (12, 3) => 545,
        (12, 4) => 550,
        (12, 5) => 555,
        (12, 6 | 7) => 560,
        (12, 8) => 570,
        (12, _) => 575,
        _ => 580,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_the_driver_writes_them() {
        assert_eq!(version_of(12040), (12, 4));
        assert_eq!(version_of(13000), (13, 0));
        assert_eq!(version_of(11080), (11, 8));
    }

    #[test]
    fn every_function_that_is_called_is_looked_up_first() {
        let sources = [
            include_str!("cards.rs"),
            include_str!("context.rs"),
            include_str!("cuda_device.rs"),
            include_str!("error.rs"),
            include_str!("kernels.rs"),
            include_str!("library.rs"),
        ];
        let mut called: Vec<&str> = sources
            .iter()
            .flat_map(|source| source.split("sys::cu").skip(1))
            .filter_map(|rest| rest.split_once('(').map(|(name, _)| name))
            .filter(|name| name.starts_with(|c: char| c.is_ascii_uppercase()))
            .collect();
        called.sort_unstable();
        called.dedup();
        let names: Vec<&str> = FUNCTIONS.into_iter().filter_map(|name| name.strip_prefix("cu")).collect();
        assert_eq!(names, called);
    }

    #[test]
    fn an_old_driver_is_told_what_to_update_to() {
        let error = NoCuda::DriverTooOld { driver: (12, 4), needed: (13, 0) };
        assert_eq!(
            error.to_string(),
            "the NVIDIA driver supports CUDA 12.4, these kernels need 13.0: update the driver to 580 or newer"
        );
    }
}
