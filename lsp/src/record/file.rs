//! The file of the record: appended to by several processes, private, and of limited size.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use super::Event;

/// Size at which the file becomes the old one, in bytes. That is about a year of typing.
pub(super) const MAX_BYTES: u64 = 10 << 20;

/// The record, open for appending.
pub(super) struct RecordFile {
    path: PathBuf,
    file: File,
    max_bytes: u64,
}

impl RecordFile {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Self::with_limit(path, MAX_BYTES)
    }

    pub(super) fn with_limit(path: &Path, max_bytes: u64) -> io::Result<Self> {
        if let Some(folder) =
            path.parent().filter(|folder| !folder.as_os_str().is_empty() && !folder.exists())
        {
            make_private_folder(folder)?;
        }
        Ok(Self { path: path.to_owned(), file: open_to_append(path)?, max_bytes })
    }

    /// Appends one line with one write, so that lines of several processes do not mix.
    pub(super) fn append(&mut self, event: &Event) -> io::Result<()> {
        if self.file.metadata()?.len() >= self.max_bytes {
            self.rotate()?;
        }
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let written = self.file.write(&line)?;
        if written < line.len() {
            // The disk is full. The next line begins on a line of its own, and the reader skips this one.
            self.file.write_all(b"\n")?;
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(())
    }

    /// Makes the file the old one and begins another, unless another process has done so already.
    fn rotate(&mut self) -> io::Result<()> {
        // All who have this file open wait for each other here. Where there are no locks, two processes that do
        // this at the same moment may lose the old file.
        let locked = self.file.lock();
        let is_large = std::fs::metadata(&self.path).is_ok_and(|file| file.len() >= self.max_bytes);
        let renamed = if is_large { std::fs::rename(&self.path, old_path(&self.path)) } else { Ok(()) };
        if locked.is_ok() {
            self.file.unlock()?;
        }
        renamed?;
        self.file = open_to_append(&self.path)?;
        Ok(())
    }
}

/// Where the record's older part is: `record.1.jsonl` for `record.jsonl`.
pub(super) fn old_path(path: &Path) -> PathBuf {
    match path.extension() {
        Some(extension) => path.with_extension(format!("1.{}", extension.display())),
        None => path.with_extension("1"),
    }
}

fn make_private_folder(folder: &Path) -> io::Result<()> {
    if let Some(parent) = folder.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut builder = DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    // Another server may have made it meanwhile.
    builder.recursive(true).create(folder)
}

fn open_to_append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.create(true).append(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}
