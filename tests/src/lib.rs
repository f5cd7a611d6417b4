//! What the tests that cross crates share. The tests themselves are in `tests/tests`; the page
//! `tests/README.md` says what is tested where.

use std::path::{Path, PathBuf};

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("this package lies in a folder of the repository")
}

/// The `redstart` command of the same build as the running test.
///
/// Cargo hands a package's tests the path of that package's own binaries only, so it is looked up
/// beside the test's executable, where every build of the workspace puts it.
///
/// # Panics
///
/// When it has not been built, saying how to build it.
pub fn redstart_binary() -> PathBuf {
    let test = std::env::current_exe().expect("the path of the running test");
    // target/PROFILE/deps/test-HASH
    let profile = test.parent().and_then(Path::parent).expect("a test runs from target/PROFILE/deps");
    let binary = profile.join("redstart").with_extension(std::env::consts::EXE_EXTENSION);
    assert!(
        binary.is_file(),
        "{} is not built; run `cargo build --workspace --bins --tests` (or `cargo xtask test`, which does)",
        binary.display()
    );
    binary
}
