//! The processors this process may use: which of them share a core, which are the fast ones, and how a
//! thread is kept on one.
//!
//! Known where the system tells (Linux: the affinity mask and `/sys/devices/system/cpu`); elsewhere
//! there is only their number, and nothing is pinned.

use std::path::Path;
use std::sync::OnceLock;

/// Most threads taken unless asked otherwise: beyond these a desktop's memory is the limit.
const MOST_DEFAULT_THREADS: usize = 8;

/// Cores beyond which one is left to the editor: with fewer, a thread less would cost too much.
const CORES_TO_SHARE: usize = 4;

/// Physical cores this process may use, at most eight: two hyperthreads share the units that the
/// kernels keep busy. From five cores on, one less: every region of a step ends when its last thread does,
/// so a core that the editor or a compiler also wants is worth less than one thread fewer.
pub fn default_threads() -> usize {
    // Counts a container's quota too, which the affinity mask does not show.
    let available = std::thread::available_parallelism().map_or(1, usize::from);
    threads_for(available.min(physical_cores().unwrap_or(available)))
}

fn threads_for(cores: usize) -> usize {
    let shared = usize::from(cores > CORES_TO_SHARE);
    (cores - shared).clamp(1, MOST_DEFAULT_THREADS)
}

fn physical_cores() -> Option<usize> {
    let cores = known()?.iter().filter(|cpu| cpu.sibling == 0).count();
    (cores > 0).then_some(cores)
}

/// A processor for each of `threads` threads: of different cores as long as there are any, the fast ones
/// first. `None` where nothing is known, or where there are fewer processors than threads: then the system's
/// scheduler does better.
pub(super) fn placement(threads: usize) -> Option<Vec<usize>> {
    let cpus = known()?;
    (threads <= cpus.len()).then(|| cpus[..threads].iter().map(|cpu| cpu.number).collect())
}

/// The processors that the process could use when this was first asked, best first. Remembered, since a
/// pinned thread no longer knows.
fn known() -> Option<&'static [Cpu]> {
    static KNOWN: OnceLock<Option<Vec<Cpu>>> = OnceLock::new();
    KNOWN.get_or_init(|| Some(ranked(&affinity::allowed()?, Path::new("/sys/devices/system/cpu")))).as_deref()
}

/// One processor (hardware thread).
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cpu {
    number: usize,
    /// Its place among the allowed processors of its core; 0 for the first.
    sibling: usize,
    /// Speed compared with the others, in whatever unit the system has; 0 where it does not say.
    capacity: u64,
}

/// `allowed` processors, ascending, in the order in which threads should take them.
fn ranked(allowed: &[usize], sysfs: &Path) -> Vec<Cpu> {
    let mut taken: Vec<String> = Vec::new();
    let mut cpus: Vec<Cpu> = allowed
        .iter()
        .map(|&number| {
            let read = |file: &str| std::fs::read_to_string(sysfs.join(format!("cpu{number}/{file}")));
            // Each core is known by the list of its hyperthreads.
            let core = read("topology/thread_siblings_list").unwrap_or_else(|_| number.to_string());
            let sibling = taken.iter().filter(|other| **other == core).count();
            taken.push(core);
            let speed = ["cpu_capacity", "cpufreq/cpuinfo_max_freq"].iter().find_map(|file| read(file).ok());
            let capacity = speed.and_then(|speed| speed.trim().parse().ok()).unwrap_or(0);
            Cpu { number, sibling, capacity }
        })
        .collect();
    cpus.sort_by_key(|cpu| (cpu.sibling, std::cmp::Reverse(cpu.capacity), cpu.number));
    cpus
}

/// Keeps the calling thread on the processors of `numbers`. That it could not be done is no fault: the
/// thread then runs where the system puts it.
pub(super) fn keep_on(numbers: &[usize]) {
    if let Err(error) = affinity::set(numbers) {
        tracing::debug!(%error, ?numbers, "a thread could not be pinned");
    }
}

#[cfg(target_os = "linux")]
mod affinity {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

    /// Processors that the calling thread may use, ascending.
    pub(super) fn allowed() -> Option<Vec<usize>> {
        let mask = sched_getaffinity(None).ok()?;
        Some((0..CpuSet::MAX_CPU).filter(|&number| mask.is_set(number)).collect())
    }

    pub(super) fn set(numbers: &[usize]) -> std::io::Result<()> {
        let mut mask = CpuSet::new();
        for &number in numbers {
            mask.set(number);
        }
        Ok(sched_setaffinity(None, &mask)?)
    }
}

#[cfg(not(target_os = "linux"))]
mod affinity {
    pub(super) fn allowed() -> Option<Vec<usize>> {
        None
    }

    pub(super) fn set(_numbers: &[usize]) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine as sysfs describes it: `(siblings, capacity)` per processor.
    fn machine(cpus: &[(&str, Option<u64>)]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        for (number, (siblings, capacity)) in cpus.iter().enumerate() {
            let topology = sysfs.path().join(format!("cpu{number}/topology"));
            std::fs::create_dir_all(&topology).unwrap();
            std::fs::write(topology.join("thread_siblings_list"), format!("{siblings}\n")).unwrap();
            if let Some(capacity) = capacity {
                std::fs::write(topology.with_file_name("cpu_capacity"), format!("{capacity}\n")).unwrap();
            }
        }
        sysfs
    }

    fn order(allowed: &[usize], sysfs: &tempfile::TempDir) -> Vec<usize> {
        ranked(allowed, sysfs.path()).iter().map(|cpu| cpu.number).collect()
    }

    #[test]
    fn every_core_is_taken_once_before_any_is_taken_twice() {
        let neighbours = machine(&[("0-1", None), ("0-1", None), ("2-3", None), ("2-3", None)]);
        assert_eq!(order(&[0, 1, 2, 3], &neighbours), [0, 2, 1, 3]);
        let halves = machine(&[("0,2", None), ("1,3", None), ("0,2", None), ("1,3", None)]);
        assert_eq!(order(&[0, 1, 2, 3], &halves), [0, 1, 2, 3]);
    }

    #[test]
    fn fast_cores_come_first() {
        let (slow, fast) = (Some(512), Some(1024));
        let hybrid = machine(&[("0", slow), ("1", slow), ("2-3", fast), ("2-3", fast), ("4", fast)]);
        assert_eq!(order(&[0, 1, 2, 3, 4], &hybrid), [2, 4, 0, 1, 3]);
    }

    #[test]
    fn only_allowed_processors_count() {
        let sysfs = machine(&[("0-1", None), ("0-1", None), ("2-3", None), ("2-3", None)]);
        assert_eq!(order(&[1, 3], &sysfs), [1, 3]);
        assert!(ranked(&[1, 3], sysfs.path()).iter().all(|cpu| cpu.sibling == 0));
        assert_eq!(order(&[5, 7], &sysfs), [5, 7], "nothing known of them: each is a core");
    }

    #[test]
    fn one_core_in_five_is_left_to_the_editor() {
        let threads = [1, 2, 4, 5, 6, 8, 9, 64].map(threads_for);
        assert_eq!(threads, [1, 2, 4, 4, 5, 7, 8, 8]);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_stays_on_the_processors_it_is_given() {
        let places = placement(1).unwrap();
        // On a thread of its own: the mask would stay with the test's.
        let kept = std::thread::spawn(move || {
            keep_on(&places);
            (places, affinity::allowed().unwrap())
        });
        let (places, allowed) = kept.join().unwrap();
        assert_eq!(allowed, places);
    }

    #[test]
    fn more_threads_than_processors_are_not_placed() {
        assert_eq!(placement(1 << 20), None);
    }
}
