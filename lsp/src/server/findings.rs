//! Findings of reviews, kept on the right lines while the document changes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use crate::assistant::Finding;
use crate::document::LineEdit;

/// A finding that is shown.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Held {
    /// Names it in code actions; never used again.
    pub(super) id: u64,
    /// On the lines of the document as it is now.
    pub(super) finding: Finding,
}

/// The findings of all open documents.
#[derive(Default)]
pub(super) struct Findings {
    of: HashMap<Arc<str>, Vec<Held>>,
    ids: u64,
    revision: u64,
}

impl Findings {
    /// Takes in what a review of the lines `reviewed` found; earlier findings there are outdated.
    pub(super) fn record(&mut self, uri: &Arc<str>, reviewed: &Range<usize>, new: Vec<Finding>) {
        let held = self.of.entry(Arc::clone(uri)).or_default();
        held.retain(|held| !overlap(&lines(&held.finding), reviewed));
        for finding in new {
            self.ids += 1;
            held.push(Held { id: self.ids, finding });
        }
        held.sort_by_key(|held| held.finding.first_line);
        self.revision += 1;
    }

    /// Follows edits. A finding whose lines were edited is dropped: it may no longer be true.
    /// Returns whether anything changed.
    pub(super) fn edited(&mut self, uri: &str, edits: &[LineEdit]) -> bool {
        let Some(held) = self.of.get_mut(uri) else {
            return false;
        };
        let before = held.clone();
        held.retain_mut(|held| follow(&mut held.finding, edits));
        let changed = *held != before;
        self.revision += u64::from(changed);
        changed
    }

    /// Drops one finding. Returns whether it was there.
    pub(super) fn dismiss(&mut self, uri: &str, id: u64) -> bool {
        let Some(held) = self.of.get_mut(uri) else {
            return false;
        };
        let before = held.len();
        held.retain(|held| held.id != id);
        let changed = held.len() != before;
        self.revision += u64::from(changed);
        changed
    }

    /// Drops the findings of a document. Returns whether there were any.
    pub(super) fn clear(&mut self, uri: &str) -> bool {
        self.revision += 1;
        self.of.remove(uri).is_some_and(|held| !held.is_empty())
    }

    /// The findings of a document by line.
    pub(super) fn of(&self, uri: &str) -> &[Held] {
        self.of.get(uri).map_or(&[], Vec::as_slice)
    }

    /// Grows with every change of any finding.
    pub(super) fn revision(&self) -> u64 {
        self.revision
    }
}

/// The lines of a finding.
pub(super) fn lines(finding: &Finding) -> Range<usize> {
    finding.first_line..finding.last_line + 1
}

/// Moves `finding` along with `edits`. False when one of them changed its lines.
pub(super) fn follow(finding: &mut Finding, edits: &[LineEdit]) -> bool {
    for edit in edits {
        if overlap(&lines(finding), &edit.old) {
            return false;
        }
        if edit.old.end <= finding.first_line {
            let moved = |line: usize| line + edit.new.end - edit.old.end;
            finding.first_line = moved(finding.first_line);
            finding.last_line = moved(finding.last_line);
        }
    }
    true
}

/// Whether two ranges of lines share one, or the second is a place within the first.
fn overlap(lines: &Range<usize>, other: &Range<usize>) -> bool {
    if other.is_empty() {
        return lines.start < other.start && other.start < lines.end;
    }
    lines.start < other.end && other.start < lines.end
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assistant::Severity;

    fn on(first_line: usize, last_line: usize) -> Finding {
        Finding {
            first_line,
            last_line,
            severity: Severity::Warning,
            kind: "bug".to_owned(),
            message: String::new(),
            replacement: None,
        }
    }

    fn after(finding: &Finding, old: Range<usize>, new: Range<usize>) -> Option<(usize, usize)> {
        let mut finding = finding.clone();
        let kept = follow(&mut finding, &[LineEdit { old, new }]);
        kept.then_some((finding.first_line, finding.last_line))
    }

    #[test]
    fn findings_move_with_edits_above_and_go_with_edits_inside() {
        let finding = on(5, 7);
        assert_eq!(after(&finding, 0..1, 0..4), Some((8, 10)));
        assert_eq!(after(&finding, 2..5, 2..2), Some((2, 4)));
        assert_eq!(after(&finding, 8..9, 8..12), Some((5, 7)));
        assert_eq!(after(&finding, 5..5, 5..6), Some((6, 8)), "a line inserted above");
        assert_eq!(after(&finding, 6..6, 6..7), None, "a line inserted inside");
        assert_eq!(after(&finding, 8..8, 8..9), Some((5, 7)), "a line inserted below");
        assert_eq!(after(&finding, 7..8, 7..8), None);
        assert_eq!(after(&finding, 0..20, 0..20), None);
    }

    #[test]
    fn a_new_review_replaces_the_findings_of_its_function_only() {
        let uri: Arc<str> = "file:///x".into();
        let mut findings = Findings::default();
        findings.record(&uri, &(0..10), vec![on(3, 3)]);
        findings.record(&uri, &(20..30), vec![on(25, 25), on(21, 22)]);
        findings.record(&uri, &(0..10), vec![on(4, 4)]);
        let lines: Vec<_> = findings.of(&uri).iter().map(|held| held.finding.first_line).collect();
        assert_eq!(lines, [4, 21, 25]);
        let id = findings.of(&uri)[1].id;
        assert!(findings.dismiss(&uri, id));
        assert!(!findings.dismiss(&uri, id));
        assert_eq!(findings.of(&uri).len(), 2);
    }
}
