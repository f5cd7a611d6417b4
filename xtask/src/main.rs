//! `cargo xtask`: the project's chores, written in Rust so that they run wherever Redstart builds.
//!
//! `test` passes every check that a change must pass, `plugins` rebuilds the shipped plugins, `kernels`
//! compiles the CUDA kernels and watches their size, `neovim` gets the editor that the editor test drives.
//! Each subcommand is one module.

// A command speaks on the terminal; no editor listens to this one.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the output of a terminal command")]

mod gpu_bundle;
mod kernels;
mod neovim;
mod plugins;
mod test;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Chores of the Redstart project.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", arg_required_else_help = true)]
#[command(
    after_help = "Start with `cargo xtask test`: on a fresh machine with a Rust toolchain and a C compiler it sets up what \
    else it needs and runs every check. `cargo xtask test --help` shows how to run one of them."
)]
struct Cli {
    #[command(subcommand)]
    chore: Chore,
}

#[derive(Subcommand)]
enum Chore {
    Test(test::Options),
    Plugins(plugins::Args),
    Kernels(kernels::Options),
    GpuBundle(gpu_bundle::Options),
    Neovim(neovim::Options),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().chore {
        Chore::Test(options) => test::run(&options),
        Chore::Plugins(args) => plugins::run(args).map(|skipped| {
            if let Some(reason) = skipped {
                println!("plugins: not checked, because {reason}");
            }
            true
        }),
        Chore::GpuBundle(options) => gpu_bundle::run(&options).map(|()| true),
        Chore::Kernels(options) => kernels::run(&options),
        Chore::Neovim(options) => neovim::run(&options).map(|()| true),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// The root of the repository.
fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in a folder of the repository")
}

/// Where cargo builds the workspace: `CARGO_TARGET_DIR`, else `target`.
fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => repository().join(dir),
        None => repository().join("target"),
    }
}
