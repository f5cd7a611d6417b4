//! The KV cache's blocks: who uses them, which are free, and what the free ones still hold.

use crate::prefix_index::{BlockHasher, PrefixIndex};
use crate::step_plan::{BLOCK_SIZE, BlockId};

/// Counts references to blocks and hands out free ones.
///
/// A block that nobody references is *free*; if it is indexed it is also *cached* and can be taken up
/// again with its content until it is handed out for something new. Blocks are handed out in this
/// order: those that hold nothing, then the cached ones, least recently released first. A sequence
/// releases its tail before its head, so a tail is evicted first and what remains is a usable beginning.
#[derive(Debug)]
pub struct BlockPool {
    ref_counts: Vec<u32>,
    free: FreeList,
    index: PrefixIndex,
}

impl BlockPool {
    /// A pool of `num_blocks`, all of them free and empty.
    pub fn new(num_blocks: usize, hasher: BlockHasher) -> Self {
        let mut free = FreeList::new(num_blocks);
        for block in 0..num_blocks {
            free.push_back(block as BlockId);
        }
        Self { ref_counts: vec![0; num_blocks], free, index: PrefixIndex::new(num_blocks, hasher) }
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.ref_counts.len()
    }

    /// Blocks that [`allocate`](Self::allocate) can hand out.
    pub fn num_free(&self) -> usize {
        self.free.len
    }

    /// Blocks in the prefix index, referenced or not.
    pub fn num_cached(&self) -> usize {
        self.index.len()
    }

    /// A block to write to, with one reference and no content; `None` when all are referenced.
    pub fn allocate(&mut self) -> Option<BlockId> {
        let block = self.free.pop_front()?;
        assert_eq!(self.ref_counts[block as usize], 0, "block {block} was free and referenced");
        if self.index.contains(block) {
            self.index.remove(block);
        }
        self.ref_counts[block as usize] = 1;
        Some(block)
    }

    /// The cached block that holds `tokens` after `parent`, with one more reference.
    pub fn acquire_cached(&mut self, parent: Option<BlockId>, tokens: &[u32]) -> Option<BlockId> {
        let block = self.index.find(parent, tokens)?;
        if self.ref_counts[block as usize] == 0 {
            self.free.remove(block);
        }
        self.ref_counts[block as usize] += 1;
        Some(block)
    }

    /// Makes the full block `block` findable. If another block already holds the same beginning, that
    /// one is returned, referenced, and `block` is given back: equal content is kept once, and every
    /// indexed block's parent is the block before it in the table of whoever references it.
    ///
    /// # Panics
    /// When the block is not referenced or not full.
    pub fn publish(&mut self, parent: Option<BlockId>, tokens: &[u32], block: BlockId) -> BlockId {
        assert!(self.ref_counts[block as usize] > 0, "block {block} is published by no owner");
        assert_eq!(tokens.len(), BLOCK_SIZE, "only full blocks are published");
        if let Some(canonical) = self.acquire_cached(parent, tokens) {
            assert_ne!(canonical, block, "block {block} is published twice");
            self.release_one(block);
            return canonical;
        }
        self.index.insert(parent, tokens, block);
        block
    }

    /// Gives back a sequence's whole table, tail first.
    pub fn release(&mut self, block_table: Vec<BlockId>) {
        for block in block_table.into_iter().rev() {
            self.release_one(block);
        }
    }

    fn release_one(&mut self, block: BlockId) {
        let count = &mut self.ref_counts[block as usize];
        assert!(*count > 0, "block {block} is released more often than referenced");
        *count -= 1;
        if *count > 0 {
            return;
        }
        if self.index.contains(block) {
            self.free.push_back(block);
        } else {
            self.free.push_front(block);
        }
    }
}

/// A doubly linked list of block ids in two arrays, so that any block can be taken out at once.
#[derive(Debug)]
struct FreeList {
    next: Vec<BlockId>,
    previous: Vec<BlockId>,
    len: usize,
}

