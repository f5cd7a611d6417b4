//! Compiles the CUDA kernels for every architecture and watches what they take.
//!
//! A kernel that spills registers, or that grew so far that fewer blocks of it fit on a multiprocessor, still
//! gives right answers; on machines without a GPU only the assembler's report shows it. So that report is kept
//! in `kernels/budgets.txt`, and a change that makes a kernel larger changes that file, too.
//!
//! nvcc comes as Python packages where there is none (no root, no GPU); the build script of `redstart-kernels`
//! finds it in the same folder.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use redstart_kernels_toolchain::compile::{Compiled, compile};
use redstart_kernels_toolchain::nvcc::{self, NoNvcc, Nvcc};
use redstart_kernels_toolchain::ptxas::Resources;
use redstart_kernels_toolchain::sources::Sources;

use crate::{repository, target_dir};

/// The packages that make an nvcc, and the compiler library that its test compiles with.
const PACKAGES: [&str; 5] =
    ["nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm", "nvidia-cuda-runtime", "nvidia-cuda-nvrtc"];
/// Their release. The budgets are of this one.
const RELEASE: &str = "13.0";

/// Compile the CUDA kernels for every architecture, and show the registers and memory that each takes.
#[derive(clap::Args)]
#[command(
    after_help = "Examples:\n  cargo xtask kernels --install   get nvcc (250 MB, no root), so that every build embeds the kernels\n  \
    cargo xtask kernels             compile and show the table\n  \
    cargo xtask kernels --check     compare with kernels/budgets.txt\n  \
    cargo xtask kernels --update    rewrite kernels/budgets.txt after a change that was meant"
)]
pub(crate) struct Options {
    /// Get nvcc as Python packages into the target folder if there is none
    #[arg(long)]
    install: bool,
    /// Fail if a kernel takes more than kernels/budgets.txt says, or spills
    #[arg(long, conflicts_with = "update")]
    check: bool,
    /// Write kernels/budgets.txt anew
    #[arg(long)]
    update: bool,
}

/// True when nothing was found wrong.
pub(crate) fn run(options: &Options) -> Result<bool> {
    let nvcc = if options.install { find_or_install()? } else { find()? };
    println!("nvcc {} at {}", nvcc.version, nvcc.path.display());
    if options.install && !options.check && !options.update {
        return Ok(true);
    }
    let compiled = compile_all(&nvcc)?;
    print!("{}", Budgets::of(&nvcc, &compiled).table());
    let file = budgets_file();
    if options.update {
        let allowed = std::fs::read_to_string(&file).ok().and_then(|text| Budgets::parse(&text).ok());
        let mut budgets = Budgets::of(&nvcc, &compiled);
        budgets.keep_allowances(allowed.as_ref());
        std::fs::write(&file, budgets.file()).with_context(|| format!("writing {}", file.display()))?;
    }
    if !options.check && !options.update {
        return Ok(true);
    }
    let complaints = compare_with_file(&nvcc, &compiled)?;
    complaints.iter().for_each(|complaint| println!("{complaint}"));
    Ok(complaints.is_empty())
}

/// What the check found.
pub(crate) enum Checked {
    /// With a word on what was compiled.
    Good(String),
    /// What is wrong, line by line.
    Bad(Vec<String>),
    /// Why nothing was compared.
    Skipped(String),
}

/// Gets nvcc if there is none, compiles everything and compares: the part of `cargo xtask test`.
pub(crate) fn check() -> Result<Checked> {
    if matches!(find_quietly(), Err(NoNvcc::Unwanted)) {
        return Ok(Checked::Skipped("REDSTART_NVCC=none".to_owned()));
    }
    let nvcc = match find_or_install() {
        Ok(nvcc) => nvcc,
        Err(error) if std::env::var_os("REDSTART_NVCC").is_some() => return Err(error),
        Err(error) => return Ok(Checked::Skipped(format!("so are the embedded kernels: {error:#}"))),
    };
    println!("nvcc {} at {}", nvcc.version, nvcc.path.display());
    let started = Instant::now();
    let compiled = compile_all(&nvcc)?;
    let budgets = Budgets::of(&nvcc, &compiled);
    print!("{}", budgets.table());
    let file = Budgets::read()?;
    if file.release != budgets.release {
        let (ours, theirs) = (&budgets.release, &file.release);
        return Ok(Checked::Skipped(format!(
            "compiled, but the budgets are of nvcc {theirs} and this is {ours}"
        )));
    }
    let complaints = compare_with_file(&nvcc, &compiled)?;
    if !complaints.is_empty() {
        return Ok(Checked::Bad(complaints));
    }
    let (kernels, seconds) = (budgets.kernels.len(), started.elapsed().as_secs());
    let architectures = compiled.architectures.len();
    Ok(Checked::Good(format!(
        "{kernels} kernels for {architectures} architectures by nvcc {} in {seconds} s",
        nvcc.version
    )))
}

