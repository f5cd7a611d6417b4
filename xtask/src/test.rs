//! Runs every check of the project and sums up what ran, what was skipped and why.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::{kernels, neovim, plugins, repository, target_dir};

/// Run every check that a change must pass, and sum up at the end.
///
/// A check that fails does not stop the others; the exit status is non-zero when any failed. What a
/// machine lacks is set up where that needs no root (Neovim, nvcc, rustfmt, clippy), else the check is
/// skipped and the summary says why.
#[derive(clap::Args)]
#[command(after_help = "Examples:\n  cargo xtask test                     everything\n  \
    cargo xtask test --only fmt,clippy   the quick ones before a commit\n  \
    cargo xtask test --skip plugins      without rebuilding the plugins\n\n\
    One test alone: cargo test -p redstart-engine NAME\n\
    The editor test is part of `test`; it drives $REDSTART_NVIM, nvim on the PATH or the Neovim that `neovim` downloads.")]
pub(crate) struct Options {
    /// Run only these parts
    #[arg(long, value_delimiter = ',', value_name = "PART,...")]
    only: Vec<Part>,
    /// Leave these parts out
    #[arg(long, value_delimiter = ',', value_name = "PART,...")]
    skip: Vec<Part>,
}

/// One check; they run in this order. The tests come last, so that their own summary closes the output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
enum Part {
    /// The code is formatted
    Fmt,
    /// The CUDA kernels compile for every architecture and none outgrew its budget; gets nvcc where there is none
    Kernels,
    /// Every CUDA kernel on the host with the address and undefined-behaviour sanitizers
    Sanitize,
    /// No lint of the workspace objects
    Clippy,
    /// The native tests of the plugin guests
    Guests,
    /// The committed plugins are what their sources build
    Plugins,
    /// Find or download Neovim 0.12 or later for the editor test
    Neovim,
    /// Build the workspace, its commands and its tests
    Build,
    /// The tests and documentation examples of the workspace, the editor test among them
    Test,
}

impl Part {
    fn name(self) -> String {
        let value = self.to_possible_value().expect("no part is hidden");
        value.get_name().to_owned()
    }
}

enum Outcome {
    /// With a word on what was found, if there is one.
    Passed(String),
    Failed(String),
    Skipped(String),
}

/// What the parts of one run share.
#[derive(Default)]
struct Session {
    results: BTreeMap<Part, (Outcome, Duration)>,
    /// The Neovim for the editor test.
    neovim: Option<PathBuf>,
    /// The test runner's own summary, word for word.
    runner_summary: Vec<String>,
}

/// Runs the chosen parts. True when none failed.
pub(crate) fn run(options: &Options) -> Result<bool> {
    std::env::set_current_dir(repository()).context("entering the repository")?;
    let started = Instant::now();
    let mut session = Session::default();
    for part in Part::value_variants() {
        let left_out =
            (!options.only.is_empty() && !options.only.contains(part)) || options.skip.contains(part);
        let part_started = Instant::now();
        let outcome = if left_out {
            Outcome::Skipped("left out on the command line".to_owned())
        } else {
            heading(&format!("{}: {}", part.name(), help(*part)));
            session.perform(*part).unwrap_or_else(|error| Outcome::Failed(format!("{error:#}")))
        };
        session.results.insert(*part, (outcome, part_started.elapsed()));
    }
    Ok(session.sum_up(started.elapsed()))
}

impl Session {
    fn perform(&mut self, part: Part) -> Result<Outcome> {
        match part {
            Part::Fmt => with_component("rustfmt", cargo(&["fmt", "--all", "--check"])),
            // Before anything is built: the builds embed the kernels once there is an nvcc.
            Part::Kernels => Ok(match kernels::check()? {
                kernels::Checked::Good(what) => Outcome::Passed(what),
                kernels::Checked::Bad(complaints) => {
                    complaints.iter().for_each(|complaint| println!("{complaint}"));
                    Outcome::Failed(complaints.join("; "))
                }
                kernels::Checked::Skipped(reason) => Outcome::Skipped(reason),
            }),
            Part::Sanitize => sanitize(),
            Part::Clippy => {
                let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
                with_component("clippy", cargo(&lints))
            }
            Part::Guests => self.guests(),
            Part::Plugins => Ok(match plugins::check_committed()? {
                None => Outcome::Passed(String::new()),
                Some(reason) => Outcome::Skipped(reason),
            }),
            Part::Neovim => match neovim::find_or_fetch(&neovim::default_dir()) {
                Ok(found) => {
                    let what = format!("{} at {}", found.version, found.path.display());
                    println!("{what}");
                    self.neovim = Some(found.path);
                    Ok(Outcome::Passed(what))
                }
                Err(error) if std::env::var_os("REDSTART_NVIM").is_some() => Err(error),
                Err(error) => Ok(Outcome::Skipped(format!("so was the editor test: {error:#}"))),
            },
            // The same targets and so the same features as the test run: nothing is built twice.
            Part::Build => status(&mut cargo(&["build", "--workspace", "--bins", "--tests"])),
            Part::Test => self.tests(),
        }
    }

