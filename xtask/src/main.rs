//! Tasks of this repository: `cargo xtask --help`.

use clap::Parser;

mod plugins;

#[derive(Parser)]
enum Task {
    /// Rebuild the wasm plugins.
    Plugins(plugins::Args),
}

fn main() -> anyhow::Result<()> {
    match Task::parse() {
        Task::Plugins(args) => plugins::run(args),
    }
}
