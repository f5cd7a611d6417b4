//! `cargo xtask plugins`: builds the guests under plugins/guests into plugins/guests/built.
//!
//! The built components are committed, so nobody needs a wasm target to build Redstart. Two routes
//! lead to one: rustup's `wasm32-unknown-unknown` target, or Debian's `rustc-web`, whose standard
//! library is compiled from its source package. `built/COMPILER` records the tools that made the
//! committed bytes: with the same tools the bytes are the same, in any folder.

#![expect(clippy::print_stdout, reason = "a task for people; its report belongs on stdout")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

/// Guests built, and their file names without `.wasm`. `hostile` is for tests only.
const GUESTS: [&str; 3] = ["complete", "review", "hostile"];
const TARGET: &str = "wasm32-unknown-unknown";
const HOW_TO_INSTALL: &str = "Install one of:\n  \
    rustup target add wasm32-unknown-unknown\n  \
    apt-get install rustc-web rust-web-src lld    (Debian)";

/// Build the wasm plugins, or check that the committed ones are what their source says.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Change nothing: rebuild and fail when the committed plugins differ. With the tools recorded in
    /// built/COMPILER the bytes must be equal; with others, the answers on the golden contexts.
    #[arg(long)]
    check: bool,
    /// Where to put the components instead of plugins/guests/built.
    #[arg(long, value_name = "DIR", conflicts_with = "check")]
    out: Option<PathBuf>,
}

/// Checks the committed plugins; see [`Args::check`]. `Some` says why that was skipped.
pub(crate) fn check_committed() -> Result<Option<String>> {
    run(Args { check: true, out: None })
}

/// Builds the guests; with `--check` compares them with the committed ones. `Some` says why a check was
/// skipped.
pub(crate) fn run(args: Args) -> Result<Option<String>> {
    let repository =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask stands in the repository")?;
    let committed = repository.join("plugins/guests/built");
    let recorded = fs::read_to_string(committed.join("COMPILER")).unwrap_or_default();
    let mut toolchain = Toolchain::find(&recorded)?;
    if toolchain.is_none() && install_debian_compiler() {
        toolchain = Toolchain::find(&recorded)?;
    }
    let Some(toolchain) = toolchain else {
        if args.check {
            return Ok(Some(format!("no wasm compiler was found. {HOW_TO_INSTALL}")));
        }
        bail!("no compiler for {TARGET} was found. {HOW_TO_INSTALL}");
    };
    println!("plugins: building with {}", toolchain.record.trim_end().replace('\n', ", "));
    let guests = toolchain.build(repository)?;
    if args.check {
        check(repository, &committed, &recorded, &toolchain, &guests)?;
        return Ok(None);
    }
    let out = args.out.unwrap_or(committed);
    write(&out, &toolchain, &guests)?;
    for guest in &guests {
        println!("plugins: {} ({} bytes)", out.join(guest.file_name()).display(), guest.bytes.len());
    }
    Ok(None)
}

/// Gets Debian's compiler where apt can install it without asking: as root on such a system.
fn install_debian_compiler() -> bool {
    let succeeds = |command: &mut Command| command.status().is_ok_and(|status| status.success());
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    if !is_root || !Path::new("/usr/bin/apt-get").is_file() {
        return false;
    }
    println!("plugins: installing Debian's wasm compiler (rustc-web, rust-web-src, lld)");
    let mut update = Command::new("apt-get");
    let mut install = Command::new("apt-get");
    let packages = ["install", "-qq", "-y", "--no-install-recommends", "rustc-web", "rust-web-src", "lld"];
    succeeds(update.args(["update", "-qq"]))
        && succeeds(install.args(packages).env("DEBIAN_FRONTEND", "noninteractive"))
}

struct Guest {
    name: &'static str,
    bytes: Vec<u8>,
}

impl Guest {
    fn file_name(&self) -> String {
        format!("{}.wasm", self.name)
    }
}

