//! The local record: what became of each suggestion, in a file on this machine.
//!
//! It is off unless the user switches it on, and nothing of it ever leaves the machine. It has counts and times,
//! and no text and no path of any document. One JSON object a line ([`Event`]); several servers append to one
//! file at once, each event with a single write. [`Recorder`] writes, [`read`] reads, and
//! `redstart stats` shows what is in it.

mod file;
mod reader;
mod survival;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde::{Deserialize, Serialize};

use self::file::RecordFile;
pub use self::reader::{Events, read};
pub use self::survival::survived_share;

/// Events that may wait to be written. A disk that is slower than a typist for this long loses some.
const MAX_WAITING: usize = 1024;

/// Something that happened to a suggestion. The events of one suggestion share its `id`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It was given to the editor.
    Shown(Shown),
    /// The user accepted it as a whole.
    Accepted {
        /// Which.
        id: String,
    },
    /// The user accepted its beginning.
    PartiallyAccepted {
        /// Which.
        id: String,
        /// Characters accepted so far.
        chars: usize,
    },
    /// The user went on without it.
    Rejected {
        /// Which.
        id: String,
    },
    /// It was accepted, and 30 seconds have passed.
    Survived {
        /// Which.
        id: String,
        /// How much of it is still there, 0 to 1; see [`survived_share`].
        share: f32,
    },
}

/// A suggestion that the editor got.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// A name of its own; see [`new_id`].
    pub id: String,
    /// When, in milliseconds since 1970.
    pub time: u64,
    /// The document's language id.
    pub language: String,
    /// Characters in the suggestion.
    pub chars: usize,
    /// Lines in the suggestion.
    pub lines: usize,
    /// Where it came from: `engine`, `typedThrough`, `joined`, `ahead`.
    pub source: String,
    /// From the request to the answer, in milliseconds.
    pub latency_ms: f64,
    /// From the request to the end of the suggestion's first line, in milliseconds.
    pub first_line_ms: f64,
}

/// A name for a suggestion that no other server's suggestion has.
pub fn new_id() -> String {
    format!("{:016x}", fastrand::u64(..))
}

/// Where the record is unless the user says otherwise: `redstart/record.jsonl` in the folder for the user's data.
/// `None` where the system names no such folder.
pub fn default_path() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let data = absolute("XDG_DATA_HOME").or_else(|| match std::env::consts::OS {
        "windows" => absolute("LOCALAPPDATA"),
        "macos" => Some(absolute("HOME")?.join("Library/Application Support")),
        _ => Some(absolute("HOME")?.join(".local/share")),
    })?;
    Some(data.join("redstart").join("record.jsonl"))
}

/// Writes events to a file, on a thread of its own.
pub struct Recorder {
    /// `None` only while dropping.
    sender: Option<SyncSender<Event>>,
    writer: Option<JoinHandle<()>>,
}

impl Recorder {
    /// Appends to the record at `path`, which is made, with its folder, if it is not there: for this user only.
    ///
    /// # Errors
    /// What keeps the file from being opened.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = RecordFile::open(path)?;
        let (sender, events) = sync_channel(MAX_WAITING);
        let writer = std::thread::Builder::new().name("record".into()).spawn(move || write(file, &events))?;
        Ok(Self { sender: Some(sender), writer: Some(writer) })
    }

    /// Notes `event`. Never waits: an event for which there is no room is lost.
    pub fn record(&self, event: Event) {
        if let Some(sender) = &self.sender
            && sender.try_send(event).is_err()
        {
            tracing::debug!("an event was not recorded: too many are waiting");
        }
    }
}

impl Drop for Recorder {
    /// Waits until what was noted is written.
    fn drop(&mut self) {
        self.sender = None;
        if let Some(writer) = self.writer.take() {
            // A writer that panicked has nothing left to write.
            let _ = writer.join();
        }
    }
}

fn write(mut file: RecordFile, events: &Receiver<Event>) {
    let mut told = false;
    for event in events {
        if let Err(error) = file.append(&event)
            && !told
        {
            // Once: a full disk would say so at every keystroke.
            told = true;
            tracing::warn!("the record of suggestions cannot be written: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