impl FreeList {
    /// An empty list. The last slot of the arrays is the list's head, before the first and after the last.
    fn new(num_blocks: usize) -> Self {
        let head = num_blocks as BlockId;
        Self { next: vec![head; num_blocks + 1], previous: vec![head; num_blocks + 1], len: 0 }
    }

    fn head(&self) -> BlockId {
        (self.next.len() - 1) as BlockId
    }

    fn push_back(&mut self, block: BlockId) {
        self.insert_between(self.previous[self.head() as usize], block, self.head());
    }

    fn push_front(&mut self, block: BlockId) {
        self.insert_between(self.head(), block, self.next[self.head() as usize]);
    }

    fn pop_front(&mut self) -> Option<BlockId> {
        let first = self.next[self.head() as usize];
        if first == self.head() {
            return None;
        }
        self.remove(first);
        Some(first)
    }

    fn remove(&mut self, block: BlockId) {
        let (previous, next) = (self.previous[block as usize], self.next[block as usize]);
        self.next[previous as usize] = next;
        self.previous[next as usize] = previous;
        self.len -= 1;
    }

    fn insert_between(&mut self, previous: BlockId, block: BlockId, next: BlockId) {
        self.next[previous as usize] = block;
        self.previous[block as usize] = previous;
        self.next[block as usize] = next;
        self.previous[next as usize] = block;
        self.len += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prefix_index::fnv1a_128;

    fn tokens(first: u32) -> Vec<u32> {
        (first..first + BLOCK_SIZE as u32).collect()
    }

    /// Allocates and publishes a chain of full blocks whose contents begin with `firsts`.
    fn chain(pool: &mut BlockPool, firsts: &[u32]) -> Vec<BlockId> {
        let mut table: Vec<BlockId> = Vec::new();
        for &first in firsts {
            let block = pool.allocate().expect("a free block");
            table.push(pool.publish(table.last().copied(), &tokens(first), block));
        }
        table
    }

    #[test]
    fn the_tail_is_evicted_before_the_head() {
        let mut pool = BlockPool::new(4, fnv1a_128);
        let table = chain(&mut pool, &[0, 100, 200]);
        pool.release(table.clone());
        assert_eq!((pool.num_free(), pool.num_cached()), (4, 3));
        assert_eq!(pool.allocate(), Some(3), "the block that holds nothing goes first");
        assert_eq!(pool.allocate(), Some(table[2]));
        assert_eq!(pool.acquire_cached(None, &tokens(0)), Some(table[0]));
        assert_eq!(pool.acquire_cached(Some(table[0]), &tokens(100)), Some(table[1]));
        assert_eq!(pool.acquire_cached(Some(table[1]), &tokens(200)), None, "evicted");
        assert_eq!(pool.allocate(), None, "referenced blocks are not handed out");
    }

    #[test]
    fn the_least_recently_used_beginning_is_evicted_first() {
        let mut pool = BlockPool::new(2, fnv1a_128);
        let old = chain(&mut pool, &[0]);
        let new = chain(&mut pool, &[100]);
        pool.release(old.clone());
        pool.release(new.clone());
        let used_again = pool.acquire_cached(None, &tokens(0)).expect("cached");
        pool.release(vec![used_again]);
        assert_eq!(pool.allocate(), Some(new[0]));
    }

    #[test]
    fn equal_content_is_kept_once() {
        let mut pool = BlockPool::new(4, fnv1a_128);
        let first = chain(&mut pool, &[0, 100]);
        let second = chain(&mut pool, &[0, 100]);
        assert_eq!(first, second);
        assert_eq!(pool.num_free(), 2);
        pool.release(first);
        assert_eq!(pool.num_free(), 2, "still referenced by the second");
        pool.release(second);
        assert_eq!(pool.num_free(), 4);
    }

    #[test]
    #[should_panic(expected = "released more often than referenced")]
    fn a_double_release_is_caught() {
        let mut pool = BlockPool::new(1, fnv1a_128);
        let block = pool.allocate().expect("a free block");
        pool.release(vec![block]);
        pool.release(vec![block]);
    }
}
