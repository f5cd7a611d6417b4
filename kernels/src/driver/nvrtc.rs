//! NVRTC, NVIDIA's compiler as a library: finding it, and compiling the kernels' sources for one card.
//!
//! It needs no toolkit, no headers, no host compiler and no GPU. Any release from 12.0 on will do; the few
//! functions that are needed are looked up here, because the library's name changes with its release.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;
use redstart_kernels_toolchain::ptx::{self, Entry};
use redstart_kernels_toolchain::python;

use crate::image::Source;

type Program = *mut c_void;
/// `nvrtcResult`: 0 is success.
type Status = c_int;

/// A loaded compiler library.
pub(super) struct Nvrtc {
    version: (u32, u32),
    /// What it can make machine code for, such as 90, ascending.
    architectures: Vec<u32>,
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> Status,
    destroy: unsafe extern "C" fn(*mut Program) -> Status,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> Status,
    log: Output,
    ptx: Output,
    cubin: Output,
    error: unsafe extern "C" fn(Status) -> *const c_char,
    /// Keeps the functions above where they are.
    _library: Library,
    /// What the library itself loads by name while it compiles.
    _builtins: Option<Library>,
}

/// A pair of functions that say how long a result is and copy it.
struct Output {
    size: unsafe extern "C" fn(Program, *mut usize) -> Status,
    copy: unsafe extern "C" fn(Program, *mut c_char) -> Status,
}

/// What a source file was compiled to.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CompiledSource {
    /// Machine code, or PTX with a zero at the end: what the driver loads.
    pub(super) image: Vec<u8>,
    /// The kernels in it.
    pub(super) kernels: Vec<Entry>,
}

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Machine code of an architecture.
    Code(u32),
    /// PTX of an architecture, which the driver translates.
    Ptx(u32),
}

impl Target {
    /// The best that a compiler can do for a card: its own machine code, that of an older one of its kind, or
    /// PTX of an older one.
    fn of_card(card: (u32, u32), architectures: &[u32]) -> Option<Self> {
        let own = card.0 * 10 + card.1;
        let older = architectures.iter().copied().filter(|&code| (80..=own).contains(&code));
        let code = older.clone().filter(|code| code / 10 == card.0).max().map(Self::Code);
        code.or_else(|| older.max().map(Self::Ptx))
    }

    /// As it is called on a compiler's command line.
    pub(super) fn name(self) -> String {
        match self {
            Self::Code(architecture) => format!("sm_{architecture}"),
            Self::Ptx(architecture) => format!("compute_{architecture}"),
        }
    }
}

/// The newest NVRTC of this machine whose major release is not above `major`. Looked for once.
pub(super) fn find(major: u32) -> Option<&'static Nvrtc> {
    static FOUND: OnceLock<Option<Nvrtc>> = OnceLock::new();
    FOUND.get_or_init(|| search(major)).as_ref()
}

/// The releases that know C++20.
const MAJORS: [u32; 2] = [13, 12];

fn search(major: u32) -> Option<Nvrtc> {
    let good = |library: &Nvrtc| (12..=major).contains(&library.version.0);
    let majors = MAJORS.into_iter().filter(move |&candidate| candidate <= major);
    // First by name, as the system's loader finds it; then where toolkits and Python packages put it.
    let by_name = majors.clone().flat_map(file_names).map(PathBuf::from);
    let in_folders = std::iter::once_with(folders).flatten();
    let by_path = in_folders.flat_map(move |folder| {
        majors.clone().flat_map(file_names).map(move |name| folder.join(name)).filter(|path| path.is_file())
    });
    by_name.chain(by_path).filter_map(|path| Nvrtc::load(&path)).find(good)
}

fn file_names(major: u32) -> Vec<String> {
    if cfg!(windows) {
        vec![format!("nvrtc64_{major}0_0.dll")]
    } else {
        vec![format!("libnvrtc.so.{major}"), "libnvrtc.so".to_owned()]
    }
}

