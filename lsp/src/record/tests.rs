use std::fs;

use super::*;

fn shown(id: &str) -> Event {
    Event::Shown(Shown {
        id: id.into(),
        time: 1_700_000_000_000,
        language: "python".into(),
        chars: 12,
        lines: 1,
        source: "engine".into(),
        latency_ms: 40.5,
        first_line_ms: 31.0,
    })
}

fn path_in(folder: &tempfile::TempDir) -> PathBuf {
    folder.path().join("new/redstart/record.jsonl")
}

#[test]
fn what_is_recorded_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    let events = [
        shown("a"),
        Event::Accepted { id: "a".into() },
        Event::PartiallyAccepted { id: "b".into(), chars: 7 },
        Event::Rejected { id: "c".into() },
        Event::Survived { id: "a".into(), share: 0.75 },
    ];
    let recorder = Recorder::open(&path).unwrap();
    events.iter().cloned().for_each(|event| recorder.record(event));
    drop(recorder);
    // A second session goes on.
    let recorder = Recorder::open(&path).unwrap();
    recorder.record(shown("d"));
    drop(recorder);

    let mut read = read(&path).unwrap();
    let all: Vec<Event> = read.by_ref().collect();
    assert_eq!(all[..5], events);
    assert_eq!(all[5..], [shown("d")]);
    assert_eq!(read.damaged(), 0);
    assert_eq!(
        fs::read_to_string(&path).unwrap().lines().next().unwrap(),
        r#"{"event":"shown","id":"a","time":1700000000000,"language":"python","chars":12,"lines":1,"source":"engine","latency_ms":40.5,"first_line_ms":31.0}"#
    );
}

#[cfg(unix)]
#[test]
fn file_and_folder_are_for_this_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = path_in(&folder);
    drop(Recorder::open(&path).unwrap());
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o600);
    assert_eq!(mode(path.parent().unwrap()), 0o700);
}

#[test]
fn a_place_that_cannot_be_written_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(Recorder::open(&file.join("record.jsonl")).is_err());
    assert!(Recorder::open(folder.path()).is_err());
    assert!(read(&folder.path().join("missing.jsonl")).is_err());
}

#[test]
fn damage_is_skipped_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.jsonl");
    let line = |event: &Event| serde_json::to_string(event).unwrap();
    let cut = &line(&shown("cut"))[..30];
    let mut bytes = format!("{}\nnot json\n{cut}\n\n", line(&shown("a"))).into_bytes();
    bytes.extend(b"\xff\xfe\0\n{\"event\":\"unheard of\",\"id\":\"x\"}\n[1]\n");
    bytes.extend("x".repeat(1 << 20).as_bytes());
    bytes.extend(format!("\n{}\n{cut}", line(&shown("b"))).as_bytes());
    fs::write(&path, bytes).unwrap();
    let mut read = read(&path).unwrap();
    let all: Vec<Event> = read.by_ref().collect();
    assert_eq!(all, [shown("a"), shown("b")]);
    assert_eq!(read.damaged(), 7);
}

#[test]
fn a_large_file_becomes_the_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.jsonl");
    let line = serde_json::to_string(&shown("00")).unwrap().len() as u64 + 1;
    // Ten lines to a file; a second process has it open all the time.
    let mut first = RecordFile::with_limit(&path, 10 * line).unwrap();
    let mut second = RecordFile::with_limit(&path, 10 * line).unwrap();
    for at in 0..34 {
        let file = if at % 2 == 0 { &mut first } else { &mut second };
        file.append(&shown(&format!("{at:02}"))).unwrap();
    }
    let ids: Vec<String> = read(&path)
        .unwrap()
        .map(|event| match event {
            Event::Shown(shown) => shown.id,
            other => panic!("{other:?}"),
        })
        .collect();
    // The last ten of before, and four since.
    assert_eq!(ids, (20..34).map(|at| format!("{at:02}")).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

#[test]
fn several_servers_append_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record.jsonl");
    std::thread::scope(|scope| {
        for server in 0..4 {
            let path = &path;
            scope.spawn(move || {
                let mut file = RecordFile::open(path).unwrap();
                (0..200).for_each(|at| file.append(&shown(&format!("{server}-{at}"))).unwrap());
            });
        }
    });
    let mut read = read(&path).unwrap();
    let mut ids: Vec<String> = read
        .by_ref()
        .filter_map(|event| if let Event::Shown(shown) = event { Some(shown.id) } else { None })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!((ids.len(), read.damaged()), (800, 0));
}

#[test]
fn recording_never_waits() {
    // A reader that takes nothing stands for a disk that hangs.
    let (sender, events) = sync_channel(2);
    let recorder = Recorder { sender: Some(sender), writer: None };
    (0..10).for_each(|at| recorder.record(shown(&at.to_string())));
    drop(recorder);
    assert_eq!(events.iter().collect::<Vec<_>>(), [shown("0"), shown("1")]);
}

#[test]
fn ids_differ() {
    assert_ne!(new_id(), new_id());
}

#[test]
fn survival() {
    let text = "let total = price * count;\nreturn total;";
    assert_eq!(survived_share(text, text), 1.0);
    assert_eq!(survived_share(text, ""), 0.0);
    assert_eq!(survived_share("", "anything"), 1.0);
    assert_eq!(survived_share(" \n", ""), 1.0);
    // Indented anew, with more around it.
    assert_eq!(survived_share(text, "// sum\n    let total = price * count;\n\n    return total;\n}"), 1.0);
    // Of 33 characters, the five of `count` were replaced.
    let renamed = survived_share(text, "let total = price * number;\nreturn total;");
    assert!((renamed - 28.0 / 33.0).abs() < 1e-6, "{renamed}");
    assert!(survived_share(text, "something(else)") < 0.1);
    assert_eq!(survived_share("größe = 😀", "größe = 😀"), 1.0);
    // However long, it ends.
    let long = "word ".repeat(100_000);
    assert_eq!(survived_share(&long, &long), 1.0);
}
