//! Where generated text ends by the grammar.

use std::iter::successors;
use std::ops::Range;
use std::time::{Duration, Instant};

use ropey::Rope;
use tree_sitter::Node;

use crate::caret::Caret;
use crate::language::Language;
use crate::tree::SyntaxTree;

/// Bytes before the caret that are parsed at most, and after it. A whole file can take tens of milliseconds for each
/// line, where half-written code throws the parser off; a function hardly does.
const MAX_BYTES_BEFORE: usize = 8 << 10;
const MAX_BYTES_AFTER: usize = 4 << 10;

/// The outermost item around the caret with the generated lines in it, parsed again line by line.
#[derive(Clone, Debug)]
pub(super) struct Guide {
    language: Language,
    text: Rope,
    /// `None` before the first line.
    tree: Option<SyntaxTree>,
    /// Where the generated text is in `text`.
    at: usize,
    /// Bytes of generated text that `text` has.
    inserted: usize,
    /// Bytes at the start of the generated text that are left out: an indent that is there already.
    skipped: Option<usize>,
    has_indent: bool,
    /// What is left of the time for parsing.
    budget: Duration,
}

/// What the grammar says of the text so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnitEnd {
    /// What the caret is in, or the definition that the text is, ended with this byte of the text; what follows
    /// belongs to something else.
    Before(usize),
    /// The text is a complete definition.
    Here,
}

impl Guide {
    pub(super) fn new(caret: &Caret, text: &Rope, tree: &SyntaxTree, budget: Duration) -> Self {
        let around = item_around(caret, tree);
        let char_at = |byte: usize| text.byte_to_char(byte.min(text.len_bytes()));
        Self {
            language: tree.language(),
            text: text.slice(char_at(around.start)..char_at(around.end)).into(),
            tree: None,
            at: caret.byte() - around.start,
            inserted: 0,
            skipped: None,
            has_indent: caret.is_prefix_blank() && !caret.indent().is_empty(),
            budget,
        }
    }

    /// Where the unit of `generated`, whole lines without the last line end, ends. `None` where it does not, where
    /// the text does not parse, and where there was no time to find out.
    pub(super) fn unit_end(&mut self, generated: &str) -> Option<UnitEnd> {
        let skipped = *self.skipped.get_or_insert_with(|| {
            let blanks = generated.len() - generated.trim_start_matches([' ', '\t']).len();
            if self.has_indent { blanks } else { 0 }
        });
        let started = Instant::now();
        let parsed = self.insert(generated.get(skipped..)?);
        self.budget = self.budget.saturating_sub(started.elapsed());
        if !parsed {
            return None;
        }
        let body = &generated[skipped..];
        let first = self.at + (body.len() - body.trim_start().len());
        let end = self.at + body.trim_end().len();
        let unit = self.unit(first)?;
        if unit.node.has_error() || unit.node.end_byte() > end {
            return None;
        }
        // The last line may end with `;` or `)` after the node.
        let unit_end = unit.node.end_byte().max(self.at) - self.at;
        let rest = body.get(unit_end..body.trim_end().len())?;
        if rest.contains('\n') {
            let line_end = unit_end + rest.find('\n').unwrap_or_default();
            return Some(UnitEnd::Before(skipped + line_end));
        }
        (unit.is_definition && body.trim_end().ends_with(['}', ';'])).then_some(UnitEnd::Here)
    }

    /// Puts the rest of `body` into the text and parses again.
    fn insert(&mut self, body: &str) -> bool {
        let Some(new) = body.get(self.inserted..).filter(|_| !self.budget.is_zero()) else {
            return false;
        };
        let old = self.text.clone();
        let start = self.at + self.inserted;
        self.text.insert(self.text.byte_to_char(start), new);
        self.inserted = body.len();
        match &mut self.tree {
            Some(tree) => {
                tree.edit(&old, &self.text, start, start, start + new.len());
                tree.reparse(&self.text, self.budget)
            }
            None => {
                self.tree = SyntaxTree::parse(self.language, &self.text, self.budget);
                self.tree.is_some()
            }
        }
    }

    /// The node whose end is the text's: the definition that begins at byte `first`, or what the caret is in.
    fn unit(&self, first: usize) -> Option<Unit<'_>> {
        let root = self.tree.as_ref()?.tree().root_node();
        let leaf = root.descendant_for_byte_range(first, first + 1)?;
        let mut own = leaf;
        let mut outer: Option<Node<'_>> = None;
        let mut in_function = false;
        let mut node = leaf;
        while let Some(parent) = node.parent() {
            if node.start_byte() >= first {
                own = node;
            } else {
                // All nodes with one beginning are one thing: a chain of calls, a declaration with modifiers.
                if outer.is_none_or(|outer| outer.start_byte() == node.start_byte()) {
                    outer = Some(node);
                }
                in_function |= is_function(node);
            }
            node = parent;
        }
        // A decorator or an annotation above the caret belongs to the definition, and so does a head.
        let body_is_new = |node: Node<'_>| body(node).is_some_and(|body| body.start_byte() >= first);
        if let Some(outer) = outer.filter(|&outer| is_definition(outer) && body_is_new(outer)) {
            return Some(Unit { node: outer, is_definition: true });
        }
        // Inside a function a definition is one statement among others.
        if !in_function && is_definition(own) {
            return Some(Unit { node: own, is_definition: true });
        }
        Some(Unit { node: outer?, is_definition: false })
    }
}

/// The bytes of the outermost node, as far as it is near, that holds the last text before the caret.
fn item_around(caret: &Caret, tree: &SyntaxTree) -> Range<usize> {
    let at = caret.byte();
    let before = caret.before();
    let blanks = before.len() - before.trim_end().len();
    let last = at.saturating_sub(blanks + 1);
    let leaf = tree.tree().root_node().descendant_for_byte_range(last, last);
    let nodes = successors(leaf, |node| node.parent()).take_while(|node| node.parent().is_some());
    let near = nodes.take_while(|node| node.start_byte() + MAX_BYTES_BEFORE >= at);
    let item = near.last().filter(|node| node.start_byte() <= at);
    item.map_or(at..at, |item| item.start_byte()..item.end_byte().clamp(at, at + MAX_BYTES_AFTER))
}

struct Unit<'tree> {
    node: Node<'tree>,
    is_definition: bool,
}

/// The body of a declaration, or of the declaration in an export, a template or a decorated definition.
fn body(node: Node<'_>) -> Option<Node<'_>> {
    let inner = ["definition", "declaration"].iter().find_map(|field| node.child_by_field_name(field));
    inner.unwrap_or(node).child_by_field_name("body")
}

/// A function, a class or another declaration with a body.
fn is_definition(node: Node<'_>) -> bool {
    const KINDS: [&str; 6] =
        ["_definition", "_declaration", "_item", "_specifier", "export_statement", "declaration"];
    KINDS.iter().any(|kind| node.kind().ends_with(kind)) && body(node).is_some()
}

fn is_function(node: Node<'_>) -> bool {
    let kind = node.kind();
    let kinds = ["function", "method", "constructor", "closure", "lambda", "func_literal"];
    kinds.iter().any(|part| kind.contains(part)) && body(node).is_some()
}
