//! The shim's own tests: that primitives mean what they say, and that it finds the mistakes it is there for.

#![cfg(unix)]

use bytemuck::Pod;
use half::f16;
use redstart_kernels::device::{Buffer, Device, DeviceError, Launch, MARKS, Mark};
use redstart_kernels_shim::{HostDevice, Options, Order};

const THREADS: u32 = 256;

const ORDERS: [Order; 3] = [Order::Ascending, Order::Descending, Order::Shuffled(7)];

fn device(threads: Order, overlap_eagerly: bool) -> HostDevice {
    HostDevice::new(Options { threads, blocks: threads, overlap_eagerly, ..Options::default() })
}

fn upload<T: Pod>(device: &mut HostDevice, values: &[T]) -> Buffer {
    let bytes = bytemuck::cast_slice(values);
    let buffer = device.allocate(bytes.len(), "test").unwrap();
    device.upload(bytes, buffer).unwrap();
    buffer
}

fn download<T: Pod>(device: &mut HostDevice, buffer: Buffer) -> Vec<T> {
    let mut values = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
    device.download(buffer, bytemuck::cast_slice_mut(&mut values)).unwrap();
    values
}

fn launch(
    device: &mut HostDevice,
    kernel: &'static str,
    grid: u32,
    threads: u32,
    words: &[u64],
) -> Result<(), DeviceError> {
    device.launch(&Launch {
        kernel,
        grid: [grid, 1, 1],
        threads,
        shared_bytes: 4096,
        params: bytemuck::cast_slice(words),
        overlap: true,
    })
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect()
}

fn sums(kernel: &'static str, order: Order) -> Vec<f32> {
    let mut device = device(order, false);
    let from = upload(&mut device, &numbers(3 * THREADS as usize));
    let to = device.allocate(12, "sums").unwrap();
    launch(&mut device, kernel, 3, THREADS, &[from.address(), to.address()]).unwrap();
    download(&mut device, to)
}

#[test]
fn a_missing_barrier_is_seen() {
    let right: Vec<f32> =
        numbers(3 * THREADS as usize).chunks(THREADS as usize).map(|c| c.iter().sum()).collect();
    for order in ORDERS {
        assert_eq!(sums("shim_test_sum", order), right, "{order:?}");
    }
    assert!(ORDERS[..2].iter().any(|order| sums("shim_test_sum_no_barrier", *order) != right));
}

#[test]
fn the_last_block_reduces() {
    for order in ORDERS {
        let mut device = device(order, false);
        let values = numbers(5 * THREADS as usize);
        let from = upload(&mut device, &values);
        let parts = device.allocate(20, "parts").unwrap();
        let to = device.allocate(4, "sum").unwrap();
        let counter = upload(&mut device, &[0u32]);
        for _ in 0..2 {
            let words = [from.address(), parts.address(), to.address(), counter.address()];
            launch(&mut device, "shim_test_split_sum", 5, THREADS, &words).unwrap();
            assert_eq!(download::<f32>(&mut device, to), [values.iter().sum()], "{order:?}");
            assert_eq!(download::<u32>(&mut device, counter), [0]);
            device.fill(to, 0xff).unwrap();
        }
    }
}

fn product(kernel: &'static str, order: Order) -> (Vec<f32>, Vec<f32>) {
    const DEPTH: usize = 64;
    let mut device = device(order, false);
    let a: Vec<f16> = numbers(16 * DEPTH).iter().map(|x| f16::from_f32(x / 8.0)).collect();
    let b: Vec<f16> = numbers(DEPTH * 8 + 5)[5..].iter().map(|x| f16::from_f32(x / 16.0)).collect();
    let mut right = vec![0.0f32; 128];
    for (i, sum) in right.iter_mut().enumerate() {
        *sum = (0..DEPTH).map(|k| a[i / 8 * DEPTH + k].to_f32() * b[k * 8 + i % 8].to_f32()).sum();
    }
    let bits = |halves: &[f16]| halves.iter().map(|half| half.to_bits()).collect::<Vec<_>>();
    let (from_a, from_b) = (upload(&mut device, &bits(&a)), upload(&mut device, &bits(&b)));
    let to = device.allocate(512, "product").unwrap();
    let words = [from_a.address(), from_b.address(), to.address(), DEPTH as u64];
    launch(&mut device, kernel, 1, 32, &words).unwrap();
    (download(&mut device, to), right)
}