fn folders() -> Vec<PathBuf> {
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"]
        .into_iter()
        .filter_map(std::env::var_os)
        .filter(|toolkit| !toolkit.is_empty())
        .map(PathBuf::from)
        .collect();
    toolkits.push(PathBuf::from("/usr/local/cuda"));
    for packages in python::package_folders() {
        toolkits.extend(python::nvidia_folders(&packages));
    }
    let inside = ["lib64", "lib", "bin", "bin/x64", "bin/x86_64"];
    toolkits.iter().flat_map(|toolkit| inside.map(|folder| toolkit.join(folder))).collect()
}

/// The function of a library, by value.
///
/// # Safety
/// `F` is the function's type, and it is called only while the library is loaded.
unsafe fn function<F: Copy>(library: &Library, name: &str) -> Option<F> {
    // SAFETY: the caller vouches for the type.
    unsafe { library.get::<F>(name.as_bytes()) }.ok().map(|symbol| *symbol)
}

impl Nvrtc {
    fn load(path: &Path) -> Option<Self> {
        // SAFETY: NVIDIA's libraries do nothing when they are loaded that could disturb this process.
        let builtins = beside(path).and_then(|builtins| unsafe { Library::new(builtins) }.ok());
        // SAFETY: as above.
        let library = unsafe { Library::new(path) }.ok()?;
        // SAFETY: the types of all functions below are those of nvrtc.h, which have not changed since 11.2, and
        // the library is kept with the functions.
        unsafe {
            let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> Status =
                function(&library, "nvrtcVersion")?;
            let (mut major, mut minor) = (0, 0);
            if version(&mut major, &mut minor) != 0 {
                return None;
            }
            let architectures = supported(&library)?;
            let output = |what: &str| {
                Some(Output {
                    size: function(&library, &format!("nvrtcGet{what}Size"))?,
                    copy: function(&library, &format!("nvrtcGet{what}"))?,
                })
            };
            Some(Self {
                version: (u32::try_from(major).ok()?, u32::try_from(minor).ok()?),
                architectures,
                create: function(&library, "nvrtcCreateProgram")?,
                destroy: function(&library, "nvrtcDestroyProgram")?,
                compile: function(&library, "nvrtcCompileProgram")?,
                log: output("ProgramLog")?,
                ptx: output("PTX")?,
                cubin: output("CUBIN")?,
                error: function(&library, "nvrtcGetErrorString")?,
                _library: library,
                _builtins: builtins,
            })
        }
    }

    /// Its release, such as (13, 0).
    pub(super) fn version(&self) -> (u32, u32) {
        self.version
    }

    /// What it would compile to for a card.
    pub(super) fn target(&self, card: (u32, u32)) -> Option<Target> {
        Target::of_card(card, &self.architectures)
    }

    /// Compiles a source file with the files it includes. Several threads may do so; the library lets them take turns
    /// for the first part of the work.
    ///
    /// # Errors
    /// The compiler's words.
    pub(super) fn compile(
        &self,
        source: &Source,
        headers: &[Source],
        target: Target,
    ) -> Result<CompiledSource, String> {
        let text = |text: &str| CString::new(text).map_err(|_| format!("{}: a zero byte", source.name));
        let texts = headers.iter().map(|header| text(header.text)).collect::<Result<Vec<_>, _>>()?;
        let names = headers.iter().map(|header| text(header.name)).collect::<Result<Vec<_>, _>>()?;
        let (source_text, source_name) = (text(source.text)?, text(source.name)?);
        let program = ProgramGuard::new(self, &source_text, &source_name, &texts, &names)?;
        let options = [text("--std=c++20")?, text(&format!("--gpu-architecture={}", target.name()))?];
        let option_pointers = pointers(&options);
        // SAFETY: the program is alive, and the pointers are to as many strings as are announced.
        let status = unsafe {
            (self.compile)(program.program, option_pointers.len() as c_int, option_pointers.as_ptr())
        };
        if status != 0 {
            let log = self.read(&program, &self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log).trim_end_matches('\0').trim().to_owned();
            return Err(format!("{} for {}: {}\n{log}", source.name, target.name(), self.describe(status)));
        }
        let ptx = self.read(&program, &self.ptx)?;
        let kernels = ptx::entries(&String::from_utf8_lossy(&ptx))?;
        let image = match target {
            Target::Code(_) => self.read(&program, &self.cubin)?,
            Target::Ptx(_) => ptx,
        };
        Ok(CompiledSource { image, kernels })
    }

