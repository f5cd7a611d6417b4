//! The `redstart` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    redstart::commands::run(std::env::args_os())
}
