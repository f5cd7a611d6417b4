//! The CUDA compiler: where it is, which release, what it can compile for.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::python;

/// An nvcc that has been seen to start.
#[derive(Clone, Debug)]
pub struct Nvcc {
    /// The command.
    pub path: PathBuf,
    /// The release of its toolkit, such as (13, 0).
    pub release: (u32, u32),
    /// Its exact version, such as `13.0.88`.
    pub version: String,
    /// The architectures it has machine code for, such as 80.
    pub architectures: Vec<u32>,
}

/// Why there is no compiler to use.
#[derive(Debug, thiserror::Error)]
pub enum NoNvcc {
    /// None was found where compilers usually are.
    #[error(
        "no nvcc: neither REDSTART_NVCC, the PATH, CUDA_HOME nor a Python environment has one; \
         `cargo xtask kernels --install` fetches it"
    )]
    NotFound,
    /// The user does not want one.
    #[error("REDSTART_NVCC=none")]
    Unwanted,
    /// What was found is not a usable compiler.
    #[error("{} cannot be used: {why}", path.display())]
    Unusable {
        /// The command.
        path: PathBuf,
        /// What it did.
        why: String,
    },
}

/// The oldest release that knows C++20.
const OLDEST: (u32, u32) = (12, 0);

/// Finds nvcc: `REDSTART_NVCC` (a path; `none` for none), the PATH, `CUDA_HOME` and `CUDA_PATH`, a folder
/// where it was installed as Python packages (`installed`), `/usr/local/cuda`, and the Python environments.
///
/// # Errors
/// When there is none, or the one that was named cannot be used. One that was merely met and cannot be used
/// counts only if nothing better follows.
pub fn find(installed: Option<&Path>) -> Result<Nvcc, NoNvcc> {
    match std::env::var_os("REDSTART_NVCC") {
        Some(value) if value == "none" => return Err(NoNvcc::Unwanted),
        Some(value) if !value.is_empty() => return Nvcc::at(Path::new(&value)),
        _ => {}
    }
    let mut trouble = NoNvcc::NotFound;
    for candidate in candidates(installed) {
        match Nvcc::at(&candidate) {
            Ok(nvcc) => return Ok(nvcc),
            Err(error) => {
                if matches!(trouble, NoNvcc::NotFound) {
                    trouble = error;
                }
            }
        }
    }
    Err(trouble)
}

/// The compilers of a folder into which Python packages were installed.
pub fn in_packages(packages: &Path) -> Vec<PathBuf> {
    let found = python::nvidia_folders(packages).into_iter().map(|folder| command_in(&folder.join("bin")));
    found.filter(|path| path.is_file()).collect()
}

/// Existing files only, each one started only when those before it were not good. The Python environments
/// come last because asking for them takes an interpreter's start.
fn candidates(installed: Option<&Path>) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for name in ["CUDA_HOME", "CUDA_PATH"] {
        if let Some(toolkit) = std::env::var_os(name).filter(|toolkit| !toolkit.is_empty()) {
            folders.push(Path::new(&toolkit).join("bin"));
        }
    }
    let first = folders.into_iter().map(|folder| command_in(&folder));
    let installed = installed.map(in_packages).unwrap_or_default();
    let usual = command_in(Path::new("/usr/local/cuda/bin"));
    let packages = std::iter::once_with(python::package_folders).flatten();
    first
        .chain(installed)
        .chain([usual])
        .filter(|path| path.is_file())
        .chain(packages.flat_map(|folder| in_packages(&folder)))
}

fn command_in(folder: &Path) -> PathBuf {
    folder.join(format!("nvcc{}", std::env::consts::EXE_SUFFIX))
}

impl Nvcc {
    /// The compiler at a path.
    ///
    /// # Errors
    /// When it does not start, is too old, or says nothing that can be understood.
    pub fn at(path: &Path) -> Result<Self, NoNvcc> {
        let unusable = |why: String| NoNvcc::Unusable { path: path.to_owned(), why };
        let version_text = output(path, "--version").map_err(unusable)?;
        let version =
            version(&version_text).ok_or_else(|| unusable("it says no version".to_owned()))?.to_owned();
        let mut numbers = version.split('.').map(|part| part.parse().unwrap_or(0));
        let release = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
        if release < OLDEST {
            return Err(unusable(format!(
                "it is of CUDA {}.{}, 12.0 or newer is needed",
                release.0, release.1
            )));
        }
        let codes = output(path, "--list-gpu-code").map_err(unusable)?;
        let architectures =
            codes.split_whitespace().filter_map(|code| code.strip_prefix("sm_")?.parse().ok()).collect();
        Ok(Self { path: path.to_owned(), release, version, architectures })
    }

    /// Another command of the same toolkit.
    pub(crate) fn tool(&self, name: &str) -> PathBuf {
        // A link to nvcc need not have its neighbours beside it.
        let path = self.path.canonicalize().unwrap_or_else(|_| self.path.clone());
        path.with_file_name(format!("{name}{}", std::env::consts::EXE_SUFFIX))
    }
}

/// `13.0.88` of the line `Cuda compilation tools, release 13.0, V13.0.88`.
fn version(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.contains("release "))?;
    line.rsplit(", V")
        .next()
        .map(str::trim)
        .filter(|version| version.starts_with(|c: char| c.is_ascii_digit()))
}

fn output(command: &Path, argument: impl AsRef<OsStr>) -> Result<String, String> {
    let output = Command::new(command).arg(argument).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("it does not start: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "it ends with {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        ));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read() {
        let text = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88\nBuild x\n";
        assert_eq!(version(text), Some("13.0.88"));
        assert_eq!(version("bash: nvcc\n"), None);
    }

    #[test]
    fn what_is_no_compiler_is_refused_by_name() {
        let missing = Nvcc::at(Path::new("/nowhere/nvcc")).unwrap_err().to_string();
        assert!(missing.starts_with("/nowhere/nvcc cannot be used: it does not start"), "{missing}");
    }
}