    fn read(&self, program: &ProgramGuard<'_>, output: &Output) -> Result<Vec<u8>, String> {
        let mut size = 0;
        // SAFETY: the program is alive; the function wants a place for a number.
        let status = unsafe { (output.size)(program.program, &mut size) };
        if status != 0 {
            return Err(self.describe(status));
        }
        let mut bytes = vec![0u8; size];
        // SAFETY: the program is alive, and there is room for as many bytes as were announced.
        let status = unsafe { (output.copy)(program.program, bytes.as_mut_ptr().cast()) };
        if status == 0 { Ok(bytes) } else { Err(self.describe(status)) }
    }

    fn describe(&self, status: Status) -> String {
        // SAFETY: the function takes any number and returns a constant text.
        let text = unsafe { (self.error)(status) };
        if text.is_null() {
            return format!("NVRTC error {status}");
        }
        // SAFETY: it ends with a zero.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

/// The architectures that a library compiles for, ascending.
///
/// # Safety
/// The library is an NVRTC.
unsafe fn supported(library: &Library) -> Option<Vec<u32>> {
    // SAFETY: the functions' types are those of nvrtc.h; the second writes as many numbers as the first says.
    unsafe {
        let count: unsafe extern "C" fn(*mut c_int) -> Status =
            function(library, "nvrtcGetNumSupportedArchs")?;
        let list: unsafe extern "C" fn(*mut c_int) -> Status = function(library, "nvrtcGetSupportedArchs")?;
        let mut number = 0;
        if count(&mut number) != 0 {
            return None;
        }
        let mut architectures: Vec<c_int> = vec![0; usize::try_from(number).ok()?];
        if list(architectures.as_mut_ptr()) != 0 {
            return None;
        }
        Some(architectures.into_iter().filter_map(|code| u32::try_from(code).ok()).collect())
    }
}

/// The builtins of an NVRTC that was found by its path. It will ask the system's loader for them by name, which
/// looks in the system's folders and among what is loaded already.
fn beside(library: &Path) -> Option<PathBuf> {
    let folder = library.parent().filter(|folder| folder.is_absolute())?;
    let prefix = if cfg!(windows) { "nvrtc-builtins64" } else { "libnvrtc-builtins.so." };
    let mut found: Vec<PathBuf> =
        std::fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path()).collect();
    found.retain(|path| {
        path.file_name().is_some_and(|name| {
            let name = name.to_string_lossy();
            name.starts_with(prefix) && !name.contains(".alt")
        })
    });
    found.sort();
    found.pop()
}

fn pointers(texts: &[CString]) -> Vec<*const c_char> {
    texts.iter().map(|text| text.as_ptr()).collect()
}

/// A program in the library's hands.
struct ProgramGuard<'a> {
    nvrtc: &'a Nvrtc,
    program: Program,
}

