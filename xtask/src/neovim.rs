//! Gets a Neovim that has inline completion (0.12 or later), without touching the system.
//!
//! The one on the PATH is used where it is new enough. Elsewhere, on a machine with apt, Debian's package
//! and the libraries it needs are downloaded (12 MB, signatures checked by apt, no root) and unpacked
//! into a folder. They bring their own C library, newer than many a stable distribution's, so a small
//! `nvim` script starts the editor through their own dynamic loader; processes that the editor starts
//! (the language server) are ordinary processes of the machine.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::repository;

/// The Debian release that first has Neovim 0.12.
const SUITE: &str = "forky";
/// The keys of Debian's archive, where Debian and its derivatives install them.
const KEYRINGS: &[&str] =
    &["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"];

/// Get Neovim 0.12 or later for the editor test, and print its path.
///
/// Takes `nvim` from the PATH if it is new enough. Otherwise downloads Debian's package with apt into
/// DIR, once; the system is left as it is, and root is not needed.
#[derive(clap::Args)]
#[command(
    after_help = "To drive a Neovim of your own: REDSTART_NVIM=/path/to/nvim cargo xtask test --only neovim,build,test"
)]
pub(crate) struct Options {
    /// Where to unpack Neovim [default: .cache/neovim in the repository]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// A Neovim that has been seen to start.
pub(crate) struct Neovim {
    pub(crate) path: PathBuf,
    /// Its own words, such as `NVIM v0.12.4`.
    pub(crate) version: String,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let neovim = match &options.dir {
        Some(dir) => find_or_fetch(&std::path::absolute(dir)?)?,
        None => find_or_fetch(&default_dir())?,
    };
    eprintln!("{}", neovim.version);
    println!("{}", neovim.path.display());
    Ok(())
}

/// Where Neovim is unpacked unless told otherwise: out of `cargo clean`'s way.
pub(crate) fn default_dir() -> PathBuf {
    repository().join(".cache/neovim")
}

/// `$REDSTART_NVIM`, `nvim` on the PATH, or the one already unpacked in `dir`.
pub(crate) fn find(dir: &Path) -> Result<Neovim> {
    if let Some(chosen) = std::env::var_os("REDSTART_NVIM") {
        return probe(Path::new(&chosen)).context("REDSTART_NVIM names a Neovim that cannot be used");
    }
    let on_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("nvim"))
        .find(|candidate| candidate.is_file());
    let why_not = match on_path {
        Some(path) => match probe(&path) {
            Ok(neovim) => return Ok(neovim),
            Err(error) => format!("{error:#}"),
        },
        None => "no nvim on the PATH".to_owned(),
    };
    probe(&dir.join("nvim")).ok().context(why_not)
}

/// As [`find`], but downloads one into `dir` when there is none. The error says why neither worked.
pub(crate) fn find_or_fetch(dir: &Path) -> Result<Neovim> {
    match find(dir) {
        Ok(neovim) => Ok(neovim),
        Err(error) if std::env::var_os("REDSTART_NVIM").is_some() => Err(error),
        Err(error) => fetch(dir).map_err(|trouble| {
            trouble
                .context(format!("{error:#}, and it could not be downloaded; install Neovim 0.12 or later"))
        }),
    }
}

/// Asks a Neovim for its version and whether that is recent enough.
fn probe(path: &Path) -> Result<Neovim> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let output = output.with_context(|| format!("{} does not start", path.display()))?;
    let version = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned();
    ensure!(output.status.success(), "{} --version failed: {}", path.display(), last_line(&output.stderr));
    let recent = Command::new(path)
        .args(["--clean", "--headless", "-c", "execute 'cquit' !has('nvim-0.12')"])
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("{} does not start", path.display()))?;
    ensure!(
        recent.status.success(),
        "{} is {version}; inline completion needs Neovim 0.12 or later",
        path.display()
    );
    Ok(Neovim { path: path.to_owned(), version })
}

