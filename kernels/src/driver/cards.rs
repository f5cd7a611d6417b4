//! The cards of this machine, and which of them can run the kernels.

use std::ffi::{CStr, c_char};

use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute};

use super::context::Context;
use super::error::check;
use super::library::{self, NoCuda};
use super::nvrtc;
use crate::card::{CardInfo, KernelOrigin};
use crate::device::{DeviceError, DeviceProperties};
use crate::image;

/// Which card to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The one with the most free memory.
    #[default]
    MostFreeMemory,
    /// The one with the driver's number.
    Ordinal(usize),
}

/// The cards that can be used, at least one. Makes no context on any.
///
/// # Errors
/// Why there is none: one sentence that says what to do. Where there are several cards and none can be used,
/// it is about the first.
pub fn probe() -> Result<Vec<CardInfo>, NoCuda> {
    let driver = library::start()?;
    let mut usable = Vec::new();
    let mut why_not = NoCuda::NoDevice;
    for ordinal in 0..count()? {
        match inspect(ordinal, driver) {
            Ok(card) => usable.push(card),
            Err(reason) if why_not == NoCuda::NoDevice => why_not = reason,
            Err(_) => {}
        }
    }
    if usable.is_empty() { Err(why_not) } else { Ok(usable) }
}

/// A chosen card that can be used, and the version of CUDA that its driver supports.
pub(super) fn choose(choice: DeviceChoice) -> Result<(CardInfo, (u32, u32)), NoCuda> {
    let driver = library::start()?;
    let card = match choice {
        DeviceChoice::Ordinal(ordinal) => {
            let count = count()?;
            if ordinal >= count {
                return Err(NoCuda::NoSuchCard { ordinal, count });
            }
            inspect(ordinal, driver)?
        }
        DeviceChoice::MostFreeMemory => {
            let mut cards = probe()?;
            let best = if cards.len() == 1 { 0 } else { most_free(&cards) };
            cards.swap_remove(best)
        }
    };
    Ok((card, driver))
}

/// The place of the card with the most free memory, the first one of several. Only a context knows.
fn most_free(cards: &[CardInfo]) -> usize {
    let free = |card: &CardInfo| {
        let device = handle(card.ordinal).ok()?;
        Some(Context::retain(device).ok()?.memory().ok()?.0)
    };
    let free: Vec<Option<u64>> = cards.iter().map(free).collect();
    (0..cards.len()).rev().max_by_key(|&place| free[place]).unwrap_or(0)
}

fn count() -> Result<usize, NoCuda> {
    let mut count = 0;
    // SAFETY: the driver has been started; the function wants a place for a number.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "the GPUs cannot be counted").map_err(fails)?;
    Ok(usize::try_from(count).unwrap_or(0))
}

fn fails(error: DeviceError) -> NoCuda {
    NoCuda::DriverFails(error.to_string())
}

/// The driver's handle of a card.
pub(super) fn handle(ordinal: usize) -> Result<CUdevice, DeviceError> {
    let mut device = 0;
    let number = i32::try_from(ordinal).unwrap_or(i32::MAX);
    // SAFETY: the driver has been started; the function wants a place for a number.
    check(unsafe { sys::cuDeviceGet(&mut device, number) }, "the GPU cannot be found")?;
    Ok(device)
}

/// What a card is and has.
pub(super) fn properties(device: CUdevice) -> Result<DeviceProperties, DeviceError> {
    use CUdevice_attribute::*;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the driver has been started and gave us the device; the function wants a place for a number.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }, "the GPU's properties")?;
        Ok::<u32, DeviceError>(u32::try_from(value).unwrap_or(0))
    };
    let mut name: [c_char; 256] = [0; 256];
    // SAFETY: as above; the function writes at most the length it is given, a zero at the end included.
    check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), 256, device) }, "the GPU's name")?;
    name[255] = 0;
    // SAFETY: the text ends with a zero, at the latest with the one just written.
    let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
    let mut memory = 0;
    // SAFETY: as above.
    check(unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) }, "the GPU's memory")?;
    Ok(DeviceProperties {
        name,
        compute_capability: (
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_memory_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)? as usize,
        shared_memory_per_multiprocessor: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR)?
            as usize,
        l2_bytes: attribute(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)? as usize,
        memory_bytes: memory as u64,
    })
}

fn inspect(ordinal: usize, driver: (u32, u32)) -> Result<CardInfo, NoCuda> {
    let card = properties(handle(ordinal).map_err(fails)?).map_err(fails)?;
    let embedded =
        image::toolkit().map(|toolkit| Embedded { toolkit, architectures: image::architectures() });
    let nvrtc = || nvrtc::find(driver.0).map(|library| library.version());
    let kernels = origin(&card.name, card.compute_capability, driver, embedded, nvrtc)?;
    Ok(CardInfo {
        ordinal,
        name: card.name,
        compute_capability: card.compute_capability,
        memory_bytes: card.memory_bytes,
        kernels,
    })
}

/// What the program was built with.
#[derive(Clone, Copy)]
struct Embedded<'a> {
    toolkit: (u32, u32),
    architectures: &'a [u32],
}

