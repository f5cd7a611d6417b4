//! Where context comes from: a file for each source.

pub(crate) mod definitions;
pub(crate) mod diagnostics;
pub(crate) mod open_files;
pub(crate) mod recent_edits;
pub(crate) mod similar;

use std::time::Instant;

use crate::query::Chunk;
use crate::selection::{Offer, Selection};

/// One source's turn: what it may spend, and an account of what it gave.
pub(crate) struct Turn<'s> {
    selection: &'s mut Selection,
    until: Instant,
    max_bytes: usize,
    /// Chunks taken.
    pub(crate) chunks: usize,
    /// Their bytes.
    pub(crate) bytes: usize,
    /// Chunks left out because the prompt has their text.
    pub(crate) duplicates: usize,
    /// Whether the source stopped before it was done.
    pub(crate) late: bool,
}

impl<'s> Turn<'s> {
    pub(crate) fn new(selection: &'s mut Selection, until: Instant, max_bytes: usize) -> Self {
        Self { selection, until, max_bytes, chunks: 0, bytes: 0, duplicates: 0, late: false }
    }

    /// Whether there is time left. Asked before each piece of work; once it is not, the turn is late.
    pub(crate) fn in_time(&mut self) -> bool {
        self.late |= Instant::now() >= self.until;
        !self.late
    }

    /// When the turn ends.
    pub(crate) fn until(&self) -> Instant {
        self.until
    }

    /// Most bytes that the next chunk may have, its path included.
    pub(crate) fn room(&self) -> usize {
        (self.max_bytes - self.bytes).min(self.selection.left())
    }

    /// Offers a chunk. Those of a source are given in the order of their `rank`.
    pub(crate) fn offer(&mut self, chunk: Chunk, rank: usize) -> Offer {
        let (offer, bytes) = self.selection.offer(chunk, rank, self.room());
        match offer {
            Offer::Taken => {
                self.chunks += 1;
                self.bytes += bytes;
            }
            Offer::Duplicate => self.duplicates += 1,
            Offer::Refused => {}
        }
        offer
    }
}
