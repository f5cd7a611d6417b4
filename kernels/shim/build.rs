//! Compiles the kernels of `kernels/cuda` as C++ for the host, with the runtime they need there.
//!
//! `REDSTART_SHIM_SANITIZE=address,undefined` builds all of it with these sanitizers; see `src/lib.rs`.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    if env::var_os("CARGO_CFG_UNIX").is_none() {
        return Ok(());
    }
    let here = PathBuf::from(env::var("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let runtime = here.join("cpp");
    let kernels = here.join("../cuda");
    println!("cargo:rerun-if-changed={}", runtime.display());
    println!("cargo:rerun-if-changed={}", kernels.display());
    println!("cargo:rerun-if-env-changed=REDSTART_SHIM_SANITIZE");
    println!("cargo:rustc-check-cfg=cfg(sanitized)");
    let sanitize = env::var("REDSTART_SHIM_SANITIZE").ok().filter(|which| !which.is_empty());

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
        // (So sums are the same whether or not the processor has fused products.)
        // Nothing else refers to the objects that hold kernels; the linker must take them all the same.
        .link_lib_modifier("+whole-archive")
        .include(&runtime)
        .include(&kernels);
    if let Some(which) = &sanitize {
        println!("cargo:rustc-cfg=sanitized");
        build
            .flag(format!("-fsanitize={which}"))
            .flag("-fno-sanitize-recover=all")
            .flag("-fno-omit-frame-pointer")
            .flag("-g1");
        // Before the C++ library, which `compile` names: the sanitizer's must be the first that is loaded.
        for (sanitizer, library) in [("address", "asan"), ("undefined", "ubsan")] {
            if which.split(',').any(|one| one == sanitizer) {
                println!("cargo:rustc-link-lib=dylib={library}");
            }
        }
    }
    let mut code = build.clone();
    // Half the time to compile of the next level, and the time of the tests is not spent in the kernels.
    code.opt_level(1);
    if sanitize.is_none() {
        // The runtime has a handler for this one.
        code.flag("-fsanitize=alignment");
    }
    // The kernels' own types may have fields that only their file knows.
    code.flag_if_supported("-Wno-subobject-linkage");
    let out = PathBuf::from(env::var("OUT_DIR").expect("cargo sets it"));
    for file in kernel_files(&kernels)?.into_iter().chain(kernel_files(&runtime)?) {
        code.file(wrap(&file, &out)?);
    }
    build.file(runtime.join("runtime.cpp"));
    for object in code.compile_intermediates() {
        build.object(object);
    }
    build.compile("redstart_kernels_host");
    Ok(())
}

/// Writes a source file with the kernels in a namespace of their own. Each of them is a program for itself to
/// nvcc, so two may give different things one name; here they are linked together.
fn wrap(file: &Path, out: &Path) -> io::Result<PathBuf> {
    let stem = file.file_stem().expect("it has an extension").to_string_lossy();
    let wrapped = out.join(format!("{stem}.cpp"));
    let text = format!(
        "#include \"primitives.cuh\"\nnamespace kernels_of_{stem} {{\n#include \"{}\"\n}}\n",
        file.display()
    );
    fs::write(&wrapped, text)?;
    Ok(wrapped)
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