impl Embedded<'_> {
    /// Machine code of the same major number that is not newer than the card.
    fn has_code(self, card: (u32, u32)) -> bool {
        self.architectures.iter().any(|&code| code / 10 == card.0 && code % 10 <= card.1)
    }

    /// PTX of the newest architecture, which later cards can translate.
    fn has_ptx(self, card: (u32, u32)) -> bool {
        self.architectures.last().is_some_and(|&newest| newest <= card.0 * 10 + card.1)
    }
}

/// Where the kernels for a card come from. A driver takes machine code of toolkits of its own major release
/// and of earlier ones, PTX only of toolkits that are not newer than itself. `nvrtc` looks for a compiler library
/// that the driver goes with; it is asked only when it is needed.
fn origin(
    name: &str,
    card: (u32, u32),
    driver: (u32, u32),
    embedded: Option<Embedded<'_>>,
    nvrtc: impl FnOnce() -> Option<(u32, u32)>,
) -> Result<KernelOrigin, NoCuda> {
    if card < (8, 0) {
        return Err(NoCuda::UnsupportedCard { name: name.to_owned(), compute_capability: card });
    }
    if let Some(embedded) = embedded {
        let code = embedded.has_code(card) && embedded.toolkit.0 <= driver.0;
        let ptx = embedded.has_ptx(card) && embedded.toolkit <= driver;
        if code || ptx {
            return Ok(KernelOrigin::Embedded);
        }
    }
    if let Some((major, minor)) = nvrtc() {
        return Ok(KernelOrigin::Nvrtc(major, minor));
    }
    match embedded {
        Some(embedded) if embedded.has_code(card) || embedded.has_ptx(card) => {
            Err(NoCuda::DriverTooOld { driver, needed: embedded.toolkit })
        }
        _ => Err(NoCuda::NoKernels {
            name: name.to_owned(),
            compute_capability: card,
            oldest_nvrtc: if card < (10, 0) { "12.0" } else { "12.8" }.to_owned(),
            newest_nvrtc: driver.0,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CUDA_13: Embedded<'static> =
        Embedded { toolkit: (13, 0), architectures: &[80, 86, 89, 90, 100, 120] };

    fn origin_without_nvrtc(card: (u32, u32), driver: (u32, u32)) -> Result<KernelOrigin, NoCuda> {
        origin("Card", card, driver, Some(CUDA_13), || None)
    }

    #[test]
    #[expect(clippy::print_stdout, reason = "a skipped test says why")]
    fn where_there_is_no_driver_that_is_said() {
        // SAFETY: as where the library is loaded.
        if unsafe { sys::is_culib_present() } {
            return println!("skipped: this machine has a driver; it says {:?}", probe());
        }
        let error = probe().unwrap_err();
        assert_eq!(error, NoCuda::NoDriver);
        assert_eq!(
            error.to_string(),
            "no NVIDIA driver library was found: install the NVIDIA driver to use a GPU"
        );
        assert_eq!(choose(DeviceChoice::Ordinal(3)).unwrap_err(), NoCuda::NoDriver);
    }

    #[test]
    fn the_embedded_code_serves_the_cards_it_was_compiled_for_and_their_relatives() {
        for card in [(8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1)] {
            assert_eq!(origin_without_nvrtc(card, (13, 0)), Ok(KernelOrigin::Embedded), "{card:?}");
        }
    }

    #[test]
    fn later_cards_take_ptx_where_the_driver_is_no_older_than_the_toolkit() {
        assert_eq!(origin_without_nvrtc((13, 0), (13, 2)), Ok(KernelOrigin::Embedded));
        let newer = Embedded { toolkit: (13, 1), ..CUDA_13 };
        let refused = origin("Card", (13, 0), (13, 0), Some(newer), || None);
        assert_eq!(refused, Err(NoCuda::DriverTooOld { driver: (13, 0), needed: (13, 1) }));
        // Machine code of a later release of the same major is fine.
        assert_eq!(origin("Card", (9, 0), (13, 0), Some(newer), || None), Ok(KernelOrigin::Embedded));
    }

    #[test]
    fn an_old_driver_needs_an_update_or_a_compiler_of_its_age() {
        let refused = origin_without_nvrtc((8, 6), (12, 4)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "the NVIDIA driver supports CUDA 12.4, these kernels need 13.0: update the driver to 580 or newer"
        );
        let compiled = origin("Card", (8, 6), (12, 4), Some(CUDA_13), || Some((12, 4)));
        assert_eq!(compiled, Ok(KernelOrigin::Nvrtc(12, 4)));
    }

    #[test]
    fn a_card_before_ampere_is_refused_by_name() {
        let never = || -> Option<(u32, u32)> { unreachable!("a compiler does not help") };
        let refused = origin("Tesla T4", (7, 5), (13, 0), Some(CUDA_13), never).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "Tesla T4 has compute capability 7.5; Redstart needs 8.0 (Ampere) or newer"
        );
    }

    #[test]
    fn a_card_without_kernels_says_what_to_install() {
        let expected = "this program has no kernels for Thor (compute capability 11.0), and no NVRTC library was found to \
             compile them: install NVRTC 12.8 to 13.x (the Python package nvidia-cuda-nvrtc or the CUDA toolkit)";
        assert_eq!(
            origin("Thor", (11, 0), (13, 0), Some(CUDA_13), || None).unwrap_err().to_string(),
            expected
        );
        assert!(matches!(
            origin("Card", (9, 0), (13, 0), None, || None),
            Err(NoCuda::NoKernels { newest_nvrtc: 13, .. })
        ));
    }
}
