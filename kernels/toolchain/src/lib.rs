//! Finds NVIDIA's compiler and compiles the CUDA kernels with it, for every architecture they are meant for.
//!
//! Three users share one cache, so that a kernel is compiled once: the build script of `redstart-kernels`
//! (which embeds the result), `cargo xtask kernels` (which watches the registers), and the same build script
//! under another profile. No GPU and no driver is needed for any of it.
//!
//! - [`nvcc`]: where the compiler is and what it can do.
//! - [`sources`]: the kernels' files and what includes what.
//! - [`compile`]: the compilation and its cache.
//! - [`ptx`]: which kernels a file has and what parameters they take.
//! - [`ptxas`]: what the assembler says a kernel uses.
//! - [`python`]: the folders of Python packages, which is where a compiler without root rights comes from.

pub mod compile;
pub mod nvcc;
pub mod ptx;
pub mod ptxas;
pub mod python;
pub mod sources;

/// What the kernels are compiled for, oldest first: Ampere (A100; RTX 30), Ada, Hopper, Blackwell (B200;
/// RTX 50). Machine code runs on the cards of its major number that are not older. The newest also goes in as
/// PTX, for cards that do not exist yet.
pub const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// A folder for what is worth keeping between builds: `cuda` in cargo's target folder, which is known by the
/// tag file that cargo puts there; `inside` is any path below it.
pub fn shared_folder(inside: &std::path::Path) -> Option<std::path::PathBuf> {
    let target = inside.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file())?;
    Some(target.join("cuda"))
}
