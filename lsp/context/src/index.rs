//! Which chunk of which file has which identifiers.
//!
//! An inverted index over chunks of about twenty lines. It holds no text: a hit is read again from its file, which
//! also shows whether it still is what was indexed. A changed file's old chunks are marked dead and swept when
//! they are many, so an update costs one file, never the index.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::files::Family;
use crate::words::Term;

/// BM25's saturation and length parameters. A term counts once per chunk.
const K1: f32 = 1.2;
const B: f32 = 0.5;
/// Terms in more than this share of chunks (`self`, `return`) say nothing.
const COMMON_SHARE: f32 = 0.05;
/// In a small workspace, in more than half of the chunks, within these bounds.
const COMMON_FEW: (usize, usize) = (2, 32);
/// Least terms that a hit shares with the query, and least share of the query's weight.
const MIN_SHARED: u32 = 3;
const MIN_COVERAGE: f32 = 0.06;
/// Dead chunks are swept when they are this share of all.
const DEAD_SHARE: usize = 4;

/// Which text of a file was indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stamp {
    /// The file on disk.
    Disk { modified: SystemTime, bytes: u64 },
    /// What the editor has, by the version of the document.
    Open { version: u64 },
}

/// The bytes of a chunk in its file, and its terms.
pub(crate) type IndexedChunk = (Range<usize>, Vec<Term>);

/// A chunk that a search found.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Hit {
    pub(crate) path: PathBuf,
    pub(crate) stamp: Stamp,
    pub(crate) bytes: Range<usize>,
    pub(crate) score: f32,
}

/// The index.
#[derive(Debug, Default)]
pub(crate) struct Index {
    files: HashMap<PathBuf, File>,
    chunks: Vec<ChunkEntry>,
    postings: HashMap<Term, Vec<u32>>,
    posting_count: usize,
    live_chunks: usize,
    live_terms: usize,
    path_bytes: usize,
    /// Paths of files by number, for hits. A removed file's number is not used again before a sweep.
    numbers: Vec<PathBuf>,
}

#[derive(Debug)]
struct File {
    number: u32,
    stamp: Stamp,
    family: Family,
    chunks: Range<u32>,
    scan: u64,
}

#[derive(Clone, Copy, Debug)]
struct ChunkEntry {
    /// `DEAD` when the file has changed since.
    file: u32,
    start: u32,
    end: u32,
    terms: u32,
}

const DEAD: u32 = u32::MAX;

impl Index {
    /// Files in it.
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// Chunks in it.
    pub(crate) fn chunk_count(&self) -> usize {
        self.live_chunks
    }

