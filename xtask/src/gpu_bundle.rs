//! One directory that a machine with a GPU and nothing else can check and measure the CUDA backend with.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{repository, target_dir};

/// What a bundle may weigh, in bytes.
const LIMIT: u64 = 60_000_000;

/// Make a directory that checks and measures the CUDA backend on a machine with a GPU.
///
/// It needs nothing there but an NVIDIA driver: no Rust, no CUDA toolkit, no network. Copy it over and run
/// `./run check`, which compares every kernel and the whole engine with the processor's results, and
/// `./run bench`, which prints the tables of kernels/RESULTS.md.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to put it. Default: gpu-bundle in the build directory
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// Builds and collects; prints what came out.
pub(crate) fn run(options: &Options) -> Result<()> {
    let out = options.out.clone().unwrap_or_else(|| target_dir().join("gpu-bundle"));
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--release", "-p", "redstart-gpu"]).current_dir(repository());
    ensure!(build.status().context("starting cargo")?.success(), "redstart-gpu was not built");

    if out.exists() {
        // A directory that is not a bundle is not ours to empty.
        ensure!(out.join("redstart-gpu").exists(), "{} is there and is not a bundle", out.display());
        std::fs::remove_dir_all(&out).with_context(|| format!("emptying {}", out.display()))?;
    }
    std::fs::create_dir_all(&out).with_context(|| format!("making {}", out.display()))?;
    let binary = out.join("redstart-gpu");
    copy(&target_dir().join("release/redstart-gpu"), &binary)?;
    strip(&binary);
    let sources = repository().join("tests");
    copy(&sources.join("gpu/run"), &out.join("run"))?;
    for entry in std::fs::read_dir(sources.join("oracle")).context("reading tests/oracle")? {
        let checkpoint = entry?.path();
        if checkpoint.is_dir() {
            let name = checkpoint.file_name().context("a folder without a name")?;
            copy_files(&checkpoint, &out.join("oracle").join(name))?;
        }
    }
    let size = size_of_files(&out)?;
    println!("{}: {:.1} MB", out.display(), size as f64 / 1e6);
    ensure!(size <= LIMIT, "the bundle is larger than {} MB", LIMIT / 1_000_000);
    Ok(())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// Copies the files of a flat folder.
fn copy_files(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in std::fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
    }
    Ok(())
}

/// Symbols are a fifth of the binary; without the tool it stays whole.
fn strip(binary: &Path) {
    match Command::new("strip").arg(binary).status() {
        Ok(status) if status.success() => {}
        _ => println!("strip is not there: the symbols stay in"),
    }
}

fn size_of_files(folder: &Path) -> Result<u64> {
    let mut size = 0;
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        size +=
            if entry.file_type()?.is_dir() { size_of_files(&entry.path())? } else { entry.metadata()?.len() };
    }
    Ok(size)
}
