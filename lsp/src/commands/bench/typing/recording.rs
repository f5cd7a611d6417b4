//! Recordings of somebody editing a file: the format that `docs/RECORDINGS.md` describes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::buffer::{Buffer, Place};

/// What the field `format` says.
pub(super) const FORMAT: &str = "redstart-typing/1";

/// Between the keys of what is typed instead of an accept.
const OTHERWISE_KEY: Duration = Duration::from_millis(120);

/// The recordings inside this program, by name.
const BUILT_IN: &[(&str, &str)] = &[
    ("python-ledger", include_str!("../../../../../tests/recordings/python-ledger.json")),
    ("python-readings", include_str!("../../../../../tests/recordings/python-readings.json")),
    ("rust-tokens", include_str!("../../../../../tests/recordings/rust-tokens.json")),
    ("rust-grid", include_str!("../../../../../tests/recordings/rust-grid.json")),
    ("typescript-cart", include_str!("../../../../../tests/recordings/typescript-cart.json")),
    ("go-queue", include_str!("../../../../../tests/recordings/go-queue.json")),
    ("c-strings", include_str!("../../../../../tests/recordings/c-strings.json")),
    ("java-library", include_str!("../../../../../tests/recordings/java-library.json")),
    ("python-10000-lines", include_str!("../../../../../tests/recordings/python-10000-lines.json")),
];

/// The file as it is written.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RecordingFile {
    pub(super) format: String,
    pub(super) language: String,
    pub(super) file: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) prepend: Option<Prepend>,
    pub(super) text: String,
    pub(super) events: Vec<Value>,
    pub(super) final_text: String,
}

/// Lines above the text that need not be spelled out.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Prepend {
    /// Repeated, with `{n}` replaced by the number of the repetition from 0.
    text: String,
    times: usize,
}

/// One event as it is written.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Event {
    pub(super) at_ms: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) insert: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delete: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) delete_forward: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) edit: Option<Edit>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) caret: Option<Place>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) accept: Option<Part>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) otherwise: Option<String>,
}

/// A replacement anywhere.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Edit {
    pub(super) start: Place,
    pub(super) end: Place,
    pub(super) text: String,
}

/// How much of a suggestion is accepted.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Part {
    Whole,
    Line,
    Word,
}

/// What a person does.
#[derive(Clone, Debug)]
pub(super) enum Action {
    /// Types at the caret: a key, a paste, or what the editor adds to a key, such as indentation.
    Insert(String),
    DeleteBefore(usize),
    DeleteAfter(usize),
    Caret(Place),
    /// An edit elsewhere, and where the caret is afterwards if not behind it.
    Edit(Edit, Option<Place>),
    /// Looks at the suggestion and accepts it if it is what the next keys would type.
    Accept(Part),
}

/// An action and the time since the one before.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) wait: Duration,
    pub(super) action: Action,
}

/// A recording that was checked: its steps fit its text and lead to its final text.
pub(super) struct Recording {
    pub(super) name: String,
    pub(super) language: String,
    pub(super) file: String,
    pub(super) start: Buffer,
    pub(super) steps: Vec<Step>,
    pub(super) final_text: String,
}

impl Recording {
    /// Those inside this program.
    pub(super) fn built_in() -> anyhow::Result<Vec<Self>> {
        BUILT_IN.iter().map(|(name, json)| Self::parse(name, json)).collect()
    }