/// The folder that builds share, as the build script of `redstart-kernels` knows it.
fn shared_folder() -> PathBuf {
    target_dir().join("cuda")
}

fn find_quietly() -> Result<Nvcc, NoNvcc> {
    nvcc::find(Some(&shared_folder().join("nvcc")))
}

fn find() -> Result<Nvcc> {
    Ok(find_quietly()?)
}

fn find_or_install() -> Result<Nvcc> {
    match find_quietly() {
        Ok(nvcc) => Ok(nvcc),
        Err(NoNvcc::NotFound | NoNvcc::Unusable { .. }) if std::env::var_os("REDSTART_NVCC").is_none() => {
            install().context("nvcc could not be installed")?;
            find()
        }
        Err(error) => Err(error.into()),
    }
}

/// Puts the packages into a folder of their own, where no Python looks for packages by itself.
fn install() -> Result<()> {
    ensure!(cfg!(any(target_os = "linux", windows)), "NVIDIA has no compiler for this system");
    let shared = shared_folder();
    let (folder, fresh) = (shared.join("nvcc"), shared.join("nvcc-fresh"));
    std::fs::create_dir_all(&shared).with_context(|| format!("making {}", shared.display()))?;
    let pip = pip(&shared)?;
    for old in [&folder, &fresh] {
        if old.exists() {
            std::fs::remove_dir_all(old).with_context(|| format!("removing {}", old.display()))?;
        }
    }
    let packages = PACKAGES.map(|package| format!("{package}=={RELEASE}.*"));
    println!("pip install {}", packages.join(" "));
    let output = Command::new(&pip)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"])
        .args(["--only-binary", ":all:", "--target"])
        .arg(&fresh)
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .context("starting pip")?;
    ensure!(output.status.success(), "pip: {}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::rename(&fresh, &folder).context("moving the packages to their place")?;
    // The build script watches this file.
    let path = nvcc::in_packages(&folder).into_iter().next().context("the packages hold no nvcc")?;
    std::fs::write(shared.join("nvcc.txt"), format!("{}\n", path.display())).context("noting where nvcc is")
}

/// A Python that has pip: the system's, or, where that has none, one of a virtual environment.
fn pip(shared: &Path) -> Result<PathBuf> {
    let python = PathBuf::from(if cfg!(windows) { "python" } else { "python3" });
    let works = |python: &Path, arguments: &[&str]| {
        let command = Command::new(python).args(arguments).stdin(Stdio::null()).output();
        command.is_ok_and(|output| output.status.success())
    };
    ensure!(works(&python, &["--version"]), "there is no python3; install it, or nvcc 12.8 or later");
    if works(&python, &["-m", "pip", "--version"]) {
        return Ok(python);
    }
    let environment = shared.join("pip");
    let made = works(&python, &["-m", "venv", &environment.to_string_lossy()]);
    let inside = environment.join(if cfg!(windows) { "Scripts/python.exe" } else { "bin/python" });
    if made && works(&inside, &["-m", "pip", "--version"]) {
        return Ok(inside);
    }
    bail!("python3 has neither pip nor venv; install python3-pip or python3-venv")
}

fn compile_all(nvcc: &Nvcc) -> Result<Compiled> {
    let folder = repository().join("kernels/cuda");
    let sources = Sources::read(&folder).with_context(|| format!("reading {}", folder.display()))?;
    let started = Instant::now();
    let compiled = compile(nvcc, &sources, &shared_folder().join("kernels"))?;
    let bytes: u64 = compiled.units.iter().filter_map(|unit| Some(unit.image.metadata().ok()?.len())).sum();
    let seconds = started.elapsed().as_secs_f64();
    println!("{} files, {} KB of images, {seconds:.1} s", compiled.units.len(), bytes.div_ceil(1024));
    Ok(compiled)
}

fn budgets_file() -> PathBuf {
    repository().join("kernels/budgets.txt")
}

/// Everything wrong: the compiler's complaints, and kernels that take more than the file allows.
fn compare_with_file(nvcc: &Nvcc, compiled: &Compiled) -> Result<Vec<String>> {
    let mut complaints = compiled.warnings.clone();
    let budgets = Budgets::read()?;
    ensure!(
        budgets.release == release(nvcc),
        "the budgets are of nvcc {} and this is {}: run `cargo xtask kernels --install` with no other nvcc on the PATH",
        budgets.release,
        release(nvcc)
    );
    complaints.extend(budgets.compare(&Budgets::of(nvcc, compiled)));
    Ok(complaints)
}

fn release(nvcc: &Nvcc) -> String {
    format!("{}.{}", nvcc.release.0, nvcc.release.1)
}

/// What every kernel takes or may take.
#[derive(Debug, PartialEq, Eq)]
struct Budgets {
    /// The compiler's release; another gives other numbers.
    release: String,
    architectures: Vec<u32>,
    kernels: BTreeMap<String, Budget>,
}

/// Registers for each architecture; of the rest the most on any, for they hardly differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Budget {
    registers: Vec<u32>,
    shared: u32,
    stack: u32,
    spills: u32,
    /// Where there are spills; not in the file, which allows them on all.
    spills_on: Vec<u32>,
}