    /// The guests are a workspace of their own, for their wasm target; their logic is tested natively.
    fn guests(&self) -> Result<Outcome> {
        let mut command = cargo(&["test", "--manifest-path", "plugins/guests/Cargo.toml", "--workspace"]);
        status(command.arg("--target-dir").arg(target_dir().join("guests")))
    }

    fn tests(&mut self) -> Result<Outcome> {
        if let Some((Outcome::Failed(_), _)) = self.results.get(&Part::Build) {
            return Ok(Outcome::Skipped("the build failed".to_owned()));
        }
        let neovim = match self.neovim.take() {
            Some(path) => Some(path),
            None => neovim::find(&neovim::default_dir()).ok().map(|found| found.path),
        };
        // nextest runs tests side by side, but knows no documentation examples.
        if !has_nextest() {
            return self.run_tests(cargo(&["test", "--workspace", "--no-fail-fast"]), neovim.as_deref());
        }
        let examples = status(&mut cargo(&["test", "--workspace", "--doc", "--no-fail-fast"]))?;
        let tests =
            self.run_tests(cargo(&["nextest", "run", "--workspace", "--no-fail-fast"]), neovim.as_deref())?;
        Ok(match (examples, tests) {
            (Outcome::Failed(_), Outcome::Failed(tests)) => {
                Outcome::Failed(format!("documentation examples; {tests}"))
            }
            (Outcome::Failed(_), _) => Outcome::Failed("documentation examples".to_owned()),
            (_, tests) => tests,
        })
    }

    /// Runs the tests with their output passed on, and keeps the runner's summary.
    fn run_tests(&mut self, mut command: Command, neovim: Option<&Path>) -> Result<Outcome> {
        if let Some(path) = neovim {
            command.env("REDSTART_NVIM", path);
        }
        if std::io::stdout().is_terminal() {
            command.env("CARGO_TERM_COLOR", "always");
        }
        announce(&command);
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("starting cargo")?;
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let (from_stdout, from_stderr) = std::thread::scope(|scope| {
            let stdout = scope.spawn(|| stdout.map(|pipe| pass_on(pipe, std::io::stdout())));
            let stderr = stderr.map(|pipe| pass_on(pipe, std::io::stderr()));
            (stdout.join().expect("copying output does not panic"), stderr)
        });
        self.runner_summary.extend(from_stdout.into_iter().chain(from_stderr).flatten());
        judge(child.wait().context("waiting for cargo")?)
    }

    /// Prints the table of parts and, last, the test runner's own summary. True when nothing failed.
    fn sum_up(&self, total: Duration) -> bool {
        heading("summary");
        let mut failed = Vec::new();
        for (part, (outcome, time)) in &self.results {
            let (word, detail) = match outcome {
                Outcome::Passed(detail) => ("passed", detail),
                Outcome::Skipped(why) => ("skipped", why),
                Outcome::Failed(why) => {
                    failed.push(part.name());
                    ("FAILED", why)
                }
            };
            let line = format!("{:<8} {word:<8} {:>6.1} s  {detail}", part.name(), time.as_secs_f64());
            println!("{}", line.trim_end());
        }
        let verdict = match failed.as_slice() {
            [] => "nothing failed".to_owned(),
            names => format!("FAILED: {}", names.join(", ")),
        };
        println!("\n{verdict}, in {:.0} s", total.as_secs_f64());
        for line in &self.runner_summary {
            println!("{line}");
        }
        failed.is_empty()
    }
}