    /// Reads a file, or one of those inside this program by its name.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        if let Some((name, json)) = BUILT_IN.iter().find(|(name, _)| path.as_os_str() == *name) {
            return Self::parse(name, json);
        }
        let names = || BUILT_IN.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let json = std::fs::read_to_string(path).with_context(|| {
            format!("cannot read the recording {}; the built-in ones are {}", path.display(), names())
        })?;
        Self::parse(&path.display().to_string(), &json)
    }

    /// Reads and checks a recording. Errors begin with `name` and say which event is wrong, counted from 1.
    pub(super) fn parse(name: &str, json: &str) -> anyhow::Result<Self> {
        let file: RecordingFile = serde_json::from_str(json).map_err(|error| anyhow!("{name}: {error}"))?;
        if file.format != FORMAT {
            bail!("{name}: the format is '{}'; this program reads '{FORMAT}'", file.format);
        }
        let above = file.prepend.as_ref().map(|prepend| prepend.lines()).unwrap_or_default();
        if !above.is_empty() && !above.ends_with('\n') {
            bail!("{name}: the text of prepend does not end with a line break");
        }
        if file.file.is_empty() || file.file.contains(['/', '\\']) {
            bail!("{name}: '{}' is not the name of a file without folders", file.file);
        }
        let start = Buffer::new(&above, &file.text);
        let steps = steps(&file.events).map_err(|error| anyhow!("{name}: {error}"))?;
        let end = play(start.clone(), &steps).map_err(|error| anyhow!("{name}: {error}"))?.own_text();
        if let Some(difference) = difference(&end, &file.final_text) {
            bail!("{name}: the events do not lead to final_text: {difference}");
        }
        Ok(Self {
            name: name.to_owned(),
            language: file.language,
            file: file.file,
            start,
            steps: steps.into_iter().map(|(_, step)| step).collect(),
            final_text: file.final_text,
        })
    }
}

impl Prepend {
    fn lines(&self) -> String {
        (0..self.times).map(|n| self.text.replace("{n}", &n.to_string())).collect()
    }
}

/// The steps of the events, each with the number of its event.
fn steps(events: &[Value]) -> Result<Vec<(usize, Step)>, String> {
    let mut steps = Vec::new();
    let mut before = 0;
    for (number, event) in (1..).zip(events) {
        let event = Event::deserialize(event).map_err(|error| format!("event {number}: {error}"))?;
        if event.at_ms < before {
            return Err(format!(
                "event {number}: it is at {} ms, before the event before it at {before} ms",
                event.at_ms
            ));
        }
        let wait = Duration::from_millis(event.at_ms - before);
        before = event.at_ms;
        let otherwise = event.otherwise.clone();
        let action = event.action().map_err(|error| format!("event {number}: {error}"))?;
        steps.push((number, Step { wait, action }));
        let keys = otherwise.iter().flat_map(|text| text.chars());
        steps.extend(
            keys.map(|key| (number, Step { wait: OTHERWISE_KEY, action: Action::Insert(key.to_string()) })),
        );
    }
    Ok(steps)
}

impl Event {
    fn action(self) -> Result<Action, String> {
        if self.otherwise.is_some() && self.accept.is_none() {
            return Err("'otherwise' belongs to 'accept'".to_owned());
        }
        let edit_caret = if self.edit.is_some() { self.caret } else { None };
        let alone = if self.edit.is_some() { None } else { self.caret };
        let mut actions = [
            self.insert.map(Action::Insert),
            self.delete.map(Action::DeleteBefore),
            self.delete_forward.map(Action::DeleteAfter),
            self.edit.map(|edit| Action::Edit(edit, edit_caret)),
            alone.map(Action::Caret),
            self.accept.map(Action::Accept),
        ]
        .into_iter()
        .flatten();
        match (actions.next(), actions.next()) {
            (Some(action), None) => Ok(action),
            (None, _) => {
                Err("it does nothing: insert, delete, delete_forward, edit, caret or accept is missing"
                    .into())
            }
            (Some(_), Some(_)) => Err("it does more than one thing; only edit and caret go together".into()),
        }
    }
}

impl Action {
    /// Does it to a buffer. Accepting is not done here, since what would be accepted is typed by the steps
    /// that follow.
    ///
    /// # Errors
    /// When it does not fit the text.
    pub(super) fn apply(&self, buffer: &mut Buffer) -> Result<Option<super::buffer::Change>, String> {
        Ok(match self {
            Self::Insert(text) => Some(buffer.insert(text)),
            Self::DeleteBefore(count) => Some(buffer.delete_before(*count)?),
            Self::DeleteAfter(count) => Some(buffer.delete_after(*count)?),
            Self::Edit(edit, caret) => {
                let change = buffer.edit(edit.start, edit.end, &edit.text)?;
                if let Some(caret) = caret {
                    buffer.go_to(*caret)?;
                }
                Some(change)
            }
            Self::Caret(place) => {
                buffer.go_to(*place)?;
                None
            }
            Self::Accept(_) => None,
        })
    }
}