const HEAD: &str = "\
# What the kernels take: registers of a thread on each architecture, then the most on any architecture of
# static shared memory, of stack and of spilled registers, in bytes. `cargo xtask kernels --update` writes this
# file, except that it allows no new spills: where a kernel is better off with them, say so in the last column.
";

impl Budgets {
    fn of(nvcc: &Nvcc, compiled: &Compiled) -> Self {
        let kernels = compiled.units.iter().flat_map(|unit| &unit.kernels);
        Self {
            release: release(nvcc),
            architectures: compiled.architectures.clone(),
            kernels: kernels
                .map(|kernel| (kernel.name.clone(), Budget::of(&kernel.resources, &compiled.architectures)))
                .collect(),
        }
    }

    fn read() -> Result<Self> {
        let file = budgets_file();
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        Self::parse(&text).with_context(|| format!("{}", file.display()))
    }

    fn parse(text: &str) -> Result<Self> {
        let mut lines = text.lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty());
        let release =
            lines.next().and_then(|line| line.strip_prefix("nvcc ")).context("no line `nvcc RELEASE`")?;
        let head = lines.next().context("no line of column names")?;
        let architectures: Vec<u32> = head
            .split_whitespace()
            .filter_map(|name| name.strip_prefix("sm_"))
            .map(|number| number.parse().with_context(|| format!("sm_{number}")))
            .collect::<Result<_>>()?;
        let mut kernels = BTreeMap::new();
        for line in lines {
            let mut words = line.split_whitespace();
            let name = words.next().context("an empty line")?;
            let numbers: Vec<u32> = words
                .map(str::parse)
                .collect::<Result<_, _>>()
                .with_context(|| format!("the line of {name}"))?;
            ensure!(
                numbers.len() == architectures.len() + 3,
                "the line of {name} has too many or too few columns"
            );
            let (registers, [shared, stack, spills]) = numbers.split_at(architectures.len()) else {
                bail!("the line of {name}");
            };
            let budget = Budget {
                registers: registers.to_vec(),
                shared: *shared,
                stack: *stack,
                spills: *spills,
                ..Budget::default()
            };
            ensure!(kernels.insert(name.to_owned(), budget).is_none(), "{name} has two lines");
        }
        Ok(Self { release: release.trim().to_owned(), architectures, kernels })
    }

    fn table(&self) -> String {
        let width = self.kernels.keys().map(String::len).max().unwrap_or(0).max("kernel".len());
        let mut table = format!("{:<width$}", "kernel");
        for architecture in &self.architectures {
            write!(table, " {:>6}", format!("sm_{architecture}")).expect("a string takes all");
        }
        table.push_str(" shared  stack spills\n");
        for (name, budget) in &self.kernels {
            write!(table, "{name:<width$}").expect("a string takes all");
            for number in budget.registers.iter().chain([&budget.shared, &budget.stack, &budget.spills]) {
                write!(table, " {number:>6}").expect("a string takes all");
            }
            table.push('\n');
        }
        table
    }

    fn file(&self) -> String {
        format!("{HEAD}nvcc {}\n{}", self.release, self.table())
    }

    /// Spills are allowed by people: no more than the file had so far, and no more than there are.
    fn keep_allowances(&mut self, allowed: Option<&Self>) {
        for (name, budget) in &mut self.kernels {
            let allowance = allowed.and_then(|allowed| allowed.kernels.get(name)).map_or(0, |old| old.spills);
            budget.spills = budget.spills.min(allowance);
        }
    }

    /// How what is there now exceeds these budgets, a line each.
    fn compare(&self, now: &Self) -> Vec<String> {
        const UPDATE: &str = "`cargo xtask kernels --update` if that is meant";
        let mut complaints = Vec::new();
        if self.architectures != now.architectures {
            complaints
                .push(format!("compiled for {:?} instead of {:?}", now.architectures, self.architectures));
            return complaints;
        }
        for (name, taken) in &now.kernels {
            let Some(budget) = self.kernels.get(name) else {
                complaints.push(format!("{name} has no budget: {UPDATE}"));
                continue;
            };
            for (place, architecture) in self.architectures.iter().enumerate() {
                let (allowed, taken) = (budget.registers[place], taken.registers[place]);
                if taken > allowed {
                    complaints.push(format!(
                        "{name} on sm_{architecture}: {taken} registers, {allowed} allowed: {UPDATE}"
                    ));
                }
            }
            let rest = [("shared memory", taken.shared, budget.shared), ("stack", taken.stack, budget.stack)];
            for (what, taken, allowed) in rest {
                if taken > allowed {
                    complaints.push(format!("{name}: {taken} bytes of {what}, {allowed} allowed: {UPDATE}"));
                }
            }
            if taken.spills > budget.spills {
                let (spills, allowed) = (taken.spills, budget.spills);
                let on: Vec<String> = taken.spills_on.iter().map(|on| format!("sm_{on}")).collect();
                let on = on.join(", ");
                complaints.push(format!(
                    "{name} on {on}: {spills} bytes of spilled registers, {allowed} allowed: \
                     make it smaller, or allow them by hand"
                ));
            }
        }
        for name in self.kernels.keys().filter(|name| !now.kernels.contains_key(*name)) {
            complaints.push(format!("{name} has a budget and is not compiled: {UPDATE}"));
        }
        complaints
    }
}

