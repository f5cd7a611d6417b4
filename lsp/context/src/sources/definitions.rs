//! What the imports of this file name: signatures with the first line of their documentation.
//!
//! A chunk is one imported file. Names that are used within the prompt's window are chosen first, but all are given
//! in the order of imports and of their files, so that using another one changes as little as can be.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use redstart_syntax::language::Language;

use crate::context::Shared;
use crate::documents::Snapshot;
use crate::imports::{self, Import};
use crate::outline::Outline;
use crate::query::{Chunk, Query, Reason};
use crate::resolve::{Target, Wanted, targets};
use crate::sources::Turn;
use crate::words::Uses;
use crate::worker::Job;
use crate::workspace::{Admitted, Workspace};

/// How many files a name is followed through: `from .core import X` in an `__init__.py`.
const MAX_REEXPORTS: usize = 3;
/// Bytes on either side of the caret in which names count as used.
const USES_REACH: usize = 16 << 10;

/// A definition that was found.
struct Found {
    /// Whether its name is used in the window.
    is_used: bool,
    file: Admitted,
    item: usize,
    text: String,
}

/// Offers the definitions behind the imports of the file.
pub(crate) fn offer(turn: &mut Turn<'_>, query: &Query<'_>, documents: &Snapshot, shared: &Shared) {
    let Some(language) = query.language else {
        return;
    };
    let workspace = shared.workspace();
    let Some(here) = workspace.admit(query.path) else {
        return;
    };
    let Some(root) = workspace.root_of(&here.real) else {
        return;
    };
    let statements = imports::statements(query.text, language);
    let targets = shared.outlines.targets_of(language, statements, &here.real, root);
    let text = imports::without_statements(&text_in_reach(query), language);
    let mut search = Search {
        turn,
        documents,
        shared,
        workspace: &workspace,
        root,
        here: &here.real,
        uses: Uses::of(&text),
        known: HashMap::new(),
        seen: HashSet::from([here.real.clone()]),
        found: Vec::new(),
        is_incomplete: false,
    };
    for target in targets.iter() {
        if !search.turn.in_time() {
            break;
        }
        search.follow(target, MAX_REEXPORTS);
    }
    search.turn.late |= search.is_incomplete;
    let found = search.found;
    give(turn, found);
}

/// The text around the caret, without the word being typed.
fn text_in_reach(query: &Query<'_>) -> String {
    let lines = query.window_lines();
    let char_at = |byte: usize| query.text.byte_to_char(byte.min(query.text.len_bytes()));
    let start = query.text.line_to_char(lines.start).max(char_at(query.caret().saturating_sub(USES_REACH)));
    let end = query.text.line_to_char(lines.end.min(query.text.len_lines()));
    let end = end.min(char_at(query.caret().saturating_add(USES_REACH)));
    let caret = char_at(query.caret());
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    let typed = query.text.chars_at(caret).reversed().take_while(|c| is_word(*c)).count();
    let before = query.text.slice(start.min(caret)..caret.saturating_sub(typed).max(start.min(caret)));
    let after = query.text.slice(caret..end.max(caret));
    let rest: String = after.chars().skip_while(|c| is_word(*c)).collect();
    format!("{before} {rest}")
}

struct Search<'a, 's> {
    turn: &'a mut Turn<'s>,
    documents: &'a Snapshot,
    shared: &'a Shared,
    workspace: &'a Workspace,
    root: &'a Path,
    /// The file that context is wanted for.
    here: &'a Path,
    uses: Uses<'a>,
    /// Files by the path that an import led to; `None` for one that is not admitted or not ready.
    known: HashMap<PathBuf, Option<(Admitted, Arc<Outline>)>>,
    /// Files whose use by star was looked at, and this file itself.
    seen: HashSet<PathBuf>,
    found: Vec<Found>,
    /// Whether an outline was not ready.
    is_incomplete: bool,
}

impl Search<'_, '_> {
    /// Adds what is wanted of a file, or of a file that it passes on. Returns whether there was something.
    fn follow(&mut self, target: &Target, reexports: usize) -> bool {
        let known = match self.known.get(&target.file) {
            Some(known) => known.clone(),
            None => {
                // The file itself is before the user's eyes, and changes with every keystroke.
                let file = self.workspace.admit(&target.file).filter(|file| file.real != self.here);
                let known = file.and_then(|file| Some((file.clone(), self.outline(&file)?)));
                self.known.insert(target.file.clone(), known.clone());
                known
            }
        };
        let Some((file, outline)) = known else {
            return false;
        };
        let Some(language) = Language::from_path(&file.real) else {
            return false;
        };
        let is_wanted = |name: &str| match &target.wanted {
            Wanted::Name(wanted, local) if wanted == "default" => {
                outline.default.as_deref().unwrap_or(local) == name
            }
            Wanted::Name(wanted, _) => wanted == name,
            Wanted::Through(qualifier) => self.uses.has_qualified(qualifier, name),
            Wanted::Used => self.uses.has(name),
        };
        let is_used = |name: &str| match &target.wanted {
            Wanted::Name(_, local) => self.uses.has(local),
            Wanted::Through(_) => true,
            Wanted::Used => self.uses.has(name),
        };
        let items = outline.items.iter().enumerate().filter(|(_, item)| is_wanted(&item.name));
        let found: Vec<Found> = items
            .map(|(at, item)| Found {
                is_used: is_used(&item.name),
                file: file.clone(),
                item: at,
                text: item.text.clone(),
            })
            .collect();
        let any = !found.is_empty();
        self.found.extend(found);
        if reexports == 0 || any && matches!(target.wanted, Wanted::Name(..)) {
            return any;
        }
        self.follow_on(language, &outline, &file, target, reexports - 1) || any
    }