fn write(folder: &Path, toolchain: &Toolchain, guests: &[Guest]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for guest in guests {
        let path = folder.join(guest.file_name());
        fs::write(&path, &guest.bytes).with_context(|| format!("cannot write {}", path.display()))?;
    }
    fs::write(folder.join("COMPILER"), &toolchain.record)?;
    Ok(())
}

fn check(
    repository: &Path,
    committed: &Path,
    recorded: &str,
    toolchain: &Toolchain,
    guests: &[Guest],
) -> Result<()> {
    if toolchain.record == recorded {
        for guest in guests {
            let path = committed.join(guest.file_name());
            let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            let differs = bytes.iter().zip(&guest.bytes).position(|(old, new)| old != new);
            ensure!(
                bytes == guest.bytes,
                "{} is not what its source builds: {} bytes committed, {} rebuilt, first difference at {}. \
                 Run `cargo xtask plugins` and commit the result.",
                path.display(),
                bytes.len(),
                guest.bytes.len(),
                differs.unwrap_or(bytes.len().min(guest.bytes.len())),
            );
        }
        println!("plugins: the committed bytes are what the source builds");
        return Ok(());
    }
    println!(
        "plugins: the committed ones were made with {}; comparing answers instead of bytes",
        recorded.trim_end().replace('\n', ", ")
    );
    let rebuilt = target_directory(repository).join("guests").join("rebuilt");
    write(&rebuilt, toolchain, guests)?;
    let status = cargo()
        .current_dir(repository)
        .args(["test", "--quiet", "--locked", "--package", "redstart-plugins", "--test", "golden"])
        .env("REDSTART_GUESTS_DIR", &rebuilt)
        .status()
        .context("cannot run cargo test")?;
    ensure!(status.success(), "the rebuilt plugins answer differently from the golden files");
    println!("plugins: the rebuilt ones answer as the golden files say");
    Ok(())
}

/// A way to compile for wasm.
struct Toolchain {
    rustc: PathBuf,
    sysroot: PathBuf,
    /// The linker, where the compiler does not bring its own; the standard library is then built too.
    linker: Option<PathBuf>,
    /// What goes into built/COMPILER.
    record: String,
}

impl Toolchain {
    /// The toolchain that made the committed plugins if it is here, else any.
    fn find(recorded: &str) -> Result<Option<Self>> {
        let mut found: Vec<Self> = [Self::with_target()?, Self::debian()?].into_iter().flatten().collect();
        let preferred = found.iter().position(|toolchain| toolchain.record == recorded).unwrap_or(0);
        Ok((!found.is_empty()).then(|| found.swap_remove(preferred)))
    }

