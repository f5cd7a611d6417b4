//! `redstart bench typing` against the real server: recordings lead to their final text, every figure is there and
//! possible, and what is wrong is said in words. How large the figures are is nobody's business here.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;

use redstart::client::Client;
use redstart_tests::redstart_binary;
use serde_json::{Value, json};

const SHARES: [&str; 5] =
    ["typed_through_share", "joined_share", "ahead_share", "cached_prompt_share", "wasted_token_share"];

fn typing(arguments: &[&str]) -> Output {
    let mut command = Command::new(redstart_binary());
    command.args(["bench", "typing"]).args(arguments).stdin(Stdio::null()).output().expect("redstart runs")
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn report(arguments: &[&str]) -> Value {
    let output = typing(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", stderr(&output));
    serde_json::from_slice(&output.stdout).expect("one JSON object")
}

/// Keys in a text with wide characters, an error put right, an accept, and an edit elsewhere.
fn small_recording() -> Value {
    let at = |line: usize, character: usize| json!({"line": line, "character": character});
    json!({
        "format": "redstart-typing/1",
        "language": "python",
        "file": "mean.py",
        "text": "# é😀\ndef mean(values):\n    return sum(values)\n",
        "events": [
            {"at_ms": 0, "caret": at(2, 22)},
            {"at_ms": 300, "insert": " "},
            {"at_ms": 420, "insert": "."},
            {"at_ms": 600, "delete": 1},
            {"at_ms": 700, "insert": "/"},
            {"at_ms": 1200, "accept": "line", "otherwise": " len(values)"},
            {"at_ms": 1900, "edit": {"start": at(0, 3), "end": at(0, 4), "text": "ü"}, "caret": at(0, 4)},
            {"at_ms": 2000, "insert": "!?"},
            {"at_ms": 2100, "caret": at(0, 5)},
            {"at_ms": 2200, "delete_forward": 1},
        ],
        "final_text": "# éü!\ndef mean(values):\n    return sum(values) / len(values)\n",
    })
}

/// The same without an accept, so that every replay has the same keys.
fn small_recording_of_keys() -> Value {
    let mut recording = small_recording();
    recording["events"][5] = json!({"at_ms": 1200, "insert": " len(values)"});
    recording
}

fn written(folder: &Path, name: &str, recording: &Value) -> String {
    let path = folder.join(name);
    std::fs::write(&path, recording.to_string()).expect("written");
    path.display().to_string()
}

/// Every figure is there, and a number that can be.
fn assert_possible(report: &Value) {
    for (key, percentiles) in [
        ("first_line_ms", &["p50", "p95", "p99"][..]),
        ("typed_through_ms", &["p50", "p95"]),
        ("typed_through_in_server_ms", &["p50", "p95"]),
        ("submit_ms", &["p50", "p95"]),
    ] {
        for percentile in percentiles {
            let value = &report[key][percentile];
            assert!(report[key].get(percentile).is_some(), "{key}.{percentile} is missing in {report}");
            assert!(value.is_null() || value.as_f64() > Some(0.0), "{key}.{percentile} is {value}");
        }
        let (p50, p95) = (report[key]["p50"].as_f64(), report[key]["p95"].as_f64());
        assert!(p50 <= p95, "{key}: {p50:?} {p95:?}");
    }
    for key in SHARES {
        let value = report.get(key).unwrap_or_else(|| panic!("{key} is missing in {report}"));
        // Another server does not say what it generated in vain.
        let unsaid =
            key == "wasted_token_share" && report.get("cancelled_generations").is_none_or(Value::is_null);
        // So fast a replay may leave a slow machine no time for a single one.
        let of_nothing = key != "wasted_token_share" && report["suggestions"] == 0;
        let possible = value.as_f64().is_some_and(|share| (0.0..=1.0).contains(&share));
        assert!(possible || (unsaid || of_nothing) && value.is_null(), "{key} is {value}");
    }
}

#[test]
fn recordings_lead_to_their_final_text_and_every_figure_is_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = written(folder.path(), "small.json", &small_recording());
    let report = report(&["--recording", &small, "--recording", "rust-grid", "--speed", "40"]);
    assert_possible(&report);
    assert_possible(&report["recordings"]["rust-grid"]);
    assert_possible(&report["recordings"][&small]);
    for key in ["requests", "suggestions", "keys", "looks"] {
        assert!(report[key].as_u64() > Some(0), "{key} in {report}");
    }
    assert_eq!(report["errors"], 0, "{report}");
    assert!(report["first_line_ms"]["p50"].as_f64() > Some(0.0), "there were suggestions: {report}");
    assert!(report["cached_prompt_share"].as_f64() > Some(0.0), "text was typed on: {report}");
    assert_eq!((report["editor"].as_str(), report["speed"].as_f64()), (Some("eager"), Some(40.0)));
    if cfg!(target_os = "linux") {
        assert!(report["cpu_seconds_per_minute"].as_f64() > Some(0.0), "{report}");
    }
}

#[test]
fn every_editors_habits_lead_to_the_final_text() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = written(folder.path(), "small.json", &small_recording_of_keys());
    let eager = report(&["--recording", &small, "--speed", "10", "--editor", "eager"]);
    let vscode = report(&["--recording", &small, "--speed", "10", "--editor", "vscode"]);
    let neovim = report(&["--recording", &small, "--speed", "10", "--editor", "neovim"]);
    for report in [&eager, &vscode, &neovim] {
        assert_possible(report);
    }
    assert_eq!(eager["cancelled_by_editor"], 0);
    assert!(neovim["requests"].as_u64() < eager["requests"].as_u64(), "{neovim}\n{eager}");
}

