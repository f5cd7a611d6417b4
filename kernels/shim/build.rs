//! Compiles the kernels of `kernels/cuda` as C++ for the host, with the runtime they need there.
//!
//! `REDSTART_SHIM_SANITIZE=address,undefined` builds all of it with these sanitizers; see `src/lib.rs`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let runtime = here.join("cpp");
    let kernels = here.join("../cuda");
    println!("cargo:rerun-if-changed={}", runtime.display());
    println!("cargo:rerun-if-changed={}", kernels.display());

    let mut build = cc::Build::new();
    build
        .cpp(true)
        .std("c++20")
        .opt_level(2)
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .flag("-Wno-unused-parameter")
        // `#pragma unroll` is nvcc's.
        .flag("-Wno-unknown-pragmas")
        .flag("-ffp-contract=off")
        // Nothing else refers to the objects that hold kernels; the linker must take them all the same.
        .link_lib_modifier("+whole-archive")
        .include(&runtime)
        .include(&kernels);
    let mut code = build.clone();
    code.flag("-fsanitize=alignment").flag("-xc++");
    for file in kernel_files(&kernels)?.into_iter().chain(kernel_files(&runtime)?) {
        code.file(file);
    }
    build.file(runtime.join("runtime.cpp"));
    for object in code.compile_intermediates() {
        build.object(object);
    }
    build.compile("redstart_kernels_host");
    Ok(())
}

fn kernel_files(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
