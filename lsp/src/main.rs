//! The `redstart` command.
fn main() {}