#[test]
fn what_is_wrong_with_a_recording_is_said_with_file_and_event() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bad_event = small_recording();
    bad_event["events"][3] = json!({"at_ms": 600, "delete": 99});
    let mut bad_end = small_recording();
    bad_end["final_text"] = json!("# éü!\nsomething else");
    let cases = [
        ("event.json", bad_event.to_string(), &["event.json", "event 4", "deletes 99 characters"][..]),
        ("end.json", bad_end.to_string(), &["end.json", "final_text", "something else"]),
        ("cut.json", small_recording().to_string()[..80].to_owned(), &["cut.json", "line 1"]),
    ];
    for (name, text, words) in cases {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("written");
        let output = typing(&["--recording", &path.display().to_string()]);
        assert!(!output.status.success(), "{name}");
        words.iter().for_each(|word| assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output)));
    }
    for (arguments, words) in [
        (&["--recording", "nowhere.json"][..], &["nowhere.json", "rust-grid"][..]),
        (&["--without", "haste"], &["haste", "typed-through, join, ahead"]),
        (&["--peer", "http://192.168.0.1:8012"], &["192.168.0.1", "not this machine"]),
        (&["--speed", "0"], &["0.1 to 1000"]),
    ] {
        let output = typing(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        words.iter().for_each(|word| assert!(stderr(&output).contains(word), "{word}: {}", stderr(&output)));
    }
}

/// A server that answers every `POST` with the same completion and passes the requests on.
fn infill_server(content: &'static str) -> (String, mpsc::Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let (requests, received) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            if let Some(request) = answer(stream, content)
                && requests.send(request).is_err()
            {
                return;
            }
        }
    });
    (address, received)
}

fn answer(stream: TcpStream, content: &str) -> Option<Value> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut head = String::new();
    while reader.read_line(&mut head).ok()? > 2 {}
    assert!(head.starts_with("POST /infill HTTP/1.1\r\n"), "{head}");
    let lowercase = head.to_ascii_lowercase();
    let length = lowercase.split("content-length: ").nth(1)?.split("\r\n").next()?.parse().ok()?;
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let timings = json!({"prompt_n": 5});
    let answer = json!({
        "content": content, "tokens_evaluated": 20, "tokens_predicted": 3, "timings": timings,
    })
    .to_string();
    let header = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length:";
    // A request that was taken back has closed its end.
    let _ = write!(&stream, "{header} {}\r\n\r\n{answer}", answer.len());
    serde_json::from_slice(&body).ok()
}

#[test]
fn a_peer_is_asked_the_same_and_stands_beside() {
    let folder = tempfile::tempdir().expect("a folder");
    let small = written(folder.path(), "small.json", &small_recording_of_keys());
    let (address, received) = infill_server(" / len(values)");
    let report = report(&["--recording", &small, "--speed", "10", "--peer", &address]);
    assert_possible(&report);
    let peer = &report["peer"];
    assert_possible(peer);
    assert_eq!(peer["cached_prompt_share"], 0.75, "{peer}");
    assert_eq!(peer["requests"], report["requests"]);
    assert!(peer["suggestions"].as_u64() > Some(0), "{peer}");

    let requests: Vec<Value> = received.try_iter().collect();
    let at_slash = requests
        .iter()
        .find(|request| request["prompt"] == "    return sum(values) /")
        .unwrap_or_else(|| panic!("asked after the slash: {requests:?}"));
    assert_eq!(at_slash["input_prefix"], "# é😀\ndef mean(values):\n");
    assert_eq!(at_slash["input_suffix"], "\n");
    assert_eq!((&at_slash["temperature"], &at_slash["cache_prompt"]), (&json!(0), &json!(true)));
}

