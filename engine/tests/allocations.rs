//! A decode step allocates nothing: not the backend, and not its threads.
//!
//! The only test of this binary, since it counts the allocations of the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};

const PROMPT: usize = 40;
const BLOCKS: usize = 8;
const SEQUENCES: usize = 2;

/// The system's allocator, counting what it is asked for.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is done by the system's allocator; only a counter is added.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// `count` rows for each of the sequences, from position `first` on.
fn plan(first: usize, count: usize) -> StepPlan {
    let mut plan = StepPlan::default();
    for sequence in 0..SEQUENCES {
        let start = plan.num_rows();
        plan.tokens.extend((first..first + count).map(|position| (position * 7 + sequence) as u32 % 100));
        plan.positions.extend((first..first + count).map(|position| position as u32));
        let block_table = (0..BLOCKS).map(|block| (sequence * BLOCKS + block) as u32).collect();
        plan.sequences.push(PlannedSequence { rows: start..start + count, block_table });
        plan.logits_rows.push((start + count - 1) as u32);
    }
    plan
}

#[test]
fn a_decode_step_allocates_nothing() {
    let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/oracle/tied-hd64"));
    let checkpoint = Checkpoint::open(directory).unwrap();
    let options = CpuOptions { threads: Some(2), ..CpuOptions::default() };
    let mut backend = CpuBackend::new(&checkpoint, options).unwrap();
    backend.allocate_kv(SEQUENCES * BLOCKS).unwrap();
    let mut logits = Vec::new();
    backend.forward(&plan(0, PROMPT), &mut logits).unwrap();
    backend.forward(&plan(PROMPT, 1), &mut logits).unwrap();

    let steps: Vec<StepPlan> = (PROMPT + 1..BLOCKS * BLOCK_SIZE).map(|position| plan(position, 1)).collect();
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for step in &steps {
        backend.forward(step, &mut logits).unwrap();
    }
    let allocations = ALLOCATIONS.load(Ordering::Relaxed) - before;
    assert_eq!(allocations, 0, "in {} steps", steps.len());
}
