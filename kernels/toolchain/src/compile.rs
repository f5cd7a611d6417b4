//! Compiles the kernels, each file for each architecture on its own, and puts a file's results together.
//!
//! What is compiled is kept under a key of everything it depends on: the file, what it includes, the compiler's
//! version and the options. So a second build, of whatever profile, compiles nothing, and an edit compiles one
//! family.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use sha2::{Digest, Sha256};

use crate::ARCHITECTURES;
use crate::nvcc::Nvcc;
use crate::ptx;
use crate::ptxas::{self, Resources};
use crate::sources::Sources;

/// Division and square root stay exact and small numbers are not flushed: a kernel that wants the fast ones
/// says so where it uses them. Only device code is compiled, so the host compiler's version does not matter.
const OPTIONS: [&str; 3] = ["-std=c++20", "-O3", "-allow-unsupported-compiler"];

/// The kernels of one source file.
#[derive(Debug)]
pub struct Unit {
    /// The file's name without its ending.
    pub name: String,
    /// Machine code for every architecture and PTX of the newest, compressed: a fat binary, as the driver
    /// loads it.
    pub image: PathBuf,
    /// Its kernels, by name.
    pub kernels: Vec<Kernel>,
}

/// One compiled kernel.
#[derive(Debug)]
pub struct Kernel {
    /// Its name.
    pub name: String,
    /// The bytes of its parameter block.
    pub parameter_bytes: usize,
    /// What it takes, in the order of [`Compiled::architectures`].
    pub resources: Vec<Resources>,
}

/// All kernels, compiled.
#[derive(Debug)]
pub struct Compiled {
    /// What they were compiled for: those of [`ARCHITECTURES`] that the compiler knows.
    pub architectures: Vec<u32>,
    /// The source files, by name.
    pub units: Vec<Unit>,
    /// What the compiler complained about, each complaint once.
    pub warnings: Vec<String>,
}

/// Why the kernels were not compiled.
#[derive(Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler knows none of the architectures.
    #[error("nvcc {0} compiles for none of the architectures that the kernels are meant for")]
    NoArchitecture(String),
    /// The compiler refuses a file, or what it made is not what was expected.
    #[error("{file} for sm_{architecture}: {message}")]
    Refused {
        /// The source file.
        file: String,
        /// What it was compiled for.
        architecture: u32,
        /// The compiler's words.
        message: String,
    },
    /// A file could not be read or written, or a command not started.
    #[error("{}: {error}", path.display())]
    Io {
        /// The file or command.
        path: PathBuf,
        /// What happened.
        error: std::io::Error,
    },
}

/// Compiles every unit for every architecture, with as many processes as the machine has cores. `cache` is a
/// folder that may be shared with other builds, also concurrent ones.
///
/// # Errors
/// When the compiler refuses a file or the disk does.
pub fn compile(nvcc: &Nvcc, sources: &Sources, cache: &Path) -> Result<Compiled, CompileError> {
    let architectures: Vec<u32> =
        ARCHITECTURES.into_iter().filter(|architecture| nvcc.architectures.contains(architecture)).collect();
    let Some(&newest) = architectures.last() else {
        return Err(CompileError::NoArchitecture(nvcc.version.clone()));
    };
    let files: Vec<&str> = sources.units().collect();
    let folders: Vec<PathBuf> =
        files.iter().map(|file| cache.join(key(nvcc, sources, file, &architectures))).collect();
    for folder in &folders {
        std::fs::create_dir_all(folder).map_err(at(folder))?;
    }
    let jobs: Vec<Job<'_>> = (0..files.len())
        .flat_map(|unit| architectures.iter().map(move |&architecture| (unit, architecture)))
        .map(|(unit, architecture)| Job {
            nvcc,
            source_folder: &sources.folder,
            file: files[unit],
            folder: &folders[unit],
            architecture,
            with_ptx: architecture == newest,
        })
        .filter(|job| !job.cubin().is_file())
        .collect();
    run_all(&jobs)?;
    let mut compiled = Compiled { architectures, units: Vec::new(), warnings: Vec::new() };
    for (file, folder) in files.iter().zip(&folders) {
        let unit = gather(nvcc, file, folder, &mut compiled)?;
        compiled.units.push(unit);
    }
    Ok(compiled)
}

/// The name of the folder for all that a file, as it is now, is compiled to.
fn key(nvcc: &Nvcc, sources: &Sources, file: &str, architectures: &[u32]) -> String {
    let mut hash = Sha256::new();
    let mut add = |text: &str| {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    };
    add(&nvcc.version);
    OPTIONS.into_iter().for_each(&mut add);
    add(&format!("{architectures:?}"));
    for (name, text) in sources.closure(file) {
        add(name);
        add(text);
    }
    let digest: String = hash.finalize().iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{digest}", stem(file))
}

fn stem(file: &str) -> &str {
    file.strip_suffix(".cu").unwrap_or(file)
}

/// One run of the compiler (two where PTX is wanted as well).
struct Job<'a> {
    nvcc: &'a Nvcc,
    source_folder: &'a Path,
    file: &'a str,
    folder: &'a Path,
    architecture: u32,
    with_ptx: bool,
}

