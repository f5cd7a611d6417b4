//! What the card itself can do: the rates that the other kernels are held against.

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device, DeviceError, Launch};

const THREADS: u32 = 256;

/// Bytes that a block reads or copies at a time.
const PIECE: usize = THREADS as usize * 16 * 8;

/// How often a recording is run for a time.
const RUNS: usize = 21;

/// A card's measured rates.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes read per second, every byte once.
    pub read: f64,
    /// Bytes per second of a copy within the card's memory: those that are read and those that are written.
    pub copy: f64,
    /// Operations per second of 16-bit matrix products in registers, a multiplication and an addition being two.
    pub matrix: f64,
}

/// How much [`measure`] does.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Bytes that are read, and half of them copied to the other half: many times what the caches hold.
    pub bytes: usize,
    /// Rounds of products.
    pub rounds: u32,
}

impl Effort {
    /// For a real card: some milliseconds each.
    pub const CARD: Self = Self { bytes: 2 << 30, rounds: 20_000 };
}

/// Measures what the card can do at most.
///
/// # Errors
/// When the memory cannot be had or the device failed.
pub fn measure(device: &mut dyn Device, effort: Effort) -> Result<Rates, DeviceError> {
    // Any numbers that are not all alike: zeros would draw less power than real data does.
    let pattern: Vec<u8> = (0..1u32 << 16).flat_map(|i| i.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    let from = device.allocate(pattern.len(), "measuring the card")?;
    let memory = device.allocate(effort.bytes, "measuring the memory's bandwidth")?;
    let sink = device.allocate(multiply_sink_bytes(device).max(4), "measuring the card")?;
    device.upload(&pattern, from)?;
    repeat(device, from, memory)?;

    let mut read_bytes = 0;
    let read_us = median_us(device, |device| {
        read_bytes = read_memory(device, memory, sink.slice(0, 4))?;
        Ok(())
    })?;
    let half = effort.bytes / 2 / PIECE * PIECE;
    let mut copied_bytes = 0;
    let copy_us = median_us(device, |device| {
        copied_bytes = copy_memory(device, memory.slice(0, half), memory.slice(half, half))?;
        Ok(())
    })?;
    let mut operations = 0.0;
    // Halves near one, of both signs.
    let multiply_us = median_us(device, |device| {
        operations = multiply(device, effort.rounds, [0x3c00_bb80, 0xba00_3b00], sink)?;
        Ok(())
    })?;
    for buffer in [memory, sink, from] {
        device.free(buffer);
    }
    Ok(Rates {
        read: read_bytes as f64 / read_us * 1e6,
        copy: copied_bytes as f64 / copy_us * 1e6,
        matrix: operations / multiply_us * 1e6,
    })
}

/// Median time in microseconds of what `work` launches, run as one recording.
///
/// # Errors
/// When the device failed.
pub fn median_us(
    device: &mut dyn Device,
    work: impl FnOnce(&mut dyn Device) -> Result<(), DeviceError>,
) -> Result<f64, DeviceError> {
    device.begin_recording()?;
    let outcome = work(device);
    let graph = device.end_recording()?;
    outcome?;
    // Clocks rise and caches fill before anything counts.
    for _ in 0..3 {
        device.replay(graph)?;
    }
    let mut times = Vec::with_capacity(RUNS);
    for _ in 0..RUNS {
        let from = device.mark()?;
        device.replay(graph)?;
        let to = device.mark()?;
        device.wait(to, true)?;
        times.push(f64::from(device.elapsed_ms(from, to)?) * 1e3);
    }
    times.sort_by(f64::total_cmp);
    Ok(times[RUNS / 2])
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ReadMemoryParams {
    from: u64,
    sink: u64,
    bytes: u64,
    written: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct CopyMemoryParams {
    from: u64,
    to: u64,
    bytes: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct MultiplyParams {
    sink: u64,
    rounds: u32,
    a: u32,
    b: u32,
    padding: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RepeatParams {
    from: u64,
    to: u64,
    period: u64,
    words: u64,
}

/// Reads the whole pieces of 32 KB in `from` once; returns how many bytes that are. `sink` is one word that
/// is rarely written.
///
/// # Errors
/// When the device failed.
pub fn read_memory(device: &mut dyn Device, from: Buffer, sink: Buffer) -> Result<usize, DeviceError> {
    let bytes = from.bytes() / PIECE * PIECE;
    let params =
        ReadMemoryParams { from: from.address(), sink: sink.address(), bytes: bytes as u64, written: 1 };
    let blocks = streaming_blocks(device, bytes);
    device.launch(&Launch {
        kernel: "machine_read_memory",
        grid: [blocks, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: false,
    })?;
    Ok(bytes)
}

/// Copies the whole pieces of 32 KB in `from` to the front of `to`; returns how many bytes are read and written
/// together.
///
/// # Errors
/// When the device failed.
pub fn copy_memory(device: &mut dyn Device, from: Buffer, to: Buffer) -> Result<usize, DeviceError> {
    let bytes = from.bytes() / PIECE * PIECE;
    assert!(to.bytes() >= bytes, "there is no room for the copy");
    let params = CopyMemoryParams { from: from.address(), to: to.address(), bytes: bytes as u64 };
    let blocks = streaming_blocks(device, bytes);
    device.launch(&Launch {
        kernel: "machine_copy_memory",
        grid: [blocks, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: false,
    })?;
    Ok(2 * bytes)
}

/// Blocks that stream through so many bytes: several for a multiprocessor, none without a piece.
fn streaming_blocks(device: &dyn Device, bytes: usize) -> u32 {
    (8 * device.properties().multiprocessors).min((bytes / PIECE) as u32).max(1)
}

/// Bytes of `sink` that [`multiply`] wants.
pub fn multiply_sink_bytes(device: &dyn Device) -> usize {
    2 * device.properties().multiprocessors as usize * THREADS as usize * size_of::<f32>()
}

/// Multiplies 16-bit matrices in registers, on the whole card; returns the number of operations (a
/// multiplication and an addition are two). `operands` are two pairs of halves as bits.
///
/// # Errors
/// When the device failed.
pub fn multiply(
    device: &mut dyn Device,
    rounds: u32,
    operands: [u32; 2],
    sink: Buffer,
) -> Result<f64, DeviceError> {
    const ACCUMULATORS: f64 = 8.0;
    const OPERATIONS: f64 = 2.0 * 16.0 * 8.0 * 16.0;
    assert!(sink.bytes() >= multiply_sink_bytes(device), "the sink is too small");
    let blocks = 2 * device.properties().multiprocessors;
    let [a, b] = operands;
    let params = MultiplyParams { sink: sink.address(), rounds, a, b, padding: 0 };
    device.launch(&Launch {
        kernel: "machine_multiply",
        grid: [blocks, 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: false,
    })?;
    let warps = f64::from(blocks * THREADS / 32);
    Ok(warps * f64::from(rounds) * ACCUMULATORS * OPERATIONS)
}

/// Fills `to` with the bytes of `from`, over and over. Both are whole words.
///
/// # Errors
/// When the device failed.
pub fn repeat(device: &mut dyn Device, from: Buffer, to: Buffer) -> Result<(), DeviceError> {
    assert!(
        from.bytes() >= 4 && from.bytes().is_multiple_of(4) && to.bytes().is_multiple_of(4),
        "whole words"
    );
    let words = to.bytes() as u64 / 4;
    let params =
        RepeatParams { from: from.address(), to: to.address(), period: from.bytes() as u64 / 4, words };
    let blocks = (16 * device.properties().multiprocessors).min(words.div_ceil(u64::from(THREADS)) as u32);
    device.launch(&Launch {
        kernel: "machine_repeat",
        grid: [blocks.max(1), 1, 1],
        threads: THREADS,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: true,
    })
}
