//! Every kernel against its float64 reference, on the host shim: in both orders of threads and blocks, and
//! with every launch started as early as a card could start it.
//!
//! One test a family and way of running, so that the test runner spreads them over the cores. Seeds are
//! fixed: a failure names its own.

#![cfg(unix)]

use redstart_kernels_checks::{Case, attention, elementwise, linear, machine, sampling};
use redstart_kernels_shim::{HostDevice, Options, Order};

/// Runs all small cases and lists what failed. Each gets a fresh device, so that no case leans on what
/// another left in memory.
#[track_caller]
fn check(cases: Vec<Case>, options: &Options, seeds: &[u64]) {
    let mut failures = Vec::new();
    let mut runs = 0;
    for case in cases.iter().filter(|case| !case.heavy) {
        for &seed in seeds {
            runs += 1;
            let mut device = HostDevice::new(options.clone());
            match (case.run)(&mut device, seed) {
                Ok(measured) if measured.passes() => {}
                Ok(measured) => failures.push(format!("{}, seed {seed}: {measured:?}", case.name)),
                Err(error) => failures.push(format!("{}, seed {seed}: {error:?}", case.name)),
            }
        }
    }
    assert!(runs > 0, "no case");
    assert!(
        failures.is_empty(),
        "{} of {runs} runs failed ({:?}, {:?}, overlap_eagerly {}):\n{}",
        failures.len(),
        options.threads,
        options.blocks,
        options.overlap_eagerly,
        failures.join("\n")
    );
}

fn ascending(cases: Vec<Case>) {
    check(cases, &Options::default(), &[1, 2]);
}

fn descending(cases: Vec<Case>) {
    let options = Options { threads: Order::Descending, blocks: Order::Descending, ..Options::default() };
    check(cases, &options, &[3]);
}

fn overlapping(cases: Vec<Case>) {
    let options = Options {
        threads: Order::Shuffled(5),
        blocks: Order::Shuffled(5),
        overlap_eagerly: true,
        ..Options::default()
    };
    check(cases, &options, &[4]);
}

#[test]
fn linear_ascending() {
    ascending(linear::cases());
}

#[test]
fn linear_descending() {
    descending(linear::cases());
}

#[test]
fn linear_overlapping() {
    overlapping(linear::cases());
}

#[test]
fn attention_ascending() {
    ascending(attention::cases());
}

#[test]
fn attention_descending() {
    descending(attention::cases());
}

#[test]
fn attention_overlapping() {
    overlapping(attention::cases());
}

#[test]
fn elementwise_ascending() {
    ascending(elementwise::cases());
}

#[test]
fn elementwise_descending() {
    descending(elementwise::cases());
}

#[test]
fn elementwise_overlapping() {
    overlapping(elementwise::cases());
}

#[test]
fn sampling_ascending() {
    ascending(sampling::cases());
}

#[test]
fn sampling_descending() {
    descending(sampling::cases());
}

#[test]
fn sampling_overlapping() {
    overlapping(sampling::cases());
}

/// Real models' shapes, once: minutes each, so by hand (see `kernels/README.md`). A line for each case, as it ends.
#[expect(clippy::print_stderr, reason = "whoever waits for minutes wants to see what is done")]
#[track_caller]
fn heavy(cases: Vec<Case>) {
    let mut failures = Vec::new();
    for case in cases.iter().filter(|case| case.heavy) {
        let started = std::time::Instant::now();
        let outcome = (case.run)(&mut HostDevice::new(Options::default()), 1);
        let line = format!("{}: {outcome:?}, {:.0} s", case.name, started.elapsed().as_secs_f64());
        eprintln!("{line}");
        if !outcome.is_ok_and(|measured| measured.passes()) {
            failures.push(line);
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
#[ignore = "minutes: cargo test -p redstart-kernels-shim --release --test checks -- --ignored --nocapture"]
fn linear_heavy() {
    heavy(linear::cases());
}

#[test]
#[ignore = "minutes: cargo test -p redstart-kernels-shim --release --test checks -- --ignored --nocapture"]
fn attention_heavy() {
    heavy(attention::cases());
}

#[test]
#[ignore = "minutes: cargo test -p redstart-kernels-shim --release --test checks -- --ignored --nocapture"]
fn elementwise_heavy() {
    heavy(elementwise::cases());
}

#[test]
#[ignore = "minutes: cargo test -p redstart-kernels-shim --release --test checks -- --ignored --nocapture"]
fn sampling_heavy() {
    heavy(sampling::cases());
}

#[test]
fn machine_in_every_order() {
    ascending(machine::cases());
    descending(machine::cases());
    overlapping(machine::cases());
}
