//! A card's kernels: where they come from, and all of them loaded.

use std::collections::HashMap;
use std::ffi::{CString, c_void};

use cudarc::driver::sys::{self, CUfunction, CUfunction_attribute, CUjit_option, CUmodule, CUresult};

use super::cache::{self, Cache};
use super::error::{check, describe};
use super::nvrtc::{self, CompiledSource, Nvrtc, Target};
use crate::card::{CardInfo, KernelOrigin};
use crate::device::DeviceError;
use crate::image::{self, Source};

/// The kernels of a context, ready to launch. The driver loads a kernel's code when it is first asked for by
/// name, so they all are, here: nothing is left to the first request.
pub(super) struct Kernels {
    functions: HashMap<String, Function>,
    modules: Vec<CUmodule>,
}

/// A loaded kernel.
#[derive(Clone, Copy)]
pub(super) struct Function {
    /// The driver's handle, good while its module is loaded.
    pub(super) handle: CUfunction,
    /// The bytes of its parameter block.
    pub(super) parameter_bytes: usize,
    /// The most threads a block may have.
    pub(super) threads: u32,
    /// The dynamic shared memory in bytes that it may be launched with.
    pub(super) shared_bytes: usize,
}

impl Kernels {
    /// Loads the kernels of a card into the current context. `shared_bytes` is what the card can give a block.
    pub(super) fn load(card: &CardInfo, shared_bytes: usize) -> Result<Self, DeviceError> {
        let mut kernels = Self { functions: HashMap::new(), modules: Vec::new() };
        match card.kernels {
            KernelOrigin::Embedded => {
                for module in image::embedded() {
                    let names = module.kernels.iter().map(|kernel| (kernel.name, kernel.parameter_bytes));
                    kernels.add(module.name, module.image, names, shared_bytes)?;
                }
            }
            KernelOrigin::Nvrtc(major, minor) => {
                let gone = || DeviceError::Failed(format!("NVRTC {major}.{minor} is not there any more"));
                let nvrtc = nvrtc::find(major).ok_or_else(gone)?;
                let sources: Vec<Source> = image::units().collect();
                let compiled =
                    compile_all(nvrtc, &sources, card.compute_capability, Cache::of_user().as_ref())
                        .map_err(DeviceError::Failed)?;
                for (source, compiled) in sources.iter().zip(&compiled) {
                    let names = compiled.kernels.iter().map(|entry| (&*entry.name, entry.parameter_bytes));
                    kernels.add(source.name, &compiled.image, names, shared_bytes)?;
                }
            }
        }
        Ok(kernels)
    }

    /// A kernel by its name in the sources.
    pub(super) fn get(&self, name: &str) -> Option<&Function> {
        self.functions.get(name)
    }

    /// Loads an image: a fat binary, machine code, or PTX with a zero at the end.
    fn add<'a>(
        &mut self,
        what: &str,
        image: &[u8],
        kernels: impl Iterator<Item = (&'a str, usize)>,
        shared_bytes: usize,
    ) -> Result<(), DeviceError> {
        let module = load_module(what, image)?;
        self.modules.push(module);
        for (name, parameter_bytes) in kernels {
            let function = resolve(module, name, parameter_bytes, shared_bytes)?;
            self.functions.insert(name.to_owned(), function);
        }
        Ok(())
    }
}

impl Drop for Kernels {
    /// The owner has made the context current and waited for what was started.
    fn drop(&mut self) {
        for &module in &self.modules {
            // SAFETY: loaded here, unloaded once; the functions go with us.
            unsafe { sys::cuModuleUnload(module) };
        }
    }
}

