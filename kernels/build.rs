//! Compiles the kernels with nvcc, where there is one, and writes what `src/image.rs` embeds.
//!
//! Without nvcc nothing is embedded but the sources, and the driver's compiler library builds the kernels at
//! their first start; that is an ordinary build and says nothing. `REDSTART_NVCC` names a compiler that must
//! work, `REDSTART_NVCC=none` asks for none.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use redstart_kernels_toolchain::compile::{Compiled, compile};
use redstart_kernels_toolchain::nvcc::{self, NoNvcc, Nvcc};
use redstart_kernels_toolchain::shared_folder;
use redstart_kernels_toolchain::sources::Sources;

fn main() {
    let out = PathBuf::from(variable("OUT_DIR"));
    let folder = Path::new(&variable("CARGO_MANIFEST_DIR")).join("cuda");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={}", folder.display());
    // Not the PATH and not the Python environment: those differ from terminal to editor, and a build that
    // starts over with every change of window is worse than one that has to be told.
    for name in ["REDSTART_NVCC", "CUDA_HOME", "CUDA_PATH"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let sources = match Sources::read(&folder) {
        Ok(sources) => sources,
        Err(error) => return println!("cargo::error={}: {error}", folder.display()),
    };
    let mut generated = String::new();
    write_sources(&mut generated, &sources, &folder);
    match compiled(&sources, &out) {
        Some((nvcc, compiled)) => write_images(&mut generated, &nvcc, &compiled, &out),
        None => generated.push_str(
            "static TOOLKIT: Option<(u32, u32)> = None;\n\
             static ARCHITECTURES: &[u32] = &[];\n\
             static MODULES: &[Module] = &[];\n",
        ),
    }
    if let Err(error) = std::fs::write(out.join("image.rs"), generated) {
        println!("cargo::error=the list of kernels cannot be written: {error}");
    }
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}

/// The kernels, where they can be compiled here. Says so where somebody would want to know.
fn compiled(sources: &Sources, out: &Path) -> Option<(Nvcc, Compiled)> {
    let wanted = std::env::var("REDSTART_NVCC").is_ok_and(|value| !value.is_empty());
    let system = variable("CARGO_CFG_TARGET_OS");
    let has_driver = std::env::var_os("CARGO_FEATURE_DRIVER").is_some();
    if !has_driver || !matches!(system.as_str(), "linux" | "windows") {
        return None;
    }
    let shared = shared_folder(out).unwrap_or_else(|| out.to_owned());
    watch_installation(&shared);
    let nvcc = match nvcc::find(Some(&shared.join("nvcc"))) {
        Ok(nvcc) => nvcc,
        Err(NoNvcc::NotFound | NoNvcc::Unwanted) => return None,
        Err(error) => {
            println!(
                "cargo::{}=no CUDA kernels are embedded: {error}",
                if wanted { "error" } else { "warning" }
            );
            return None;
        }
    };
    match compile(&nvcc, sources, &shared.join("kernels")) {
        Ok(compiled) => Some((nvcc, compiled)),
        Err(error) => {
            let nvcc = nvcc.path.display();
            let text = format!("no CUDA kernels are embedded, {nvcc} could not compile them: {error}");
            // One message a line: cargo cuts a message at the end of its line.
            for line in text.lines().take(30) {
                println!("cargo::{}={line}", if wanted { "error" } else { "warning" });
            }
            None
        }
    }
}

/// `cargo xtask kernels --install` writes this file; until then it is empty. A file that is not there would
/// make cargo run this script every time, and one as new as this run once more.
fn watch_installation(shared: &Path) {
    let note = shared.join("nvcc.txt");
    if !note.exists()
        && std::fs::create_dir_all(shared).is_ok()
        && let Ok(file) = std::fs::File::create(&note)
    {
        file.set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(1 << 30)).ok();
    }
    if note.exists() {
        println!("cargo::rerun-if-changed={}", note.display());
    }
}

fn write_sources(generated: &mut String, sources: &Sources, folder: &Path) {
    generated.push_str("static SOURCES: &[Source] = &[\n");
    for (name, _) in sources.files() {
        let path = folder.join(name);
        writeln!(generated, "    Source {{ name: {name:?}, text: include_str!({path:?}) }},")
            .expect("a string takes all");
    }
    generated.push_str("];\n");
}

fn write_images(generated: &mut String, nvcc: &Nvcc, compiled: &Compiled, out: &Path) {
    let units: Vec<_> = compiled.units.iter().filter(|unit| !unit.kernels.is_empty()).collect();
    if !units.is_empty() {
        generated.push_str(
            "/// The driver reads the words of an image in place.\n#[repr(C, align(16))]\nstruct Aligned<T>(T);\n",
        );
    }
    let mut modules = String::new();
    for unit in units {
        let image = out.join(format!("{}.fatbin", unit.name));
        let bytes = match std::fs::copy(&unit.image, &image) {
            Ok(bytes) => bytes,
            Err(error) => return println!("cargo::error={}: {error}", unit.image.display()),
        };
        let identifier = unit.name.to_uppercase();
        writeln!(
            generated,
            "static {identifier}: Aligned<[u8; {bytes}]> = Aligned(*include_bytes!({image:?}));"
        )
        .expect("a string takes all");
        writeln!(modules, "    Module {{\n        name: {:?},\n        image: &{identifier}.0,", unit.name)
            .expect("a string takes all");
        modules.push_str("        kernels: &[\n");
        for kernel in &unit.kernels {
            writeln!(
                modules,
                "            Kernel {{ name: {:?}, parameter_bytes: {} }},",
                kernel.name, kernel.parameter_bytes
            )
            .expect("a string takes all");
        }
        modules.push_str("        ],\n    },\n");
    }
    writeln!(
        generated,
        "static TOOLKIT: Option<(u32, u32)> = Some({:?});\n\
         static ARCHITECTURES: &[u32] = &{:?};\n\
         static MODULES: &[Module] = &[\n{modules}];",
        nvcc.release, compiled.architectures
    )
    .expect("a string takes all");
}
