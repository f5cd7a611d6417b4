//! What a message through a pipe and back takes on this machine, at that moment: the least that any server behind
//! pipes needs, and the measure for the tail of what ours takes.

use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::time::{Duration, Instant};

/// Bytes of a message: those of a request for a suggestion, more or less.
const MESSAGE_BYTES: usize = 300;

/// A thread that writes back what it reads. It ends when this is dropped.
pub(super) struct Echo {
    to: PipeWriter,
    from: PipeReader,
}

impl Echo {
    pub(super) fn start() -> io::Result<Self> {
        let (mut its_input, to) = io::pipe()?;
        let (from, mut its_output) = io::pipe()?;
        std::thread::Builder::new().name("echo".into()).spawn(move || {
            let mut message = [0; MESSAGE_BYTES];
            while its_input.read_exact(&mut message).and_then(|()| its_output.write_all(&message)).is_ok() {}
        })?;
        Ok(Self { to, from })
    }

    /// Sends a message and waits until it is back.
    pub(super) fn round_trip(&mut self) -> io::Result<Duration> {
        let mut message = [0; MESSAGE_BYTES];
        let sent = Instant::now();
        self.to.write_all(&message)?;
        self.from.read_exact(&mut message)?;
        Ok(sent.elapsed())
    }
}