impl<'a> ProgramGuard<'a> {
    /// The texts outlive the program; the library may keep pointers to them.
    fn new(
        nvrtc: &'a Nvrtc,
        text: &'a CStr,
        name: &'a CStr,
        header_texts: &'a [CString],
        header_names: &'a [CString],
    ) -> Result<Self, String> {
        let mut program = std::ptr::null_mut();
        let (texts, names) = (pointers(header_texts), pointers(header_names));
        // SAFETY: all pointers are to strings that live as long as the guard; there are as many headers as
        // announced.
        let status = unsafe {
            (nvrtc.create)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                texts.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        if status == 0 { Ok(Self { nvrtc, program }) } else { Err(nvrtc.describe(status)) }
    }
}

impl Drop for ProgramGuard<'_> {
    fn drop(&mut self) {
        // SAFETY: the program was created by this library and is destroyed once.
        unsafe { (self.nvrtc.destroy)(&mut self.program) };
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::image;

    /// The machine's NVRTC, or one that `cargo xtask kernels --install` put into the target folder.
    #[expect(clippy::print_stdout, reason = "a skipped test says why")]
    pub(in crate::driver) fn library() -> Option<Nvrtc> {
        let installed = || {
            let inside = std::env::current_exe().ok()?;
            let packages = redstart_kernels_toolchain::shared_folder(&inside)?.join("nvcc");
            let folders = python::nvidia_folders(&packages).into_iter().map(|folder| folder.join("lib"));
            let names: Vec<String> = MAJORS.into_iter().flat_map(file_names).collect();
            folders
                .flat_map(|folder| names.iter().map(move |name| folder.join(name)).collect::<Vec<_>>())
                .filter(|path| path.is_file())
                .find_map(|path| Nvrtc::load(&path))
        };
        let found = search(u32::MAX).or_else(installed);
        if found.is_none() {
            println!("skipped: no NVRTC library; `cargo xtask kernels --install` fetches one");
        }
        found
    }

    /// To PTX: what NVRTC does not share with nvcc is the language's side of it, which knows no host header. The way
    /// from PTX to machine code is the same and takes ten times as long.
    #[test]
    fn every_kernel_compiles_with_nvrtc() {
        let Some(nvrtc) = library() else { return };
        assert_eq!(nvrtc.target((9, 0)), Some(Target::Code(90)), "every release from 12.0 on knows Hopper");
        let headers: Vec<Source> = image::headers().collect();
        // Side by side, as at a first start.
        std::thread::scope(|scope| {
            for source in image::units() {
                let (nvrtc, headers) = (&nvrtc, &headers);
                scope.spawn(move || {
                    let compiled = nvrtc.compile(&source, headers, Target::Ptx(90));
                    has_the_kernels_that_nvcc_saw(source, compiled.unwrap_or_else(|error| panic!("{error}")));
                });
            }
        });
    }

    fn has_the_kernels_that_nvcc_saw(source: Source, mut compiled: CompiledSource) {
        assert!(compiled.image.ends_with(b"\0"), "{}: PTX is a text of C", source.name);
        let name = source.name.strip_suffix(".cu").expect("a unit");
        let Some(module) = image::embedded().iter().find(|module| module.name == name) else { return };
        compiled.kernels.sort_by(|a, b| a.name.cmp(&b.name));
        let ours: Vec<_> =
            compiled.kernels.iter().map(|kernel| (kernel.name.as_str(), kernel.parameter_bytes)).collect();
        let theirs: Vec<_> =
            module.kernels.iter().map(|kernel| (kernel.name, kernel.parameter_bytes)).collect();
        assert_eq!(ours, theirs, "{}", source.name);
    }

    #[test]
    fn the_primitives_compile_with_nvrtc_and_a_mistake_is_reported() {
        let Some(nvrtc) = library() else { return };
        let headers: Vec<Source> = image::headers().collect();
        let text = "#include \"primitives.cuh\"\n\
            struct Params { float* x; };\n\
            KERNEL(twice, Params, 128, 1) {\n    \
                wait_for_previous_kernel();\n    \
                let_next_kernel_start();\n    \
                p.x[thread_index()] *= 2.0f;\n\
            }\n";
        let source = Source { name: "twice.cu", text };
        let compiled = nvrtc.compile(&source, &headers, Target::Code(90)).unwrap();
        assert_eq!(compiled.kernels, [Entry { name: "twice".to_owned(), parameter_bytes: 8 }]);
        assert_eq!(&compiled.image[..4], b"\x7fELF");
        let compiled = nvrtc.compile(&source, &headers, Target::Ptx(80)).unwrap();
        assert!(compiled.image.starts_with(b"//") && compiled.image.ends_with(b"\0"));
        let wrong = Source { name: "wrong.cu", text: "__global__ void broken( { }\n" };
        let error = nvrtc.compile(&wrong, &headers, Target::Code(90)).unwrap_err();
        assert!(error.starts_with("wrong.cu for sm_90: ") && error.contains("wrong.cu(1)"), "{error}");
    }

    #[test]
    fn a_card_gets_the_closest_code_there_is() {
        let architectures = [75, 80, 86, 87, 89, 90, 100, 120];
        let target = |card| Target::of_card(card, &architectures);
        assert_eq!(target((8, 6)), Some(Target::Code(86)));
        assert_eq!(target((8, 8)), Some(Target::Code(87)));
        assert_eq!(target((10, 3)), Some(Target::Code(100)));
        assert_eq!(target((11, 0)), Some(Target::Ptx(100)));
        assert_eq!(target((7, 5)), None);
    }
}