impl Budget {
    fn of(resources: &[Resources], architectures: &[u32]) -> Self {
        let spills = |taken: &Resources| taken.spill_stores.max(taken.spill_loads);
        let most = |what: fn(&Resources) -> u32| resources.iter().map(what).max().unwrap_or(0);
        Self {
            registers: resources.iter().map(|taken| taken.registers).collect(),
            shared: most(|taken| taken.shared),
            stack: most(|taken| taken.stack),
            spills: most(spills),
            spills_on: resources
                .iter()
                .zip(architectures)
                .filter(|(taken, _)| spills(taken) > 0)
                .map(|(_, &on)| on)
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(kernels: &[(&str, [u32; 5])]) -> Budgets {
        let kernels = kernels.iter().map(|&(name, [first, second, shared, stack, spills])| {
            (
                name.to_owned(),
                Budget { registers: vec![first, second], shared, stack, spills, spills_on: vec![] },
            )
        });
        Budgets { release: "13.0".to_owned(), architectures: vec![80, 120], kernels: kernels.collect() }
    }

    #[test]
    fn the_file_is_read_as_it_is_written() {
        let budgets =
            budgets(&[("a_long_name_of_a_kernel", [255, 168, 49152, 16, 8]), ("b", [8, 9, 0, 0, 0])]);
        assert_eq!(Budgets::parse(&budgets.file()).unwrap(), budgets);
        let error = Budgets::parse(&budgets.file().replace(" 168 ", " ")).unwrap_err().to_string();
        assert!(error.contains("a_long_name_of_a_kernel"), "{error}");
    }

    #[test]
    fn growth_is_named_and_shrinking_is_not() {
        let allowed =
            budgets(&[("a", [40, 40, 0, 0, 0]), ("gone", [8, 8, 0, 0, 0]), ("small", [64, 64, 64, 0, 0])]);
        let mut now =
            budgets(&[("a", [40, 41, 16, 8, 4]), ("new", [8, 8, 0, 0, 0]), ("small", [60, 60, 32, 0, 0])]);
        now.kernels.get_mut("a").unwrap().spills_on = vec![80, 120];
        let complaints = allowed.compare(&now);
        let starts = [
            "a on sm_120: 41 registers, 40 allowed",
            "a: 16 bytes of shared memory, 0 allowed",
            "a: 8 bytes of stack, 0 allowed",
            "a on sm_80, sm_120: 4 bytes of spilled registers, 0 allowed",
            "new has no budget",
            "gone has a budget and is not compiled",
        ];
        assert_eq!(complaints.len(), starts.len(), "{complaints:#?}");
        for (complaint, start) in complaints.iter().zip(starts) {
            assert!(complaint.starts_with(start), "{complaint}");
        }
        assert_eq!(now.compare(&now), [""; 0]);
    }

    #[test]
    fn an_update_allows_no_new_spills() {
        let allowed = budgets(&[("less", [8, 8, 0, 0, 16]), ("more", [8, 8, 0, 0, 16])]);
        let mut now =
            budgets(&[("less", [8, 8, 0, 0, 4]), ("more", [8, 8, 0, 0, 32]), ("new", [8, 8, 0, 0, 4])]);
        now.keep_allowances(Some(&allowed));
        let spills: Vec<u32> = now.kernels.values().map(|budget| budget.spills).collect();
        assert_eq!(spills, [4, 16, 0]);
    }
}