#[test]
fn a_tile_product_is_right() {
    for order in ORDERS {
        let (result, right) = product("shim_test_product", order);
        assert_eq!(result, right, "{order:?}");
    }
}

#[test]
fn a_missing_wait_for_copies_is_seen() {
    for order in ORDERS {
        let (result, right) = product("shim_test_product_no_wait", order);
        assert_ne!(result, right, "{order:?}");
    }
}

/// Four launches in a row, each adding one to what the one before it wrote.
fn chain(kernel: &'static str, eagerly: bool, recorded: bool) -> Vec<u32> {
    let mut device = device(Order::Ascending, eagerly);
    let mut from = upload(&mut device, &[7u32; 700]);
    if recorded {
        device.begin_recording().unwrap();
    }
    let buffers: Vec<_> = (0..4).map(|_| device.allocate(2800, "link").unwrap()).collect();
    for &to in &buffers {
        launch(&mut device, kernel, 3, THREADS, &[from.address(), to.address(), 700]).unwrap();
        from = to;
    }
    if recorded {
        let graph = device.end_recording().unwrap();
        assert_eq!(download::<u32>(&mut device, from), [u32::MAX; 700]);
        device.replay(graph).unwrap();
    }
    download(&mut device, from)
}

#[test]
fn a_kernel_that_does_not_wait_is_seen() {
    for recorded in [false, true] {
        assert_eq!(chain("shim_test_add_one", false, recorded), [11; 700]);
        assert_eq!(chain("shim_test_add_one", true, recorded), [11; 700]);
        assert_eq!(chain("shim_test_add_one_early", false, recorded), [11; 700]);
        assert_ne!(chain("shim_test_add_one_early", true, recorded), [11; 700]);
    }
}

/// What the device says of a launch with `words` for parameters after the two buffers.
fn complaint(kernel: &'static str, grid: u32, threads: u32, what: u64) -> String {
    let mut device = HostDevice::default();
    let from = upload(&mut device, &[1u32; 4096]);
    let to = device.allocate(4 * THREADS as usize, "to").unwrap();
    let words = [from.address(), to.address(), what << 32];
    match launch(&mut device, kernel, grid, threads, &words) {
        Ok(()) => String::new(),
        Err(error) => error.to_string(),
    }
}

#[test]
fn mistakes_are_reported_with_their_place() {
    let here = |thread: u32, what: &str| format!("block (0, 0, 0), thread {thread}: {what}");
    let expect = |kernel: &'static str, what: u64, error: &str| {
        assert_eq!(
            complaint(kernel, 2, THREADS, what),
            if error.is_empty() { String::new() } else { format!("kernel {kernel}, {error}") }
        );
    };
    expect("shim_test_barrier_of_some", 256, "");
    expect("shim_test_barrier_of_some", 40, &here(40, "has ended, but thread 32 waits at a block barrier"));
    expect("shim_test_barrier_of_some", 64, &here(64, "has ended, but thread 0 waits at a block barrier"));
    expect("shim_test_shuffle_of_some", 32, "");
    expect(
        "shim_test_shuffle_of_some",
        5,
        &here(5, "waits at a block barrier, but thread 0 waits at a shuffle"),
    );
    expect("shim_test_wide_load", 16, "");
    expect("shim_test_wide_copy", 16, "");
    let unaligned = complaint("shim_test_wide_load", 1, THREADS, 8);
    assert!(
        unaligned.contains("thread 0: test_kernels.cu:") && unaligned.contains("not aligned to 16"),
        "{unaligned}"
    );
    let unaligned = complaint("shim_test_wide_copy", 1, THREADS, 8);
    assert!(unaligned.contains("source") && unaligned.contains("not aligned to 16"), "{unaligned}");
    let left = complaint("shim_test_copy_under_way", 1, THREADS, 0);
    assert!(left.contains("thread 0: ends while asynchronous copies of its are under way"), "{left}");
}