    /// The compiler in use, when the wasm target is installed for it.
    fn with_target() -> Result<Option<Self>> {
        let rustc = PathBuf::from(env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let sysroot = sysroot(&rustc)?;
        if !sysroot.join("lib/rustlib").join(TARGET).join("lib").is_dir() {
            return Ok(None);
        }
        let record = format!("{}\n{}\n", version(&rustc)?, version(cargo().get_program().as_ref())?);
        Ok(Some(Self { rustc, sysroot, linker: None, record }))
    }

    /// Debian's compiler with the source of its standard library, and LLVM's linker.
    fn debian() -> Result<Option<Self>> {
        let rustc = PathBuf::from("/usr/bin/rustc");
        let Some(linker) = debian_linker() else {
            return Ok(None);
        };
        if !rustc.is_file() {
            return Ok(None);
        }
        let sysroot = sysroot(&rustc)?;
        if !sysroot.join("lib/rustlib/src/rust/library").is_dir() {
            return Ok(None);
        }
        let tools = [version(&rustc)?, version(cargo().get_program().as_ref())?, version(&linker)?];
        Ok(Some(Self { rustc, sysroot, linker: Some(linker), record: format!("{}\n", tools.join("\n")) }))
    }

    /// Compiles every guest and wraps it as a component.
    fn build(&self, repository: &Path) -> Result<Vec<Guest>> {
        let target_directory = target_directory(repository).join("guests");
        let mut build = cargo();
        build
            .current_dir(repository.join("plugins/guests"))
            .args(["build", "--quiet", "--release", "--locked", "--target", TARGET, "--target-dir"])
            .arg(&target_directory)
            .args(GUESTS.iter().flat_map(|guest| ["--package", guest]))
            .env("RUSTC", &self.rustc)
            .env("CARGO_ENCODED_RUSTFLAGS", self.remapped_paths(repository)?)
            .env_remove("RUSTC_WRAPPER")
            .env_remove("RUSTC_WORKSPACE_WRAPPER");
        if let Some(linker) = &self.linker {
            build
                .arg("-Zbuild-std=std,panic_abort")
                .env("RUSTC_BOOTSTRAP", "1")
                .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
        }
        let status = build.status().context("cannot run cargo")?;
        ensure!(status.success(), "the guests do not compile");
        GUESTS
            .iter()
            .map(|&name| {
                let path = target_directory.join(TARGET).join("release").join(format!("{name}.wasm"));
                let module = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
                let bytes =
                    componentize(&module).with_context(|| format!("cannot make a component of {name}"))?;
                forbid_paths(name, &bytes, &[repository.to_owned(), target_directory.clone()])?;
                Ok(Guest { name, bytes })
            })
            .collect()
    }

    /// Compiler flags, in cargo's encoding, that replace every path of this machine.
    fn remapped_paths(&self, repository: &Path) -> Result<String> {
        let cargo_home = cargo_home().context("neither CARGO_HOME nor HOME is set")?;
        // Of two prefixes that match, the compiler takes the later: the longer ones stand last.
        let mut flags: Vec<(PathBuf, &str)> = vec![
            (cargo_home, "/cargo"),
            (self.sysroot.clone(), "/sysroot"),
            (repository.to_owned(), "/redstart"),
        ];
        flags.sort_by_key(|(path, _)| path.as_os_str().len());
        let flags: Vec<String> =
            flags.iter().map(|(from, to)| format!("--remap-path-prefix={}={to}", from.display())).collect();
        Ok(flags.join("\u{1f}"))
    }
}

fn componentize(module: &[u8]) -> Result<Vec<u8>> {
    wit_component::ComponentEncoder::default().validate(true).module(module)?.encode()
}

/// Fails when a path of this machine is inside.
fn forbid_paths(name: &str, bytes: &[u8], paths: &[PathBuf]) -> Result<()> {
    let home = env::home_dir().into_iter();
    for path in paths.iter().cloned().chain(home).chain(cargo_home()) {
        let path = path.to_string_lossy().trim_end_matches('/').to_owned();
        // A home directory of `/` is no secret and would match everything.
        let found = !path.is_empty() && bytes.windows(path.len()).any(|window| window == path.as_bytes());
        ensure!(!found, "{name}.wasm contains the path {path} of this machine");
    }
    Ok(())
}

fn cargo() -> Command {
    Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(env::home_dir()?.join(".cargo")))
}

fn target_directory(repository: &Path) -> PathBuf {
    env::var_os("CARGO_TARGET_DIR")
        .map_or_else(|| repository.join("target"), |folder| repository.join(folder))
}

fn debian_linker() -> Option<PathBuf> {
    let versioned = (14..=30).rev().map(|version| format!("/usr/bin/wasm-ld-{version}"));
    std::iter::once("/usr/bin/wasm-ld".to_owned())
        .chain(versioned)
        .map(PathBuf::from)
        .find(|path| path.is_file())
}

fn sysroot(rustc: &Path) -> Result<PathBuf> {
    Ok(PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?))
}

fn version(tool: &Path) -> Result<String> {
    output(Command::new(tool).arg("--version"))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {command:?}"))?;
    ensure!(output.status.success(), "{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
