use std::time::Instant;
use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};
fn plan(first: usize, count: usize, v: usize, r: usize) -> StepPlan {
    StepPlan { tokens: (first..first + count).map(|p| ((p * 7919 + r * 104_729) % v) as u32).collect(),
        positions: (first..first + count).map(|p| p as u32).collect(),
        sequences: vec![PlannedSequence { rows: 0..count, block_table: (0..(first + count).div_ceil(BLOCK_SIZE) as u32).collect() }],
        logits_rows: vec![count as u32 - 1] }
}
fn multi(first: usize, n: usize, v: usize, r: usize) -> StepPlan {
    let per = 64u32;
    StepPlan { tokens: (0..n).map(|p| ((p * 7919 + r * 104_729) % v) as u32).collect(), positions: vec![first as u32; n],
        sequences: (0..n).map(|i| PlannedSequence { rows: i..i + 1, block_table: (0..(first + 1).div_ceil(BLOCK_SIZE) as u32).map(|b| b + i as u32 * per).collect() }).collect(),
        logits_rows: (0..n as u32).collect() }
}
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let size = a[1].parse().unwrap();
    let depth: usize = a.get(2).map_or(4096, |x| x.parse().unwrap());
    let t = Instant::now();
    let mut ck = Checkpoint::synthetic(size, 1).unwrap();
    println!("generate {:.2?}", t.elapsed());
    let t = Instant::now();
    let mut b = CpuBackend::new(&ck, CpuOptions { threads: Some(2), ..CpuOptions::default() }).unwrap();
    println!("load {:.2?} {} weights {} MB", t.elapsed(), b.name(), b.weight_bytes() >> 20);
    b.allocate_kv(((depth + 600) / 16 + 1).max(400)).unwrap();
    let v = b.vocab_size();
    let mut l = Vec::new();
    let best = |n: usize, f: &mut dyn FnMut(usize)| { (0..n).map(|i| { let t = Instant::now(); f(i); t.elapsed().as_secs_f64() }).fold(1e9, f64::min) };
    let s = best(3, &mut |r| for c in 0..2 { b.forward(&plan(c * 256, 256, v, r), &mut l).unwrap() });
    println!("prefill 512: {:.0} tok/s", 512.0 / s);
    let s = best(20, &mut |r| b.forward(&plan(64, 1, v, r), &mut l).unwrap());
    println!("decode @64: {:.1} tok/s  {:.2} ms", 1.0 / s, s * 1e3);
    for n in [2, 4] { let s = best(10, &mut |r| b.forward(&multi(64, n, v, r), &mut l).unwrap()); println!("decode x{n}: {:.1} tok/s", n as f64 / s); }
    let s = best(5, &mut |r| b.forward(&plan(512, 16, v, r), &mut l).unwrap());
    println!("tail 16 @512: {:.2} ms", s * 1e3);
    if depth > 512 {
    let s = best(1, &mut |r| for c in 0..depth / 256 { b.forward(&plan(c * 256, 256, v, r), &mut l).unwrap() });
    println!("prefill {depth}: {:.0} tok/s", depth as f64 / s);
    let s = best(10, &mut |r| b.forward(&plan(depth, 1, v, r), &mut l).unwrap());
    println!("decode @{depth}: {:.1} tok/s", 1.0 / s);
    let s = best(5, &mut |r| b.forward(&plan(depth, 16, v, r), &mut l).unwrap());
    println!("tail 16 @{depth}: {:.2} ms", s * 1e3);
    }
}