#[test]
fn a_peer_that_is_not_there_is_a_sentence() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    let output = typing(&["--peer", &address]);
    assert!(!output.status.success());
    assert!(stderr(&output).contains("cannot reach the peer at 127.0.0.1"), "{}", stderr(&output));
}

#[tokio::test]
async fn what_an_editor_does_becomes_a_recording_that_can_be_replayed() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("mine.json");
    let mut server = tokio::process::Command::new(redstart_binary())
        .args(["bench", "typing", "--record"])
        .arg(&file)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("redstart starts");
    let (input, output) = (server.stdout.take().expect("piped"), server.stdin.take().expect("piped"));
    let mut client = Client::new(input, output);
    let capabilities = json!({"general": {"positionEncodings": ["utf-16"]}});
    let started = client.request("initialize", json!({"processId": null, "capabilities": capabilities}));
    assert_eq!(started.await.expect("an answer")["serverInfo"]["name"], "redstart", "it is the real server");
    client.notify("initialized", json!({})).await.expect("sent");
    let uri = "file:///w/mine.py";
    let document = json!({"uri": uri, "languageId": "python", "version": 1, "text": "x = '😀'\n"});
    client.notify("textDocument/didOpen", json!({"textDocument": document})).await.expect("sent");
    for (version, (character, typed)) in (2..).zip([(8, ";"), (9, " "), (10, "y")]) {
        let at = json!({"line": 0, "character": character});
        let change = json!({"range": {"start": at, "end": at}, "text": typed});
        let document = json!({"uri": uri, "version": version});
        let changed = json!({"textDocument": document, "contentChanges": [change]});
        client.notify("textDocument/didChange", changed).await.expect("sent");
    }
    let text = client.request("redstart/viewFileText", json!({"uri": uri})).await.expect("an answer");
    assert_eq!(text["text"], "x = '😀'; y\n", "edits reach the server");
    client.request("shutdown", Value::Null).await.expect("an answer");
    client.notify("exit", Value::Null).await.expect("sent");
    let ended = server.wait_with_output().await.expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(ended.status.success() && said.contains("Wrote 4 events of mine.py"), "{said}");

    let recording: Value = serde_json::from_slice(&std::fs::read(&file).expect("written")).expect("JSON");
    assert_eq!(recording["final_text"], "x = '😀'; y\n");
    assert_eq!(recording["events"][0]["caret"], json!({"line": 0, "character": 7}), "in code points");
    let report = report(&["--recording", &file.display().to_string(), "--speed", "10"]);
    assert_eq!(report["keys"], 4);
}

#[test]
fn edits_under_load_are_all_applied_and_counted() {
    let report = report(&["--load"]);
    let rows = report["histogram"].as_array().expect("rows");
    for column in ["idle", "load"] {
        let edits: u64 = rows.iter().filter_map(|row| row[column].as_u64()).sum();
        assert_eq!(edits, 2000, "{column}");
    }
    for key in ["idle_edit_ms", "edit_ms"] {
        assert!(report[key]["p50"].as_f64() > Some(0.0) && report[key]["max"].is_f64(), "{report}");
    }
    if std::path::Path::new("/proc/self/schedstat").exists() {
        for key in ["idle_wait_ms", "wait_ms"] {
            assert!(report[key]["max"].as_f64() > Some(0.0), "threads wait for a processor: {report}");
        }
    }
    assert!(report["answered"].as_u64() > Some(0), "there was load: {report}");
}

#[test]
fn help_teaches_by_examples() {
    let help = String::from_utf8_lossy(&typing(&["--help"]).stdout).into_owned();
    for words in
        ["--recording rust-grid", "--record mine.json", "--peer http://127.0.0.1", "docs/RECORDINGS.md"]
    {
        assert!(help.contains(words), "'{words}' is missing in: {help}");
    }
}