/// Downloads and unpacks Debian's Neovim into `dir`.
fn fetch(dir: &Path) -> Result<Neovim> {
    ensure!(cfg!(target_os = "linux"), "only the Linux package can be downloaded");
    for tool in ["apt-get", "dpkg-deb"] {
        let found = Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        ensure!(found.is_ok_and(|status| status.success()), "this machine has no {tool}");
    }
    let keyring = KEYRINGS.iter().find(|path| Path::new(path).exists());
    let keyring = keyring.context("Debian's keys are missing; install the package debian-archive-keyring")?;
    eprintln!("Downloading Neovim into {} (once, about 30 MB with the package lists)", dir.display());

    // Unpacked beside its place and moved there when it works, so that an interrupted download leaves nothing.
    let staging = dir.with_extension("partial");
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| format!("removing {}", staging.display()))?;
    }
    let apt = staging.join("apt");
    download(&apt, keyring)?;
    let root = staging.join("root");
    for package in fs::read_dir(apt.join("cache/archives"))? {
        let package = package?.path();
        if package.extension() == Some(OsStr::new("deb")) {
            checked(Command::new("dpkg-deb").arg("--extract").arg(&package).arg(&root))?;
        }
    }
    write_starter(&staging, &root)?;
    fs::remove_dir_all(&apt).with_context(|| format!("removing {}", apt.display()))?;
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::rename(&staging, dir).with_context(|| format!("moving Neovim to {}", dir.display()))?;
    probe(&dir.join("nvim"))
}

/// The archive that this machine's apt takes Debian's packages from; every mirror has all releases.
fn debian_mirror() -> Result<String> {
    let output = Command::new("apt-get").args(["indextargets", "--format", "$(REPO_URI)"]).output()?;
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut archives = known.lines().map(|uri| uri.trim_end_matches('/'));
    let archive = archives.find(|uri| uri.ends_with("/debian"));
    archive.map(str::to_owned).context("this machine's apt knows no Debian archive")
}

/// Lets apt download Neovim and its libraries into `apt/cache/archives`, with lists and state of its own
/// there: to apt, nothing is installed yet, so it brings everything down to the C library.
fn download(apt: &Path, keyring: &str) -> Result<()> {
    for folder in ["state/lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder)).with_context(|| format!("creating {}", apt.display()))?;
    }
    let place = apt.to_str().context("apt needs a path in UTF-8")?;
    ensure!(!place.contains(['"', ' ']), "apt cannot work under a path with spaces or quotes: {place}");
    fs::write(apt.join("installed"), "")?;
    let mirror = debian_mirror()?;
    fs::write(apt.join("sources.list"), format!("deb [signed-by={keyring}] {mirror} {SUITE} main\n"))?;
    let config = format!(
        r#"Dir::State "{place}/state";
Dir::State::status "{place}/installed";
Dir::Cache "{place}/cache";
Dir::Etc::sourcelist "{place}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
APT::Install-Recommends "false";
APT::Sandbox::User "";
"#
    );
    let config_path = apt.join("apt.conf");
    fs::write(&config_path, config)?;
    for arguments in [&["update"][..], &["install", "--yes", "--download-only", "neovim"]] {
        checked(Command::new("apt-get").args(arguments).env("APT_CONFIG", &config_path))?;
    }
    Ok(())
}

/// Writes `dir/nvim`, which starts the unpacked Neovim with the loader and libraries it was built for.
fn write_starter(dir: &Path, root: &Path) -> Result<()> {
    let loader = entries(&root.join("usr/lib"))?
        .into_iter()
        .chain(entries(&root.join("usr/lib64")).unwrap_or_default())
        .flat_map(|entry| if entry.is_dir() { entries(&entry).unwrap_or_default() } else { vec![entry] })
        .find(|path| file_name(path).starts_with("ld-linux"))
        .context("the C library's package has no dynamic loader")?;
    let library = entries(&root.join("usr/lib"))?
        .into_iter()
        .find(|path| file_name(path).ends_with("-linux-gnu"))
        .context("the packages have no library folder")?;
    let script = format!(
        r#"#!/bin/sh
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
export VIMRUNTIME="$here/root/usr/share/nvim/runtime"
exec "$here/{}" --library-path "$here/{}" --argv0 nvim "$here/root/usr/bin/nvim" "$@"
"#,
        loader.strip_prefix(dir)?.display(),
        library.strip_prefix(dir)?.display(),
    );
    let starter = dir.join("nvim");
    fs::write(&starter, script)?;
    fs::set_permissions(&starter, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let read = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    Ok(read.collect::<std::io::Result<Vec<_>>>()?.into_iter().map(|entry| entry.path()).collect())
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

/// Runs a command quietly; its last words become the error when it fails.
fn checked(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output();
    let program = command.get_program().to_string_lossy().into_owned();
    let output = output.with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        bail!("{program} failed: {}", last_line(&output.stderr));
    }
    Ok(())
}

fn last_line(text: &[u8]) -> String {
    String::from_utf8_lossy(text)
        .lines()
        .rfind(|line| !line.trim().is_empty())
        .unwrap_or("no message")
        .to_owned()
}