fn load_module(what: &str, image: &[u8]) -> Result<CUmodule, DeviceError> {
    const LOG_BYTES: usize = 8192;
    let mut log = vec![0u8; LOG_BYTES];
    let mut options =
        [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
    // The second value is a number in a pointer's place; the driver writes there how much of the buffer it used.
    let mut values = [log.as_mut_ptr().cast::<c_void>(), std::ptr::without_provenance_mut(LOG_BYTES)];
    let mut module = std::ptr::null_mut();
    // SAFETY: a context is current. The image tells its length by its own headers (PTX by the zero at its end);
    // options and values are two each, and the buffer is as long as the second says.
    let result = unsafe {
        sys::cuModuleLoadDataEx(
            &mut module,
            image.as_ptr().cast(),
            2,
            options.as_mut_ptr(),
            values.as_mut_ptr(),
        )
    };
    if matches!(
        result,
        CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
    ) {
        let log = String::from_utf8_lossy(&log);
        let log = log.trim_end_matches('\0').trim();
        return Err(DeviceError::Failed(format!(
            "the driver does not take the kernels of {what} for this card: {} {log}",
            describe(result)
        )));
    }
    check(result, &format!("the kernels of {what} cannot be loaded"))?;
    Ok(module)
}

fn resolve(
    module: CUmodule,
    name: &str,
    parameter_bytes: usize,
    shared_bytes: usize,
) -> Result<Function, DeviceError> {
    let doing = format!("the kernel {name} cannot be loaded");
    let text = CString::new(name).map_err(|_| DeviceError::Failed(doing.clone()))?;
    let mut handle = std::ptr::null_mut();
    // SAFETY: the module is loaded and its context current; the name ends with a zero.
    check(unsafe { sys::cuModuleGetFunction(&mut handle, module, text.as_ptr()) }, &doing)?;
    let attribute = |which| {
        let mut value = 0;
        // SAFETY: the function was found a moment ago; there is a place for the number.
        check(unsafe { sys::cuFuncGetAttribute(&mut value, which, handle) }, &doing)?;
        Ok::<_, DeviceError>(usize::try_from(value).unwrap_or(0))
    };
    let threads = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
    let fixed = attribute(CUfunction_attribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
    // More than 48 KB of shared memory has to be asked for; what a kernel needs is said at its launch, so the
    // limit is set as high as it goes.
    let shared_bytes = shared_bytes.saturating_sub(fixed);
    // SAFETY: as above.
    let result = unsafe {
        sys::cuFuncSetAttribute(
            handle,
            CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
            i32::try_from(shared_bytes).unwrap_or(i32::MAX),
        )
    };
    check(result, &doing)?;
    Ok(Function {
        handle,
        parameter_bytes,
        threads: u32::try_from(threads).unwrap_or(u32::MAX),
        shared_bytes,
    })
}

/// Compiles the sources for a card, side by side, or takes what the cache has of them.
fn compile_all(
    nvrtc: &Nvrtc,
    sources: &[Source],
    card: (u32, u32),
    cache: Option<&Cache>,
) -> Result<Vec<CompiledSource>, String> {
    let target = nvrtc.target(card).ok_or_else(|| {
        let (major, minor) = nvrtc.version();
        format!("NVRTC {major}.{minor} is too old to compile for compute capability {}.{}", card.0, card.1)
    })?;
    let headers: Vec<Source> = image::headers().collect();
    std::thread::scope(|scope| {
        let headers = &headers;
        let workers: Vec<_> = sources
            .iter()
            .map(|source| scope.spawn(move || compile_cached(nvrtc, source, headers, target, cache)))
            .collect();
        workers.into_iter().map(|worker| worker.join().expect("the compiler does not panic")).collect()
    })
}

fn compile_cached(
    nvrtc: &Nvrtc,
    source: &Source,
    headers: &[Source],
    target: Target,
    cache: Option<&Cache>,
) -> Result<CompiledSource, String> {
    let target_name = target.name();
    let unit = format!("{}-{target_name}", source.name.trim_end_matches(".cu"));
    let (major, minor) = nvrtc.version();
    let version = format!("{major}.{minor}");
    let texts = std::iter::once(source).chain(headers).flat_map(|source| [source.name, source.text]);
    let key = cache::key([version.as_str(), &target_name].into_iter().chain(texts));
    if let Some(kept) = cache.and_then(|cache| cache.get(&unit, &key)) {
        return Ok(kept);
    }
    let compiled = nvrtc.compile(source, headers, target)?;
    if let Some(cache) = cache {
        // A full disk costs the next start some seconds and this one nothing.
        cache.put(&unit, &key, &compiled).ok();
    }
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_first_start_compiles_and_the_second_does_not() {
        let Some(nvrtc) = nvrtc::tests::library() else { return };
        let folder = tempfile::tempdir().unwrap();
        let cache = Cache::at(folder.path());
        let text = "#include \"primitives.cuh\"\nstruct Params { float* x; };\nKERNEL(twice, Params, 128, 1) { p.x[0] *= 2.0f; }\n";
        let sources = [Source { name: "twice.cu", text }];
        let first = compile_all(&nvrtc, &sources, (8, 9), Some(&cache)).unwrap();
        let kept: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        let [file] = &kept[..] else { panic!("{kept:?}") };
        let written = file.metadata().unwrap().modified().unwrap();
        assert_eq!(compile_all(&nvrtc, &sources, (8, 9), Some(&cache)).unwrap(), first);
        assert_eq!(file.metadata().unwrap().modified().unwrap(), written);

        // A damaged file is compiled over.
        let mut bytes = std::fs::read(file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(file, &bytes).unwrap();
        assert_eq!(compile_all(&nvrtc, &sources, (8, 9), Some(&cache)).unwrap(), first);
        assert_ne!(std::fs::read(file).unwrap(), bytes);
    }
}