    /// An estimate of what it takes, in bytes: vectors are half empty when they have just grown.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.posting_count * 6
            + self.postings.len() * 56
            + self.chunks.len() * size_of::<ChunkEntry>() * 3 / 2
            + self.path_bytes * 2
            + self.files.len() * 160
    }

    pub(crate) fn stamp(&self, path: &Path) -> Option<Stamp> {
        self.files.get(path).map(|file| file.stamp)
    }

    /// Notes that a scan found the file unchanged.
    pub(crate) fn mark(&mut self, path: &Path, scan: u64) {
        if let Some(file) = self.files.get_mut(path) {
            file.scan = scan;
        }
    }

    /// Adds a file or replaces what was known of it.
    pub(crate) fn put(
        &mut self,
        path: &Path,
        stamp: Stamp,
        family: Family,
        chunks: Vec<IndexedChunk>,
        scan: u64,
    ) {
        self.remove(path);
        let (Ok(number), Ok(first)) = (u32::try_from(self.numbers.len()), u32::try_from(self.chunks.len()))
        else {
            return;
        };
        let mut next = first;
        for (bytes, terms) in chunks {
            self.chunks.push(ChunkEntry {
                file: number,
                start: bytes.start as u32,
                end: bytes.end as u32,
                terms: terms.len() as u32,
            });
            self.posting_count += terms.len();
            self.live_terms += terms.len();
            for term in terms {
                self.postings.entry(term).or_default().push(next);
            }
            next += 1;
        }
        self.live_chunks += (next - first) as usize;
        self.path_bytes += path.as_os_str().len();
        self.numbers.push(path.to_path_buf());
        let file = File { number, stamp, family, chunks: first..next, scan };
        self.files.insert(path.to_path_buf(), file);
    }

    pub(crate) fn remove(&mut self, path: &Path) {
        let Some(file) = self.files.remove(path) else {
            return;
        };
        for chunk in &mut self.chunks[file.chunks.start as usize..file.chunks.end as usize] {
            chunk.file = DEAD;
            self.live_chunks -= 1;
            self.live_terms -= chunk.terms as usize;
        }
        self.path_bytes -= path.as_os_str().len();
    }

    /// Removes the files in a directory.
    pub(crate) fn remove_under(&mut self, directory: &Path) {
        self.remove_where(|path, _| path.starts_with(directory));
    }

    /// Removes the files that `scan` did not find.
    pub(crate) fn remove_unseen(&mut self, scan: u64) {
        self.remove_where(|_, file| file.scan != scan);
    }

    fn remove_where(&mut self, condition: impl Fn(&Path, &File) -> bool) {
        let gone = self.files.iter().filter(|(path, file)| condition(path, file));
        let gone: Vec<PathBuf> = gone.map(|(path, _)| path.clone()).collect();
        for path in gone {
            self.remove(&path);
        }
    }

    fn terms_of(&self, file: &File) -> usize {
        let chunks = &self.chunks[file.chunks.start as usize..file.chunks.end as usize];
        chunks.iter().map(|chunk| chunk.terms as usize).sum()
    }

    /// Whether so much of it is dead that [`swept`](Self::swept) is worth its time.
    pub(crate) fn wants_sweep(&self) -> bool {
        let dead = self.chunks.len() - self.live_chunks;
        dead > 1_000 && dead * DEAD_SHARE > self.chunks.len()
    }

    /// The same without what is dead. Reads no file.
    pub(crate) fn swept(&self) -> Self {
        let mut moved = vec![DEAD; self.chunks.len()];
        let mut swept = Self {
            live_chunks: self.live_chunks,
            live_terms: self.live_terms,
            path_bytes: self.path_bytes,
            ..Self::default()
        };
        let mut files: Vec<_> = self.files.iter().collect();
        files.sort_by_key(|(_, file)| file.number);
        for (path, file) in files {
            let number = swept.numbers.len() as u32;
            let first = swept.chunks.len() as u32;
            for at in file.chunks.clone() {
                moved[at as usize] = swept.chunks.len() as u32;
                swept.chunks.push(ChunkEntry { file: number, ..self.chunks[at as usize] });
            }
            swept.numbers.push(path.clone());
            let chunks = first..swept.chunks.len() as u32;
            let file = File { number, chunks, family: file.family.clone(), ..*file };
            swept.files.insert(path.clone(), file);
        }
        for (term, chunks) in &self.postings {
            let live = chunks.iter().map(|chunk| moved[*chunk as usize]).filter(|chunk| *chunk != DEAD);
            let live: Vec<u32> = live.collect();
            if !live.is_empty() {
                swept.posting_count += live.len();
                swept.postings.insert(*term, live);
            }
        }
        swept
    }

    /// The chunks of `family` that share most with `query` (ascending terms), best first, at most `limit`; none of
    /// `except`. Equal ones are ordered by path and place.
    pub(crate) fn search(
        &self,
        query: &[Term],
        family: &Family,
        except: Option<&Path>,
        limit: usize,
    ) -> Vec<Hit> {
        // The file that is being edited does not count at all, or every keystroke would change the rest.
        let except = except.and_then(|path| self.files.get(path));
        let count = self.live_chunks - except.map_or(0, |file| file.chunks.len());
        let terms = self.live_terms - except.map_or(0, |file| self.terms_of(file));
        let except = except.map(|file| file.number);
        let all = count as f32;
        let common = ((all * COMMON_SHARE) as usize).max((count / 2).clamp(COMMON_FEW.0, COMMON_FEW.1));
        let mean_terms = terms as f32 / all.max(1.0);
        let counts = |file: u32| file != DEAD && Some(file) != except;
        let mut scores = vec![(0.0, 0); self.chunks.len()];
        let mut total = 0.0;
        for term in query {
            let chunks = self.postings.get(term).map_or(&[][..], Vec::as_slice);
            let live = || chunks.iter().map(|at| *at as usize).filter(|at| counts(self.chunks[*at].file));
            let count = live().count();
            if count > common {
                continue;
            }
            let count = count as f32;
            let rarity = ((all - count + 0.5) / (count + 0.5)).ln_1p();
            // Also of a term that nothing has: what the query is about may be nowhere else.
            total += rarity;
            for at in live() {
                scores[at].0 += rarity;
                scores[at].1 += 1;
            }
        }
        let enough = |(score, shared): (f32, u32)| shared >= MIN_SHARED && score >= MIN_COVERAGE * total;
        let found = self.chunks.iter().zip(scores).filter(|(_, score)| enough(*score));
        let found = found.filter_map(|(chunk, (score, _))| {
            let path = self.numbers.get(chunk.file as usize)?;
            let file = self.files.get(path).filter(|file| file.family == *family)?;
            let length = 1.0 - B + B * chunk.terms as f32 / mean_terms;
            Some(Found { path, file, chunk, score: score * (K1 + 1.0) / (1.0 + K1 * length) })
        });
        let mut found: Vec<Found<'_>> = found.collect();
        found.sort_by(best_first);
        found.truncate(limit);
        found.into_iter().map(Found::into_hit).collect()
    }
}

/// A chunk that is good enough.
struct Found<'i> {
    path: &'i Path,
    file: &'i File,
    chunk: &'i ChunkEntry,
    score: f32,
}

impl Found<'_> {
    fn into_hit(self) -> Hit {
        Hit {
            path: self.path.to_path_buf(),
            stamp: self.file.stamp,
            bytes: self.chunk.start as usize..self.chunk.end as usize,
            score: self.score,
        }
    }
}

fn best_first(a: &Found<'_>, b: &Found<'_>) -> Ordering {
    let place = |found: &Found<'_>| found.chunk.start;
    b.score.total_cmp(&a.score).then_with(|| a.path.cmp(b.path)).then_with(|| place(a).cmp(&place(b)))
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