    /// Follows what a file imports and passes on.
    fn follow_on(
        &mut self,
        language: Language,
        outline: &Outline,
        file: &Admitted,
        target: &Target,
        reexports: usize,
    ) -> bool {
        // A header's includes, and modules that pass on everything, are visited once.
        if !matches!(target.wanted, Wanted::Name(..)) && !self.seen.insert(file.real.clone()) {
            return false;
        }
        let mut any = false;
        for import in &outline.imports {
            let Some(import) = passed_on(import, &target.wanted, &self.uses) else {
                continue;
            };
            for next in targets(language, &import, &file.real, self.root) {
                if !self.turn.in_time() {
                    return any;
                }
                any |= self.follow(&next, reexports);
                if any && matches!(target.wanted, Wanted::Name(..)) {
                    return true;
                }
            }
        }
        any
    }

    fn outline(&mut self, file: &Admitted) -> Option<Arc<Outline>> {
        let left = self.turn.until().saturating_duration_since(Instant::now());
        let open = self.documents.iter().find(|(path, document)| document.is_open && *path == file.real);
        let open = open.map(|(_, document)| (document.text.clone(), document.version));
        let limit = self.shared.options.index.max_file_bytes;
        let outline = self.shared.outlines.outline_of(&file.real, open, limit, left);
        if outline.is_none() {
            // Too long for a keystroke. It is there next time.
            self.is_incomplete = true;
            self.shared.send(Job::Outline(file.real.clone()));
        }
        outline
    }
}

/// The part of an import by which a file passes on what is wanted of it.
fn passed_on(import: &Import, wanted: &Wanted, uses: &Uses<'_>) -> Option<Import> {
    if import.module == "." {
        return None;
    }
    // A name that the file imports is a name of its own; one that its stars may bring is asked for there.
    let named = |is_wanted: &dyn Fn(&str) -> bool| -> Vec<(String, String)> {
        import.names.iter().filter(|(_, here)| is_wanted(here)).cloned().collect()
    };
    let mut passed = Import { module: import.module.clone(), ..Import::default() };
    match wanted {
        Wanted::Name(name, local) => {
            passed.names = named(&|here| here == name);
            passed.names.iter_mut().for_each(|(_, here)| here.clone_from(local));
            if passed.names.is_empty() && import.all {
                passed.names.push((name.clone(), local.clone()));
            }
        }
        Wanted::Through(qualifier) => {
            passed.names = named(&|here| uses.has_qualified(qualifier, here));
            passed.qualifier = import.all.then(|| qualifier.clone());
        }
        Wanted::Used => {
            passed.names = named(&|here| uses.has(here));
            passed.all = import.all;
        }
    }
    let passes = !passed.names.is_empty() || passed.qualifier.is_some() || passed.all;
    passes.then_some(passed)
}

/// Offers what fits. Used names are chosen first; files are given in the order in which they were found.
fn give(turn: &mut Turn<'_>, mut found: Vec<Found>) {
    let mut order: Vec<String> = Vec::new();
    for definition in &found {
        if !order.contains(&definition.file.relative) {
            order.push(definition.file.relative.clone());
        }
    }
    // Stable, so in the order of imports among equals.
    found.sort_by_key(|found| !found.is_used);
    let mut room = turn.room();
    let mut files: BTreeMap<String, BTreeMap<usize, String>> = BTreeMap::new();
    for definition in found {
        let path = definition.file.relative;
        let known = files.get(&path);
        if known.is_some_and(|items| items.contains_key(&definition.item)) {
            continue;
        }
        let bytes = definition.text.len() + if known.is_none() { path.len() } else { 0 };
        if bytes <= room {
            room -= bytes;
            files.entry(path).or_default().insert(definition.item, definition.text);
        }
    }
    for (rank, path) in order.into_iter().enumerate() {
        if let Some(items) = files.remove(&path) {
            let text = items.into_values().collect();
            turn.offer(Chunk { path, text, reason: Reason::Definition }, rank);
        }
    }
}
