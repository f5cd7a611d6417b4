//! How fast this machine reads memory: the wall that decoding runs into.

use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, ensure};
use clap::Args;
use redstart_engine::cuda::machine::{self, Effort};
use redstart_engine::cuda::{self, Urgency};

use crate::commands::{print, thread_count};

/// Larger than any last-level cache of a machine that a person sits at.
const BUFFER_BYTES: usize = 512 << 20;

/// What is read where memory is short.
const LEAST_BUFFER_BYTES: usize = 64 << 20;

/// Parts of the buffer that are timed one by one. Each takes a few milliseconds: on a machine that has
/// other things to do, few stretches much longer than that are left in peace.
const PARTS: usize = 16;

/// Times that the whole buffer is read, so that no part is in a cache when its turn comes.
const PASSES: usize = 24;

/// Print this machine's read bandwidth in GB/s.
// Its own process, so that the buffer does not count as memory of the model.
#[derive(Args)]
#[command(hide = true)]
pub(super) struct ReadBandwidthArgs {
    #[arg(long, value_parser = thread_count)]
    threads: usize,
}

pub(super) fn run(args: &ReadBandwidthArgs) -> anyhow::Result<()> {
    print(&format!("{}\n", best_pass(args.threads, buffer_bytes())))?;
    Ok(())
}

/// Bytes per second that `threads` threads read together, in GB, measured in a process of its own.
pub(super) fn measure(threads: usize) -> anyhow::Result<f64> {
    let program = std::env::current_exe().context("cannot find this program to start it again")?;
    let output = Command::new(program)
        .args(["bench", "read-bandwidth", "--threads", &threads.to_string()])
        .output()
        .context("cannot start the measurement of the read bandwidth")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "the measurement of the read bandwidth failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    text.trim()
        .parse()
        .with_context(|| format!("the measurement of the read bandwidth said '{}'", text.trim()))
}

/// Bytes per second that the GPU reads from its memory, in GB; and those that a copy within it reads and writes.
pub(super) fn measure_gpu() -> anyhow::Result<(f64, f64)> {
    let mut device = cuda::open(Urgency::First)?;
    let rates = machine::measure(device.as_mut(), Effort { rounds: 1, ..Effort::CARD })?;
    Ok((rates.read / 1e9, rates.copy / 1e9))
}

/// The fastest of several passes over a buffer of which each thread reads its share.
fn best_pass(threads: usize, bytes: usize) -> f64 {
    let words = bytes / threads / PARTS / size_of::<u64>();
    let arrivals = AtomicUsize::new(0);
    let times: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let reader = |thread: usize| {
            let arrivals = &arrivals;
            move || {
                // Written, since pages that never were are all one page of zeros.
                let share: Vec<u64> = (0..(words * PARTS) as u64).map(|word| word ^ thread as u64).collect();
                let parts = (0..PASSES).flat_map(|_| share.chunks_exact(words)).enumerate();
                parts
                    .map(|(turn, part)| {
                        wait_for_all(arrivals, threads * (turn + 1));
                        timed_sum(part)
                    })
                    .collect()
            }
        };
        let readers: Vec<_> = (0..threads).map(|thread| scope.spawn(reader(thread))).collect();
        readers.into_iter().map(|reader| reader.join().expect("reading does not panic")).collect()
    });
    let seconds = (0..PASSES * PARTS).filter_map(|turn| {
        let first = times.iter().map(|times| times[turn].0).min()?;
        let last = times.iter().map(|times| times[turn].1).max()?;
        Some((last - first).as_secs_f64())
    });
    (words * threads * size_of::<u64>()) as f64 / seconds.fold(f64::INFINITY, f64::min) / 1e9
}

/// Waits until `all` arrivals are counted, this one included. The threads must start together, and a
/// sleeping one would be late.
fn wait_for_all(arrivals: &AtomicUsize, all: usize) {
    arrivals.fetch_add(1, Ordering::AcqRel);
    while arrivals.load(Ordering::Acquire) < all {
        std::thread::yield_now();
    }
}

/// When the reading began and ended.
fn timed_sum(words: &[u64]) -> (Instant, Instant) {
    let started = Instant::now();
    black_box(sum(black_box(words)));
    (started, Instant::now())
}

/// The sum of all words with the widest registers the processor has: with narrower ones the loads, and not
/// memory, would be what takes the time.
fn sum(words: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has AVX-512.
            return unsafe { sum_avx512(words) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has AVX2.
            return unsafe { sum_avx2(words) };
        }
    }
    sum_in_lanes::<16>(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(words: &[u64]) -> u64 {
    sum_in_lanes::<64>(words)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(words: &[u64]) -> u64 {
    sum_in_lanes::<32>(words)
}

/// Independent lanes, which the compiler turns into SIMD of the function this is inlined into.
#[inline(always)]
fn sum_in_lanes<const LANES: usize>(words: &[u64]) -> u64 {
    let mut lanes = [0u64; LANES];
    let (chunks, rest) = words.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk) {
            *lane = lane.wrapping_add(*word);
        }
    }
    lanes.iter().chain(rest).fold(0, |sum, word| sum.wrapping_add(*word))
}

/// A quarter of the memory that is free at most.
fn buffer_bytes() -> usize {
    available_bytes().map_or(BUFFER_BYTES / 2, |free| (free / 4).clamp(LEAST_BUFFER_BYTES, BUFFER_BYTES))
}

/// Where the system tells (Linux).
fn available_bytes() -> Option<usize> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find(|line| line.starts_with("MemAvailable:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<usize>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for len in [0, 1, 15, 16, 17, 63, 64, 65, 1_000] {
            let words: Vec<u64> = (1..=len).map(|word| u64::MAX / 3 + word).collect();
            assert_eq!(sum(&words), words.iter().fold(0, |sum: u64, word| sum.wrapping_add(*word)));
        }
    }
}
