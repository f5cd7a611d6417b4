//! The shim's own tests: that primitives mean what they say, and that it finds the mistakes it is there for.

use std::time::Instant;

use bytemuck::Pod;
use half::f16;
use redstart_kernels::device::{Buffer, Device, DeviceError, Launch};
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

#[test]
fn barriers_and_products_are_fast() {
    let mut device = HostDevice::default();
    let to = device.allocate(1024, "to").unwrap();
    for (kernel, threads) in [("shim_test_barriers", 256), ("shim_test_products", 32)] {
        launch(&mut device, kernel, 1, threads, &[0, to.address(), 1 << 32]).unwrap();
        let start = Instant::now();
        launch(&mut device, kernel, 1, threads, &[0, to.address(), 10_000 << 32]).unwrap();
        let micros = start.elapsed().as_secs_f64() * 1e6 / 10_000.0;
        println!("{kernel}: {micros:.2} us");
    }
}
