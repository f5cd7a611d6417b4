//! Which blocks hold which tokens, so that a prompt's known beginning need not be computed again.

use std::collections::HashMap;

use crate::step_plan::{BLOCK_SIZE, BlockId};

/// Hash of a block's tokens and, through `parent`, of everything before them.
pub type BlockHasher = fn(parent: u128, tokens: &[u32]) -> u128;

/// An index of full blocks by their tokens and the block before them.
///
/// A block's key is a hash over its own tokens and its parent's key, so equal keys mean equal
/// beginnings, but for collisions. Those must not serve someone else's text: a find also compares the
/// block's tokens and requires the very parent block that was found before. As a parent stays in the
/// index as long as it has children (a contract of [`remove`](Self::remove)), that proves the whole
/// beginning equal.
#[derive(Debug)]
pub struct PrefixIndex {
    hasher: BlockHasher,
    /// What each block of the pool holds, if it is indexed.
    entries: Vec<Option<Entry>>,
    /// Blocks by hash; more than one only after a collision.
    by_hash: HashMap<u128, Vec<BlockId>>,
    len: usize,
}

#[derive(Debug)]
struct Entry {
    hash: u128,
    parent: Option<BlockId>,
    tokens: [u32; BLOCK_SIZE],
    /// Indexed blocks whose parent this one is.
    children: u32,
}

/// The hash that stands before the first block.
const ROOT_HASH: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;

impl PrefixIndex {
    /// An empty index over a pool of `num_blocks`.
    pub fn new(num_blocks: usize, hasher: BlockHasher) -> Self {
        let entries = std::iter::repeat_with(|| None).take(num_blocks).collect();
        Self { hasher, entries, by_hash: HashMap::new(), len: 0 }
    }

    /// The block that holds `tokens` after the beginning that ends with `parent` (`None`: at position 0).
    pub fn find(&self, parent: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        let hash = (self.hasher)(self.hash_of(parent), tokens);
        let candidates = self.by_hash.get(&hash)?;
        candidates.iter().copied().find(|&block| {
            let entry = self.entry(block);
            entry.parent == parent && entry.tokens == tokens
        })
    }

    /// Adds `block`, which holds `tokens` after `parent`.
    ///
    /// # Panics
    /// When the block is indexed already, its content is, or its parent is not.
    pub fn insert(&mut self, parent: Option<BlockId>, tokens: &[u32], block: BlockId) {
        assert!(!self.contains(block), "block {block} is already indexed");
        debug_assert!(self.find(parent, tokens).is_none(), "the tokens of block {block} are already indexed");
        let tokens: [u32; BLOCK_SIZE] = tokens.try_into().expect("only full blocks are indexed");
        let hash = (self.hasher)(self.hash_of(parent), &tokens);
        if let Some(parent) = parent {
            self.entry_mut(parent).children += 1;
        }
        self.entries[block as usize] = Some(Entry { hash, parent, tokens, children: 0 });
        self.by_hash.entry(hash).or_default().push(block);
        self.len += 1;
    }

    /// Forgets `block`; its memory is about to hold something else.
    ///
    /// # Panics
    /// When the block is not indexed, or one of its children still is.
    pub fn remove(&mut self, block: BlockId) {
        let entry = self.entries[block as usize].take().expect("the block is indexed");
        assert_eq!(entry.children, 0, "block {block} is evicted before the blocks that continue it");
        if let Some(parent) = entry.parent {
            self.entry_mut(parent).children -= 1;
        }
        let same_hash = self.by_hash.get_mut(&entry.hash).expect("an indexed block is listed by its hash");
        same_hash.retain(|&other| other != block);
        if same_hash.is_empty() {
            self.by_hash.remove(&entry.hash);
        }
        self.len -= 1;
    }

    /// Whether `block` is indexed.
    pub fn contains(&self, block: BlockId) -> bool {
        self.entries[block as usize].is_some()
    }

    /// Number of indexed blocks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is indexed.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn hash_of(&self, parent: Option<BlockId>) -> u128 {
        parent.map_or(ROOT_HASH, |parent| self.entry(parent).hash)
    }

    fn entry(&self, block: BlockId) -> &Entry {
        self.entries[block as usize].as_ref().expect("the block is indexed")
    }

    fn entry_mut(&mut self, block: BlockId) -> &mut Entry {
        self.entries[block as usize].as_mut().expect("the block is indexed")
    }
}

/// FNV-1a with 128 bits, a token at a time. It need not resist an attacker: a collision costs a cache
/// hit, never a wrong answer.
pub fn fnv1a_128(parent: u128, tokens: &[u32]) -> u128 {
    const PRIME: u128 = (1 << 88) + (1 << 8) + 0x3b;
    tokens.iter().fold(parent, |hash, &token| {
        let hash = (hash ^ u128::from(token)).wrapping_mul(PRIME);
        // The product only carries upwards; bring the high bits back down.
        hash ^ (hash >> 67)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(first: u32) -> Vec<u32> {
        (first..first + BLOCK_SIZE as u32).collect()
    }

    fn constant(_: u128, _: &[u32]) -> u128 {
        7
    }

    #[test]
    fn a_block_is_found_after_its_own_beginning_only() {
        for hasher in [fnv1a_128 as BlockHasher, constant] {
            let mut index = PrefixIndex::new(8, hasher);
            index.insert(None, &block(0), 3);
            index.insert(None, &block(100), 4);
            index.insert(Some(3), &block(50), 5);
            assert_eq!(index.find(None, &block(0)), Some(3));
            assert_eq!(index.find(Some(3), &block(50)), Some(5));
            assert_eq!(index.find(Some(4), &block(50)), None, "same tokens after another beginning");
            assert_eq!(index.find(None, &block(50)), None, "same tokens at another position");
            index.insert(Some(4), &block(50), 6);
            assert_eq!(index.find(Some(4), &block(50)), Some(6));
            assert_eq!(index.len(), 4);
        }
    }

    #[test]
    fn a_removed_block_is_not_found_even_among_collisions() {
        let mut index = PrefixIndex::new(4, constant);
        index.insert(None, &block(0), 0);
        index.insert(None, &block(1), 1);
        index.remove(0);
        assert_eq!(index.find(None, &block(0)), None);
        assert_eq!(index.find(None, &block(1)), Some(1));
        index.remove(1);
        assert!(index.is_empty());
    }

    #[test]
    #[should_panic(expected = "evicted before the blocks that continue it")]
    fn a_parent_outlives_its_children() {
        let mut index = PrefixIndex::new(4, fnv1a_128);
        index.insert(None, &block(0), 0);
        index.insert(Some(0), &block(1), 1);
        index.remove(0);
    }

    #[test]
    fn the_hash_depends_on_parent_order_and_every_token() {
        let base = fnv1a_128(1, &block(0));
        assert_ne!(base, fnv1a_128(2, &block(0)));
        for position in 0..BLOCK_SIZE {
            let mut tokens = block(0);
            tokens[position] += 1;
            assert_ne!(base, fnv1a_128(1, &tokens));
            tokens = block(0);
            tokens.swap(position, (position + 1) % BLOCK_SIZE);
            assert_ne!(base, fnv1a_128(1, &tokens));
        }
    }
}
