//! Outlines of files and what imports mean, kept so that each is worked out once.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redstart_syntax::language::Language;
use ropey::Rope;

use crate::files;
use crate::imports;
use crate::index::Stamp;
use crate::outline::Outline;
use crate::resolve::{Target, targets};
use crate::worker::disk_stamp;

/// Outlines kept, and their memory.
const MAX_OUTLINES: usize = 512;
const MAX_OUTLINE_BYTES: usize = 6 << 20;
/// Files whose parsed imports are kept.
const MAX_IMPORTS: usize = 32;
/// Bytes that are parsed in a millisecond, at least. What would take longer than there is time is left to
/// the background thread at once.
const PARSED_PER_MILLISECOND: u64 = 4_096;
/// How long a resolved import is believed when nobody says that files changed.
const BELIEVED: Duration = Duration::from_secs(10);
/// Time the background thread may take for an outline that is not done while typing.
const BACKGROUND_BUDGET: Duration = Duration::from_millis(500);

/// Outlines of files and imports of texts, so that each is parsed once.
#[derive(Debug, Default)]
pub(crate) struct Cache {
    outlines: Mutex<Outlines>,
    imports: Mutex<HashMap<PathBuf, Resolved>>,
}

/// What a file imports.
#[derive(Debug)]
struct Resolved {
    /// The text of its import statements.
    statements: String,
    /// What they mean, in their order.
    targets: Arc<Vec<Target>>,
    at: Instant,
}

#[derive(Debug, Default)]
struct Outlines {
    by_path: HashMap<PathBuf, Kept>,
    bytes: usize,
    clock: u64,
}

#[derive(Debug)]
struct Kept {
    stamp: Stamp,
    outline: Arc<Outline>,
    used: u64,
}

impl Cache {
    /// What import statements mean in the file `real`, looked up again when they or files changed.
    pub(crate) fn targets_of(
        &self,
        language: Language,
        statements: String,
        real: &Path,
        root: &Path,
    ) -> Arc<Vec<Target>> {
        if let Some(known) = lock(&self.imports).get(real)
            && known.statements == statements
            && known.at.elapsed() < BELIEVED
        {
            return known.targets.clone();
        }
        let imports = imports::parse(language, &statements);
        let found = imports.iter().flat_map(|import| targets(language, import, real, root));
        let found = Arc::new(found.collect::<Vec<_>>());
        let mut kept = lock(&self.imports);
        if kept.len() >= MAX_IMPORTS && !kept.contains_key(real) {
            kept.clear();
        }
        let resolved = Resolved { statements, targets: found.clone(), at: Instant::now() };
        kept.insert(real.to_path_buf(), resolved);
        found
    }

    /// Files came or went: imports may mean others.
    pub(crate) fn forget_targets(&self) {
        lock(&self.imports).clear();
    }

    /// The outline of a file: of what is `open` in the editor, else of what is on disk. `None` when
    /// `budget` is too short. What cannot be read or parsed at all has an empty one.
    pub(crate) fn outline_of(
        &self,
        real: &Path,
        open: Option<(Rope, u64)>,
        max_bytes: u64,
        budget: Duration,
    ) -> Option<Arc<Outline>> {
        let stamp = match &open {
            Some((_, version)) => Stamp::Open { version: *version },
            None => match disk_stamp(real) {
                Some(stamp) => stamp,
                // Gone meanwhile.
                None => return Some(Arc::default()),
            },
        };
        if let Some(known) = lock(&self.outlines).get(real, stamp) {
            return Some(known);
        }
        let length = match (&open, stamp) {
            (Some((text, _)), _) => text.len_bytes() as u64,
            (None, Stamp::Disk { bytes, .. }) => bytes,
            (None, Stamp::Open { .. }) => 0,
        };
        let possible = PARSED_PER_MILLISECOND * u64::try_from(budget.as_millis()).unwrap_or(u64::MAX);
        if length <= max_bytes && length > possible && budget < BACKGROUND_BUDGET {
            return None;
        }
        let bytes = match open {
            _ if length > max_bytes => Vec::new(),
            Some((text, _)) => text.to_string().into_bytes(),
            None => fs::read(real).unwrap_or_default(),
        };
        let text = files::source_text(&bytes).unwrap_or_default();
        let language = Language::from_path(real);
        let outline = language.and_then(|language| Outline::of(language, text, budget));
        let outline = match outline {
            Some(outline) => outline,
            None if budget < BACKGROUND_BUDGET => return None,
            None => Outline::default(),
        };
        let outline = Arc::new(outline);
        lock(&self.outlines).put(real, stamp, outline.clone());
        Some(outline)
    }

    /// Makes an outline without haste.
    pub(crate) fn prepare(&self, real: &Path, open: Option<(Rope, u64)>, max_bytes: u64) {
        self.outline_of(real, open, max_bytes, BACKGROUND_BUDGET);
    }
}

impl Outlines {
    fn get(&mut self, path: &Path, stamp: Stamp) -> Option<Arc<Outline>> {
        self.clock += 1;
        let kept = self.by_path.get_mut(path).filter(|kept| kept.stamp == stamp)?;
        kept.used = self.clock;
        Some(kept.outline.clone())
    }

    fn put(&mut self, path: &Path, stamp: Stamp, outline: Arc<Outline>) {
        self.clock += 1;
        self.bytes += outline.memory_bytes();
        let kept = Kept { stamp, outline, used: self.clock };
        if let Some(old) = self.by_path.insert(path.to_path_buf(), kept) {
            self.bytes -= old.outline.memory_bytes();
        }
        while self.by_path.len() > MAX_OUTLINES || self.bytes > MAX_OUTLINE_BYTES {
            let oldest = self.by_path.iter().min_by_key(|(_, kept)| kept.used).map(|(path, _)| path.clone());
            let Some(old) = oldest.and_then(|path| self.by_path.remove(&path)) else {
                return;
            };
            self.bytes -= old.outline.memory_bytes();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