fn play(mut buffer: Buffer, steps: &[(usize, Step)]) -> Result<Buffer, String> {
    for (number, step) in steps {
        step.action.apply(&mut buffer).map_err(|error| format!("event {number}: {error}"))?;
    }
    Ok(buffer)
}

/// Where two texts first differ, in words; `None` if they do not.
pub(super) fn difference(is: &str, should_be: &str) -> Option<String> {
    if is == should_be {
        return None;
    }
    let lines = is.split('\n').zip(should_be.split('\n'));
    Some(match lines.enumerate().find(|(_, (is, should_be))| is != should_be) {
        Some((line, (is, should_be))) => {
            format!("line {line} (counted from 0) becomes '{is}' and should be '{should_be}'")
        }
        None => format!(
            "there are {} lines and should be {}",
            is.split('\n').count(),
            should_be.split('\n').count()
        ),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn recording(text: &str, events: Value, final_text: &str) -> anyhow::Result<Recording> {
        let file = json!({
            "format": FORMAT, "language": "python", "file": "a.py",
            "text": text, "events": events, "final_text": final_text,
        });
        Recording::parse("a.json", &file.to_string())
    }

    #[test]
    fn every_kind_of_event_is_read() {
        let place = |line: usize, character: usize| json!({"line": line, "character": character});
        let events = json!([
            {"at_ms": 0, "caret": place(0, 3)},
            {"at_ms": 100, "insert": "xy"},
            {"at_ms": 250, "delete": 1},
            {"at_ms": 300, "delete_forward": 1},
            {"at_ms": 400, "accept": "word", "otherwise": "ab"},
            {"at_ms": 500, "edit": {"start": place(0, 0), "end": place(0, 1), "text": "O"}, "caret": place(0, 6)},
            {"at_ms": 500, "insert": "!"},
        ]);
        let recording = recording("one\ntwo", events, "Onexab!two").expect("well-formed");
        let waits: Vec<u128> = recording.steps.iter().map(|step| step.wait.as_millis()).collect();
        assert_eq!(waits, [0, 100, 150, 50, 100, 120, 120, 100, 0], "two keys come after the accept");
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_event() {
        for (events, words) in [
            (
                json!([{"at_ms": 5, "insert": "a"}, {"at_ms": 4, "insert": "b"}]),
                "event 2: it is at 4 ms, before",
            ),
            (json!([{"at_ms": 0}]), "event 1: it does nothing"),
            (json!([{"at_ms": 0, "insert": "a", "delete": 1}]), "event 1: it does more than one thing"),
            (
                json!([{"at_ms": 0, "insert": "a", "otherwise": "b"}]),
                "event 1: 'otherwise' belongs to 'accept'",
            ),
            (json!([{"at_ms": 0, "delete": 9}]), "event 1: it deletes 9 characters before the caret"),
            (json!([{"at_ms": 0, "caret": {"line": 7, "character": 0}}]), "event 1: there is no line 7"),
            (json!([{"at_ms": 0, "accept": "half"}]), "event 1: unknown variant `half`"),
            (json!([{"at_ms": 0, "inserts": "a"}]), "event 1: unknown field `inserts`"),
            (json!([{"insert": "a"}]), "event 1: missing field `at_ms`"),
            (json!([{"at_ms": 0, "insert": "a"}]), "line 0 (counted from 0) becomes 'aone'"),
        ] {
            let error = recording("one", events, "one").err().expect("refused").to_string();
            assert!(error.starts_with("a.json: ") && error.contains(words), "{error}");
        }
    }

    #[test]
    fn the_built_in_recordings_are_well_formed_and_as_long_as_they_should_be() {
        let recordings = Recording::built_in().expect("well-formed");
        let mut languages: Vec<&str> = recordings.iter().map(|one| one.language.as_str()).collect();
        languages.sort_unstable();
        languages.dedup();
        assert_eq!(languages, ["c", "go", "java", "python", "rust", "typescript"]);
        for recording in &recordings {
            let seconds: f64 = recording.steps.iter().map(|step| step.wait.as_secs_f64()).sum();
            assert!((40.0..=90.0).contains(&seconds), "{}: {seconds} s", recording.name);
        }
        assert!(recordings.iter().any(|recording| recording.start.text().len_lines() >= 10_000));
    }
}
