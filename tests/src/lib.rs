//! What the tests that cross crates share. The tests themselves are in `tests/tests`; the page
//! `tests/README.md` says what is tested where.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use redstart::client::Client;
use serde_json::{Value, json};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

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

/// A running `redstart lsp` and a client that speaks to it over stdio.
pub struct Session {
    /// The server's process.
    pub server: Child,
    /// The editor's side.
    pub client: Client<ChildStdout, ChildStdin>,
}

impl Session {
    /// Starts the server with `arguments`, initializes it for the workspace `file:///w` and waits for its
    /// model.
    ///
    /// # Panics
    ///
    /// When the server does not start or its model does not load.
    pub async fn start(arguments: &[&str]) -> Self {
        let mut server = Command::new(redstart_binary())
            .arg("lsp")
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("redstart starts");
        let (input, output) = (server.stdout.take().expect("piped"), server.stdin.take().expect("piped"));
        let mut client = Client::new(input, output);
        let kinds = json!({"codeActionKind": {"valueSet": ["", "quickfix", "source"]}});
        let capabilities = json!({
            "general": {"positionEncodings": ["utf-16"]},
            "textDocument": {
                "inlineCompletion": {},
                "codeAction": {"disabledSupport": true, "codeActionLiteralSupport": kinds},
                "publishDiagnostics": {},
            },
        });
        let folders = json!([{"uri": "file:///w", "name": "w"}]);
        let parameters =
            json!({"processId": null, "capabilities": capabilities, "workspaceFolders": folders});
        client.request("initialize", parameters).await.expect("initialized");
        client.notify("initialized", json!({})).await.expect("sent");
        loop {
            let status = client.request("redstart/status", Value::Null).await.expect("a status");
            match status["state"].as_str() {
                Some("ready") => return Self { server, client },
                Some("loading") => tokio::time::sleep(Duration::from_millis(5)).await,
                _ => panic!("{status}"),
            }
        }
    }

    /// Opens a Python document.
    ///
    /// # Panics
    ///
    /// When the server is gone.
    pub async fn open(&mut self, uri: &str, text: &str) {
        let document = json!({"uri": uri, "languageId": "python", "version": 1, "text": text});
        let parameters = json!({"textDocument": document});
        self.client.notify("textDocument/didOpen", parameters).await.expect("sent");
    }

    /// Leaves as an editor does.
    ///
    /// # Panics
    ///
    /// When the server does not end well.
    pub async fn end(mut self) {
        self.client.request("shutdown", Value::Null).await.expect("shut down");
        self.client.notify("exit", Value::Null).await.expect("sent");
        assert!(self.server.wait().await.expect("it ends").success(), "exit code 0 after shutdown");
    }
}