/// What the shim's limits are for: each launch is refused with a sentence.
#[test]
fn launches_that_no_card_would_take_are_refused() {
    let mut device = HostDevice::default();
    let good = Launch {
        kernel: "shim_test_barriers",
        grid: [1, 1, 1],
        threads: 32,
        shared_bytes: 99 << 10,
        params: &[0; 24],
        overlap: false,
    };
    device.launch(&good).unwrap();
    for (launch, error) in [
        (Launch { kernel: "shim_test_nothing", ..good }, "there is no such kernel"),
        (Launch { params: &[0; 16], ..good }, "16 bytes of parameters, it takes 24"),
        (Launch { threads: 1056, ..good }, "1056 threads in a block"),
        (Launch { kernel: "shim_test_products", threads: 288, ..good }, "288 threads in a block"),
        (Launch { threads: 40, ..good }, "40 threads in a block"),
        (Launch { shared_bytes: (99 << 10) + 1, ..good }, "bytes of shared memory, a block can have 101376"),
        (Launch { grid: [1, 0, 1], ..good }, "a grid of [1, 0, 1] blocks"),
        (Launch { grid: [1, 1, 65536], ..good }, "a grid of [1, 1, 65536] blocks"),
    ] {
        let refusal = device.launch(&launch).unwrap_err().to_string();
        assert!(refusal.contains(error), "{refusal}");
    }
}

#[test]
fn memory_is_limited_poisoned_and_guarded() {
    let mut options = Options::default();
    options.properties.memory_bytes = 3 << 20;
    let mut device = HostDevice::new(options);
    let first = device.allocate(2 << 20, "weights").unwrap();
    assert_eq!(first.address() % 256, 0);
    assert!(download::<u8>(&mut device, first).iter().all(|byte| *byte == 0xff));
    let error = device.allocate((1 << 20) + 1, "the cache").unwrap_err();
    assert_eq!(error.to_string(), "not enough GPU memory for the cache: 2 MB wanted, 1 MB free");
    assert_eq!(device.free_memory().unwrap(), 1 << 20);
    device.free(first);
    assert_eq!(device.free_memory().unwrap(), 3 << 20);
    let outside = Buffer::new(first.address(), 1);
    assert!(device.upload(&[1], outside).unwrap_err().to_string().contains("not memory of this device"));
    let small = device.allocate(3, "three bytes").unwrap();
    assert!(device.upload(&[0; 4], small).is_err());
    assert!(device.fill(Buffer::new(small.address(), 4), 0).is_err());
}

#[test]
fn marks_last_for_as_many_more() {
    let mut device = HostDevice::default();
    let first = device.mark().unwrap();
    let marks: Vec<_> = (0..MARKS - 1).map(|_| device.mark().unwrap()).collect();
    device.wait(first, true).unwrap();
    assert!(device.elapsed_ms(first, marks[5]).unwrap() >= 0.0);
    device.mark().unwrap();
    assert!(device.wait(first, true).is_err());
    device.wait(marks[0], false).unwrap();
    assert!(device.wait(Mark(1000), false).is_err());
}

#[test]
fn copies_do_not_mix_with_a_recording() {
    let mut device = HostDevice::default();
    let buffer = upload(&mut device, &[1u32]);
    device.begin_recording().unwrap();
    assert!(device.fill(buffer, 0).is_err());
    assert!(device.begin_recording().is_err());
    device.end_recording().unwrap();
    assert!(device.end_recording().is_err());
    assert_eq!(download::<u32>(&mut device, buffer), [1]);
}

