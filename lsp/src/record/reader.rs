//! Reads a record, whatever state it is in.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use super::Event;
use super::file::old_path;

/// Longest line that can be an event, in bytes.
const MAX_LINE_BYTES: u64 = 4096;

/// The events of a record, oldest first; lines that are none are skipped and counted.
pub struct Events {
    files: Vec<BufReader<File>>,
    damaged: usize,
}

/// Reads the record at `path`, and before it its older part where there is one.
///
/// # Errors
/// What keeps the file from being opened.
pub fn read(path: &Path) -> io::Result<Events> {
    let file = File::open(path)?;
    let old = File::open(old_path(path)).ok();
    let files = [Some(file), old].into_iter().flatten().map(BufReader::new).collect();
    Ok(Events { files, damaged: 0 })
}

impl Events {
    /// How many lines so far were no events: cut by a crash or a full disk, or edited by hand.
    pub fn damaged(&self) -> usize {
        self.damaged
    }

    /// The next line; `None` at the end of all files. A file that cannot be read further ends there.
    fn next_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let file = self.files.last_mut()?;
            let mut line = Vec::new();
            match file.take(MAX_LINE_BYTES).read_until(b'\n', &mut line) {
                Ok(0) => {
                    self.files.pop();
                }
                Ok(_) => {
                    if !line.ends_with(b"\n") && file.skip_until(b'\n').is_err() {
                        self.files.pop();
                    }
                    return Some(line);
                }
                Err(_) => {
                    self.damaged += 1;
                    self.files.pop();
                }
            }
        }
    }
}

impl Iterator for Events {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        loop {
            let line = self.next_line()?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            match serde_json::from_slice(&line) {
                Ok(event) => return Some(event),
                Err(_) => self.damaged += 1,
            }
        }
    }
}