impl Job<'_> {
    fn cubin(&self) -> PathBuf {
        self.folder.join(format!("sm_{}.cubin", self.architecture))
    }

    /// The machine code appears last and at once, so where it is the rest is, too.
    fn run(&self) -> Result<(), CompileError> {
        let mut log = String::new();
        let mut source = PathBuf::from(self.file);
        if self.with_ptx {
            let fresh = self.folder.join(format!("kernels-{}.ptx", std::process::id()));
            let target = format!("-arch=compute_{}", self.architecture);
            log += &self.nvcc(&["-ptx", &target], &source, &fresh)?;
            source = self.folder.join("kernels.ptx");
            std::fs::rename(&fresh, &source).map_err(at(&source))?;
        }
        let cubin = self.cubin();
        let fresh = cubin.with_extension(format!("cubin-{}", std::process::id()));
        let target = format!("-arch=sm_{}", self.architecture);
        log += &self.nvcc(&["-cubin", &target, "-Xptxas", "-v"], &source, &fresh)?;
        replace(&cubin.with_extension("log"), log.as_bytes())?;
        std::fs::rename(&fresh, &cubin).map_err(at(&cubin))
    }

    /// Runs nvcc in the sources' folder, so that its messages name the files as people do; returns the messages.
    fn nvcc(&self, options: &[&str], from: &Path, to: &Path) -> Result<String, CompileError> {
        let mut command = Command::new(&self.nvcc.path);
        command.current_dir(self.source_folder).args(OPTIONS).args(options).arg("-o").arg(to).arg(from);
        run(command, self.file, self.architecture)
    }
}

fn run(mut command: Command, file: &str, architecture: u32) -> Result<String, CompileError> {
    let path = PathBuf::from(command.get_program());
    let output = command.stdin(Stdio::null()).output().map_err(at(&path))?;
    // nvcc passes errors on to one stream and the words of some of its parts to the other.
    let messages =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(messages);
    }
    let message = format!("{}\n{}", output.status, messages.trim());
    Err(CompileError::Refused { file: file.to_owned(), architecture, message })
}

fn run_all(jobs: &[Job<'_>]) -> Result<(), CompileError> {
    let next = AtomicUsize::new(0);
    let trouble = Mutex::new(None);
    let work = || {
        while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = job.run() {
                // The others finish what they are at and start nothing more.
                next.store(jobs.len(), Ordering::Relaxed);
                trouble.lock().expect("no worker panics").get_or_insert(error);
            }
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
    std::thread::scope(|scope| {
        for _ in 0..cores.min(jobs.len()) {
            scope.spawn(work);
        }
    });
    trouble.into_inner().expect("no worker panics").map_or(Ok(()), Err)
}

/// Reads what was noted about a unit's kernels, and puts its architectures together into one image.
fn gather(nvcc: &Nvcc, file: &str, folder: &Path, compiled: &mut Compiled) -> Result<Unit, CompileError> {
    let newest = *compiled.architectures.last().expect("there is one");
    let refused =
        |architecture, message| CompileError::Refused { file: file.to_owned(), architecture, message };
    let ptx_file = folder.join("kernels.ptx");
    let text = std::fs::read_to_string(&ptx_file).map_err(at(&ptx_file))?;
    let entries = ptx::entries(&text).map_err(|message| refused(newest, message))?;
    let mut kernels: Vec<Kernel> = entries
        .into_iter()
        .map(|entry| Kernel {
            name: entry.name,
            parameter_bytes: entry.parameter_bytes,
            resources: Vec::new(),
        })
        .collect();
    kernels.sort_by(|a, b| a.name.cmp(&b.name));
    for &architecture in &compiled.architectures {
        let log_file = folder.join(format!("sm_{architecture}.log"));
        let log = std::fs::read_to_string(&log_file).map_err(at(&log_file))?;
        for warning in ptxas::warnings(&log) {
            if !compiled.warnings.contains(&warning) {
                compiled.warnings.push(warning);
            }
        }
        let resources = ptxas::resources(&log);
        for kernel in &mut kernels {
            let taken = resources.get(&kernel.name);
            let silent =
                || refused(architecture, format!("the assembler says nothing about {}", kernel.name));
            kernel.resources.push(*taken.ok_or_else(silent)?);
        }
    }
    let image = folder.join("kernels.fatbin");
    if !image.is_file() {
        put_together(nvcc, file, folder, &compiled.architectures, &image)?;
    }
    Ok(Unit { name: stem(file).to_owned(), image, kernels })
}

fn put_together(
    nvcc: &Nvcc,
    file: &str,
    folder: &Path,
    architectures: &[u32],
    image: &Path,
) -> Result<(), CompileError> {
    let newest = *architectures.last().expect("there is one");
    let fresh = image.with_extension(format!("fatbin-{}", std::process::id()));
    let mut command = Command::new(nvcc.tool("fatbinary"));
    command.current_dir(folder).arg("-64").arg("--create").arg(&fresh);
    // Older releases compress by themselves and do not let one choose how.
    if nvcc.release >= (12, 8) {
        command.arg("--compress-mode=size");
    }
    for architecture in architectures {
        command.arg(format!("--image3=kind=elf,sm={architecture},file=sm_{architecture}.cubin"));
    }
    command.arg(format!("--image3=kind=ptx,sm={newest},file=kernels.ptx"));
    run(command, file, newest)?;
    std::fs::rename(&fresh, image).map_err(at(image))
}

/// Writes a file so that a reader sees all of it or none.
fn replace(path: &Path, bytes: &[u8]) -> Result<(), CompileError> {
    let fresh = path.with_extension(format!("fresh-{}", std::process::id()));
    std::fs::write(&fresh, bytes).map_err(at(&fresh))?;
    std::fs::rename(&fresh, path).map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> CompileError {
    let path = path.to_owned();
    move |error| CompileError::Io { path, error }
}