/// Kernels that were started early and never finished must not disturb what comes after them.
#[test]
fn a_device_can_go_while_launches_are_held() {
    for _ in 0..3 {
        let mut device = device(Order::Ascending, true);
        let from = upload(&mut device, &[7u32; 700]);
        let to = device.allocate(2800, "to").unwrap();
        launch(&mut device, "shim_test_add_one", 3, THREADS, &[from.address(), to.address(), 700]).unwrap();
    }
    assert_eq!(chain("shim_test_add_one", true, false), [11; 700]);
}

#[test]
fn a_failed_launch_leaves_the_device_usable() {
    let mut device = HostDevice::default();
    let from = upload(&mut device, &[7u32; 256]);
    let to = device.allocate(1024, "to").unwrap();
    let words = |what: u64| [from.address(), to.address(), 256 | what << 32];
    for what in [40, 100] {
        launch(&mut device, "shim_test_barrier_of_some", 2, THREADS, &words(what)).unwrap_err();
        launch(&mut device, "shim_test_add_one", 1, THREADS, &words(0)).unwrap();
        assert_eq!(download::<u32>(&mut device, to), [8; 256]);
    }
}

/// The half nearest to a number, found among all of them; of two, the even one; beyond the last, infinity.
struct Halves(Vec<f64>);

impl Halves {
    fn new() -> Self {
        Self((0..0x7c00).map(|bits| f16::from_bits(bits).to_f64()).collect())
    }

    fn nearest(&self, number: f64) -> u16 {
        if number.is_nan() {
            return 0x7fff;
        }
        let sign = if number.is_sign_negative() { 0x8000 } else { 0 };
        let size = number.abs();
        let above = self.0.partition_point(|half| *half < size);
        let value = |bits: usize| self.0.get(bits).copied().unwrap_or(65536.0);
        let bits = match above.checked_sub(1) {
            None => above,
            Some(below) => match (size - value(below)).total_cmp(&(value(above) - size)) {
                std::cmp::Ordering::Less => below,
                std::cmp::Ordering::Greater => above,
                std::cmp::Ordering::Equal => below + below % 2,
            },
        };
        sign | bits.min(0x7c00) as u16
    }
}

/// Every half there is, and random words, with the halves' sums and products in double precision as the
/// reference: exact, but for sums with a part too small to matter.
#[test]
fn words_are_turned_as_the_gpu_turns_them() {
    const COUNT: usize = 1 << 17;
    let halves = Halves::new();
    let mut random = fastrand::Rng::with_seed(11);
    let words: Vec<u32> = (0..3 * COUNT)
        .map(|i| match i / 3 {
            half if half < 1 << 16 && i % 3 == 0 => half as u32 | random.u32(..) << 16,
            // Floats around the halves: exact, half way between two, and next to half way.
            other if other < 3 << 15 => {
                let half = f16::from_bits(random.u16(..)).to_f32().to_bits();
                half.wrapping_add(0x1000 * random.u32(0..3)).wrapping_add(random.u32(0..3)).wrapping_sub(1)
            }
            _ => random.u32(..),
        })
        .collect();
    let mut device = HostDevice::default();
    let from = upload(&mut device, &words);
    let to = device.allocate(COUNT * 40, "results").unwrap();
    launch(&mut device, "shim_test_words", 8, THREADS, &[from.address(), to.address(), COUNT as u64])
        .unwrap();
    let results: Vec<u32> = download(&mut device, to);
    let half = |word: u32, shift: u32| f16::from_bits((word >> shift) as u16).to_f64();
    let pair =
        |of: &dyn Fn(u32) -> f64| u32::from(halves.nearest(of(0))) | u32::from(halves.nearest(of(16))) << 16;
    for (words, results) in words.chunks(3).zip(results.chunks(10)) {
        let (a, b, c) = (words[0], words[1], words[2]);
        assert_eq!(results[0], pair(&|at| half(a, at) + half(b, at)), "{a:x} + {b:x}");
        assert_eq!(results[1], pair(&|at| half(a, at) - half(b, at)), "{a:x} - {b:x}");
        assert_eq!(results[2], pair(&|at| half(a, at) * half(b, at)), "{a:x} * {b:x}");
        assert_eq!(results[3], pair(&|at| half(a, at) * half(b, at) + half(c, at)), "{a:x} * {b:x} + {c:x}");
        let float = f32::from_bits(a);
        assert_eq!(results[4], u32::from(halves.nearest(f64::from(float))), "{float:e}");
        // Of NaN and a number, the larger is the number: NaN becomes the smallest half.
        let clamp = |bits: u32| match f64::from(f32::from_bits(bits)) {
            nan if nan.is_nan() => -65504.0,
            number => number.clamp(-65504.0, 65504.0),
        };
        let clamped = u32::from(halves.nearest(clamp(a))) | u32::from(halves.nearest(clamp(b))) << 16;
        assert_eq!(results[5], clamped, "{a:x}, {b:x}");
        let (exact, ours) = (f16::from_bits(a as u16).to_f32(), f32::from_bits(results[6]));
        assert!(exact.to_bits() == ours.to_bits() || exact.is_nan() && ours.is_nan(), "{a:x}: {ours:e}");
        assert_eq!(results[7], a & b | !a & c);
        let [a0, _, a2, _] = a.to_le_bytes();
        assert_eq!(results[8], {
            let [b0, _, b2, _] = b.to_le_bytes();
            // Selectors 0, 4, 2, 6 from the lowest byte on.
            u32::from_le_bytes([a0, b0, a2, b2])
        });
        let (exact, ours) = (f64::from(float).exp2(), f64::from(f32::from_bits(results[9])));
        let good = if exact.is_nan() {
            ours.is_nan()
        } else if exact < f64::from(f32::MIN_POSITIVE) {
            ours == 0.0
        } else if exact >= 2f64.powi(128) {
            ours == f64::INFINITY
        } else {
            (ours - exact).abs() <= exact * f64::from(f32::EPSILON)
        };
        assert!(good, "2^{float:e} = {exact:e}, not {ours:e}");
    }
}

