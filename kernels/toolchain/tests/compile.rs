//! The real compiler on small kernels; says so and passes where there is none.

#![expect(clippy::print_stdout, reason = "a skipped test says why")]

use std::path::Path;

use redstart_kernels_toolchain::compile::{CompileError, compile};
use redstart_kernels_toolchain::nvcc::{self, Nvcc};
use redstart_kernels_toolchain::shared_folder;
use redstart_kernels_toolchain::sources::Sources;

const HEADER: &str = "#pragma once\nstruct Params { float* x; unsigned n; unsigned zero; };\n";
const SMALL: &str = r#"
#include "params.cuh"
extern "C" __global__ void __launch_bounds__(256, 2) scale(const __grid_constant__ Params p) {
    if (threadIdx.x < p.n) p.x[threadIdx.x] *= 2.0f;
}
"#;
/// 200 values that live across a barrier in a kernel that may have 64 registers.
const SPILLING: &str = r#"
#include "params.cuh"
extern "C" __global__ void __launch_bounds__(512, 2) spills(const __grid_constant__ Params p) {
    float a[200];
    for (int i = 0; i < 200; i++) a[i] = p.x[threadIdx.x * 200 + i];
    for (unsigned j = 0; j < p.n; j++)
        for (int i = 0; i < 200; i++) a[i] = fmaf(a[(i * 7) % 200], a[i], p.x[j]);
    for (int i = 0; i < 200; i++) p.x[threadIdx.x * 200 + i] = a[i];
}
"#;

fn compiler() -> Option<Nvcc> {
    let installed = shared_folder(&std::env::current_exe().ok()?).map(|folder| folder.join("nvcc"));
    match nvcc::find(installed.as_deref()) {
        Ok(nvcc) => Some(nvcc),
        Err(why) => {
            println!("skipped: {why}");
            None
        }
    }
}

fn write(folder: &Path, files: &[(&str, &str)]) -> Sources {
    std::fs::create_dir_all(folder).unwrap();
    for (name, text) in files {
        std::fs::write(folder.join(name), text).unwrap();
    }
    Sources::read(folder).unwrap()
}

#[test]
fn kernels_are_compiled_measured_and_kept() {
    let Some(nvcc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("cache");
    let files = [("params.cuh", HEADER), ("small.cu", SMALL), ("spilling.cu", SPILLING)];
    let sources = write(&folder.path().join("cuda"), &files);
    let compiled = compile(&nvcc, &sources, &cache).unwrap();
    assert_eq!(compiled.warnings, [""; 0]);
    let [small, spilling] = &compiled.units[..] else { panic!("{compiled:?}") };
    assert_eq!((small.name.as_str(), spilling.name.as_str()), ("small", "spilling"));
    assert_eq!((small.kernels[0].name.as_str(), small.kernels[0].parameter_bytes), ("scale", 16));
    for unit in [small, spilling] {
        assert_eq!(unit.kernels[0].resources.len(), compiled.architectures.len());
    }
    for (scale, spills) in small.kernels[0].resources.iter().zip(&spilling.kernels[0].resources) {
        assert!((1..64).contains(&scale.registers) && scale.spill_stores == 0, "{scale:?}");
        assert!(spills.registers == 64 && spills.spill_stores > 0 && spills.stack > 0, "{spills:?}");
    }
    let image = std::fs::read(&small.image).unwrap();
    assert_eq!(image[..4], [0x50, 0xed, 0x55, 0xba], "the mark of a fat binary");

    // The same again takes what is there; an edit of one file compiles that one.
    let made =
        |unit: &redstart_kernels_toolchain::compile::Unit| unit.image.metadata().unwrap().modified().unwrap();
    let sources = write(&folder.path().join("cuda"), &[("small.cu", &SMALL.replace("2.0f", "3.0f"))]);
    let again = compile(&nvcc, &sources, &cache).unwrap();
    assert_ne!(again.units[0].image, small.image);
    assert_eq!(again.units[1].image, spilling.image);
    assert_eq!(made(&again.units[1]), made(spilling));
}

#[test]
fn a_mistake_is_reported_with_the_compilers_words() {
    let Some(nvcc) = compiler() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sources = write(folder.path(), &[("wrong.cu", "__global__ void broken( { }\n")]);
    let error = compile(&nvcc, &sources, &folder.path().join("cache")).unwrap_err();
    assert!(matches!(&error, CompileError::Refused { .. }), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("wrong.cu for sm_") && text.contains("wrong.cu(1)"), "{text}");
}
