//! A real Neovim, with the very lines of `editors/neovim/init.lua`, talks to the real `redstart lsp`
//! over its embedded model: ghost text appears, `<Tab>` accepts it, the code action is offered.
//!
//! `neovim/player.lua` presses the keys and writes down what a user would see; this file judges it.
//! Neovim is `$REDSTART_NVIM`, or else `nvim` on the PATH; it must be 0.12 or later, the first with
//! inline completion. Where there is none the test says so and passes: `cargo xtask neovim` gets one.

// A test reports to the terminal; no editor listens on its stdout.
#![expect(clippy::print_stderr, reason = "says why the test was skipped")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use redstart_tests::redstart_binary;
use serde::Deserialize;

/// What `player.lua` wrote down. A missing field is something the user waited for in vain.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Transcript {
    version: String,
    attached: bool,
    encoding: String,
    accepted: Suggestion,
    typed_through: Suggestion,
    /// Accepted after half of its first line was typed.
    typed_half: Suggestion,
    /// What was shown then.
    rest: Option<String>,
    /// Typed out, its first line.
    typed_out: Suggestion,
    menu: Vec<String>,
    told: Vec<String>,
    plain_tab: String,
    exit: Option<i32>,
    servers: usize,
    all_gone: bool,
    /// The driver's own failure, with its traceback.
    trouble: Option<String>,
}

/// One suggestion on display, and the buffer before and after it was accepted.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Suggestion {
    ghost: Option<String>,
    before: Vec<String>,
    /// Row from 1 and byte column from 0, as Neovim counts.
    caret: (usize, usize),
    screen: Vec<String>,
    after: Vec<String>,
    half: String,
}

impl Suggestion {
    /// The buffer must be what it was, with the ghost text at the caret: nothing lost, nothing doubled.
    fn assert_accepted(&self) {
        let ghost = self.ghost.as_deref().expect("no ghost text appeared");
        assert!(!ghost.trim().is_empty(), "the ghost text is blank: {ghost:?}");
        self.assert_inserted(ghost);
    }

    fn assert_inserted(&self, ghost: &str) {
        let mut expected = self.before.clone();
        let (row, column) = self.caret;
        expected[row - 1].insert_str(column, ghost);
        let expected = expected.join("\n");
        assert_eq!(self.after.join("\n"), expected, "accepting {ghost:?} gave another text than it showed");
    }

    /// The ghost text must be on the screen, line by line, not only in Neovim's records.
    fn assert_on_screen(&self) {
        let ghost = self.ghost.as_deref().expect("no ghost text appeared");
        for line in ghost.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let shown = self.screen.iter().any(|row| row.contains(line));
            assert!(shown, "{line:?} is not on the screen:\n{}", self.screen.join("\n"));
        }
    }
}

#[test]
fn a_neovim_user_sees_and_accepts_a_suggestion_and_is_offered_the_review() {
    let Some(nvim) = neovim() else { return };
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    let home = tempfile::tempdir().expect("a temporary folder");
    let file = home.path().join("bank.py");
    fs::copy(manifest_dir.join("tests/neovim/bank.py"), &file).expect("copying the file to type in");
    let transcript_path = home.path().join("transcript.json");

    let binary = redstart_binary();
    let mut path = vec![binary.parent().expect("the binary lies in a folder").to_path_buf()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()));
    let output = Command::new(&nvim)
        .args(["--clean", "--headless", "-l"])
        .arg(manifest_dir.join("tests/neovim/player.lua"))
        .arg(&nvim)
        .arg(manifest_dir.join("../editors/neovim/init.lua"))
        .arg(&file)
        .arg(&transcript_path)
        .current_dir(home.path())
        .env("PATH", std::env::join_paths(path).expect("a PATH"))
        // The developer's own Neovim configuration, state and plugins stay out of it.
        .env("HOME", home.path())
        .env("XDG_CONFIG_HOME", home.path().join("config"))
        .env("XDG_DATA_HOME", home.path().join("data"))
        .env("XDG_STATE_HOME", home.path().join("state"))
        .env("XDG_CACHE_HOME", home.path().join("cache"))
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", nvim.display()));

    let report = fs::read_to_string(&transcript_path).unwrap_or_default();
    let log = fs::read_to_string(home.path().join("state/nvim/lsp.log")).unwrap_or_default();
    // Printed by the test runner only when an assertion below fails.
    eprintln!("Neovim said: {}", String::from_utf8_lossy(&output.stderr));
    eprintln!("Neovim's log of the server:\n{log}");
    eprintln!("Transcript: {report}");
    assert!(output.status.success(), "the driver failed: {}", output.status);
    let seen: Transcript = serde_json::from_str(&report).expect("a transcript");

    assert_eq!(seen.trouble, None, "the driver met an error");
    assert!(seen.attached, "Neovim {} did not start the server with init.lua's lines", seen.version);
    assert_eq!(seen.encoding, "utf-8", "Neovim offers utf-8 first and the server speaks it");
    seen.accepted.assert_on_screen();
    seen.accepted.assert_accepted();
    seen.typed_through.assert_accepted();

    // Longer than what was shown first it may be; beginning otherwise it may not.
    let rest = seen.rest.as_deref().expect("no ghost text after half of it was typed");
    let whole = format!("{}{rest}", seen.typed_half.half);
    let first = seen.typed_half.ghost.as_deref().unwrap_or_default();
    assert!(whole.starts_with(first), "{first:?} became {whole:?} while it was typed");
    seen.typed_half.assert_inserted(&whole);
    let first_line = seen.typed_out.ghost.as_deref().unwrap_or_default().lines().next();
    seen.typed_out.assert_inserted(first_line.expect("no ghost text appeared"));

    let review = seen.menu.iter().find(|title| title.starts_with("Review this function"));
    let review = review.unwrap_or_else(|| panic!("no review among the code actions {:?}", seen.menu));
    assert!(review.ends_with("(disabled)"), "the embedded model cannot review, yet {review:?} is enabled");
    let reason = seen.told.first().map(String::as_str).unwrap_or_default();
    assert!(reason.contains("review"), "choosing a disabled action must say why, it said {reason:?}");

    assert_eq!(seen.plain_tab, "\tx", "<Tab> must stay a tab where there is no suggestion");
    assert_eq!(seen.exit, Some(0), "Neovim did not leave cleanly");
    assert!(seen.servers >= 1, "no server process ran under Neovim");
    assert!(seen.all_gone, "the server outlived the editor");
}

/// The Neovim to drive, or nothing after saying why not.
fn neovim() -> Option<PathBuf> {
    let (nvim, chosen) = match std::env::var_os("REDSTART_NVIM") {
        Some(path) => (PathBuf::from(path), true),
        None => (PathBuf::from("nvim"), false),
    };
    let probe = Command::new(&nvim)
        .args(["--clean", "--headless", "-c", "execute 'cquit' !has('nvim-0.12')"])
        .output();
    let why_not = match probe {
        Ok(output) if output.status.success() => return Some(nvim),
        Ok(_) => "it is older than 0.12, the first with inline completion".to_owned(),
        Err(error) => format!("it does not start: {error}"),
    };
    assert!(!chosen, "REDSTART_NVIM is {}, but {why_not}", nvim.display());
    eprintln!("skipped: {} on the PATH: {why_not}; `cargo xtask neovim` gets one", nvim.display());
    None
}
