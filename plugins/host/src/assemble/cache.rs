//! Texts already tokenized.

use std::collections::HashMap;
use std::sync::Arc;

/// Tokens by text, the least recently used forgotten first. Two generations stand for an exact order:
/// when the young one is full it becomes the old one, and what is used again moves back.
pub(super) struct SegmentCache {
    young: HashMap<Box<str>, Arc<[u32]>>,
    old: HashMap<Box<str>, Arc<[u32]>>,
    young_bytes: usize,
    /// Bytes of text in one generation.
    generation_bytes: usize,
}

impl SegmentCache {
    pub(super) fn new(bytes: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), young_bytes: 0, generation_bytes: bytes / 2 }
    }

    pub(super) fn get(&mut self, text: &str) -> Option<Arc<[u32]>> {
        if let Some(tokens) = self.young.get(text) {
            return Some(tokens.clone());
        }
        let (text, tokens) = self.old.remove_entry(text)?;
        self.insert(text, tokens.clone());
        Some(tokens)
    }

    pub(super) fn insert(&mut self, text: Box<str>, tokens: Arc<[u32]>) {
        if text.len() > self.generation_bytes {
            return;
        }
        if self.young_bytes + text.len() > self.generation_bytes {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        let bytes = text.len();
        // Two threads may have tokenized the same.
        if self.young.insert(text, tokens).is_none() {
            self.young_bytes += bytes;
        }
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> usize {
        self.young.keys().chain(self.old.keys()).map(|text| text.len()).sum()
    }
}