fn help(part: Part) -> String {
    let value = part.to_possible_value().expect("no part is hidden");
    value.get_help().map(ToString::to_string).unwrap_or_default()
}

fn heading(text: &str) {
    println!("\n=== {text}");
}

/// The cargo that runs this command.
fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(arguments);
    command
}

/// The shim's tests, its C++ built with sanitizers; in a folder of its own, as everything in it is built apart.
fn sanitize() -> Result<Outcome> {
    if !cfg!(target_os = "linux") {
        return Ok(Outcome::Skipped("the sanitizers are GCC's on Linux".to_owned()));
    }
    let mut command = cargo(if has_nextest() {
        &["nextest", "run", "--no-fail-fast"]
    } else {
        &["test", "--no-fail-fast"]
    });
    command.args(["-p", "redstart-kernels-shim", "--target-dir"]).arg(target_dir().join("sanitize"));
    // The kernels' images are not looked at here.
    command.env("REDSTART_SHIM_SANITIZE", "address,undefined").env("REDSTART_NVCC", "none");
    status(&mut command)
}

fn has_nextest() -> bool {
    let version = cargo(&["nextest", "--version"]).stdout(Stdio::null()).stderr(Stdio::null()).status();
    version.is_ok_and(|status| status.success())
}

/// Runs a command that needs a component of the toolchain, installing the component where rustup can.
fn with_component(component: &str, mut command: Command) -> Result<Outcome> {
    let tool = component.trim_start_matches("rust");
    let present = || {
        cargo(&[tool, "--version"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    if !present() {
        println!("rustup component add {component}");
        let added = Command::new("rustup").args(["component", "add", component]).status();
        if !added.is_ok_and(|status| status.success()) || !present() {
            return Ok(Outcome::Skipped(format!(
                "this toolchain has no {component}, and rustup could not add it"
            )));
        }
    }
    status(&mut command)
}

fn status(command: &mut Command) -> Result<Outcome> {
    announce(command);
    let program = command.get_program().to_string_lossy().into_owned();
    judge(command.stdin(Stdio::null()).status().with_context(|| format!("cannot start {program}"))?)
}

fn judge(status: std::process::ExitStatus) -> Result<Outcome> {
    Ok(if status.success() { Outcome::Passed(String::new()) } else { Outcome::Failed(status.to_string()) })
}

/// Shows the command as a reader would type it.
fn announce(command: &Command) {
    let program =
        Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    println!("$ {}", std::iter::once(program.into()).chain(arguments).collect::<Vec<_>>().join(" "));
}

/// Copies a runner's output line by line; returns the lines that are its summary: all from nextest's
/// `Summary` on, or each `test result:` of cargo test.
fn pass_on(from: impl Read, mut to: impl Write) -> Vec<String> {
    let mut summary: Vec<String> = Vec::new();
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    let mut closing = false;
    // A closed terminal must not stop the tests: what cannot be shown is dropped.
    while from.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
        to.write_all(&line).ok();
        to.flush().ok();
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        closing |= text.contains("Summary") && text.contains("run:");
        if closing || text.starts_with("test result:") {
            summary.push(text);
        }
        line.clear();
    }
    summary
}

#[cfg(test)]
mod tests {
    use super::pass_on;

    #[test]
    fn the_summary_of_nextest_is_kept_with_its_list_of_failures() {
        let output = "    PASS [ 0.1s] a b\n------\n     Summary [   0.1s] 2 tests run: 1 passed, 1 failed, 0 skipped\n    FAIL a c\n";
        let mut shown = Vec::new();
        let summary = pass_on(output.as_bytes(), &mut shown);
        assert_eq!(shown, output.as_bytes());
        assert_eq!(
            summary,
            ["     Summary [   0.1s] 2 tests run: 1 passed, 1 failed, 0 skipped", "    FAIL a c"]
        );
    }

    #[test]
    fn every_result_of_cargo_test_is_kept() {
        let output = "running 1 test\ntest a ... ok\n\ntest result: ok. 1 passed\n\nrunning 0 tests\n\ntest result: ok. 0 passed\n";
        assert_eq!(
            pass_on(output.as_bytes(), std::io::sink()),
            ["test result: ok. 1 passed", "test result: ok. 0 passed"]
        );
    }
}