#[test]
fn collectives_reach_all_lanes() {
    for order in ORDERS {
        let mut device = device(order, false);
        let words: Vec<u32> = (0..32).map(|i| i * i + i / 3).collect();
        let from = upload(&mut device, &words);
        let to = device.allocate(3 * 128, "to").unwrap();
        launch(&mut device, "shim_test_collectives", 1, 32, &[from.address(), to.address(), 0]).unwrap();
        let results: Vec<u32> = download(&mut device, to);
        let odd = (0..32).map(|i| (words[i] % 2) << i).sum();
        for i in 0..32 {
            assert_eq!(results[i], odd);
            assert_eq!(results[32 + i], 0);
            assert_eq!(results[64 + i], words[words[(i + 1) % 32] as usize % 32]);
        }
        let words: Vec<u32> = (0..THREADS).map(|i| i * 16_000_000).collect();
        let from = upload(&mut device, &words);
        launch(&mut device, "shim_test_add_shared", 1, THREADS, &[from.address(), to.address(), 0]).unwrap();
        let sum = words.iter().fold(0u32, |sum, word| sum.wrapping_add(*word));
        assert_eq!(download::<u32>(&mut device, to)[..2], [sum, sum]);
    }
}

/// Runs as a process of its own under the test below.
#[cfg(sanitized)]
#[test]
#[ignore = "with AddressSanitizer it ends the process"]
fn reads_behind_a_buffer() {
    let mut device = HostDevice::default();
    let from = upload(&mut device, &[1u32; 17]);
    let to = device.allocate(4, "to").unwrap();
    launch(&mut device, "shim_test_read_at", 1, 32, &[from.address(), to.address(), 17 << 32]).unwrap();
}

#[cfg(sanitized)]
#[test]
fn an_access_behind_a_buffer_is_seen() {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "reads_behind_a_buffer", "--nocapture"])
        .output()
        .unwrap();
    let report = String::from_utf8_lossy(&child.stderr);
    assert!(!child.status.success());
    assert!(report.contains("heap-buffer-overflow") && report.contains("test_kernels.cu"), "{report}");
}
