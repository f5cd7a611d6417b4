//! The kernels that measure a card do what they count.

use redstart_kernels::device::Device;
use redstart_kernels::machine;

use crate::{Case, CheckError, Measured};

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    vec![
        Case { name: "machine repeat".into(), heavy: false, run: Box::new(repeat) },
        Case { name: "machine read".into(), heavy: false, run: Box::new(read) },
        Case { name: "machine copy".into(), heavy: false, run: Box::new(copy) },
        Case { name: "machine multiply".into(), heavy: false, run: Box::new(multiply) },
    ]
}

/// Exactly equal, or not.
fn exact(right: bool) -> Measured {
    Measured { error: if right { 0.0 } else { 1.0 }, tolerance: 0.0 }
}

fn repeat(device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let pattern: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(4 * 37).collect();
    let from = device.allocate(pattern.len(), "a pattern")?;
    let to = device.allocate(4 * 1_003, "its repetitions")?;
    device.upload(&pattern, from)?;
    device.fill(to, 0xff)?;
    machine::repeat(device, from, to)?;
    let mut found = vec![0; to.bytes()];
    device.download(to, &mut found)?;
    device.free(from);
    device.free(to);
    Ok(exact(found.iter().eq(pattern.iter().cycle().take(found.len()))))
}

fn read(device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
    // Two pieces of 32 KB and some bytes that are no whole piece.
    let mut random = fastrand::Rng::with_seed(seed);
    let content: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take((64 << 10) + 512).collect();
    let (from, sink) = (device.allocate(content.len(), "what is read")?, device.allocate(4, "a sum")?);
    device.upload(&content, from)?;
    let bytes = machine::read_memory(device, from, sink)?;
    device.download(sink, &mut [0; 4])?;
    device.free(from);
    device.free(sink);
    Ok(exact(bytes == 64 << 10))
}

fn copy(device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
    // Thirty-three pieces of 32 KB, more than a small device has blocks for, and some bytes that are no whole
    // piece and stay as they are.
    const COPIED: usize = 33 * (32 << 10);
    let mut random = fastrand::Rng::with_seed(seed);
    let mut content = vec![0; COPIED + 512];
    random.fill(&mut content);
    let (from, to) =
        (device.allocate(content.len(), "an original")?, device.allocate(content.len(), "a copy")?);
    device.upload(&content, from)?;
    device.fill(to, 0xff)?;
    let bytes = machine::copy_memory(device, from, to)?;
    let mut found = vec![0; to.bytes()];
    device.download(to, &mut found)?;
    device.free(from);
    device.free(to);
    content[COPIED..].fill(0xff);
    Ok(exact(bytes == 2 * COPIED && found == content))
}

fn multiply(device: &mut dyn Device, _: u64) -> Result<Measured, CheckError> {
    const ROUNDS: u32 = 3;
    // Ones: each of the sums of a thread is 16 a round, and there are 8 times 4 of them. The lanes with an odd
    // number flip the lowest bit of one pair of the sixteen.
    const ONES: u32 = 0x3c00_3c00;
    let sink = device.allocate(machine::multiply_sink_bytes(device), "sums")?;
    device.fill(sink, 0xff)?;
    let operations = machine::multiply(device, ROUNDS, [ONES, ONES], sink)?;
    let mut bytes = vec![0; sink.bytes()];
    device.download(sink, &mut bytes)?;
    device.free(sink);
    let expected = f64::from(ROUNDS * 16 * 8 * 4);
    let error = bytes
        .chunks_exact(4)
        .map(|sum| f64::from(f32::from_le_bytes([sum[0], sum[1], sum[2], sum[3]])))
        .map(|sum| (sum - expected).abs() / expected)
        .fold(0.0, |worst: f64, error| if error > worst || error.is_nan() { error } else { worst });
    let threads = (bytes.len() / 4) as f64;
    // A warp's operations add up to what its 32 threads' sums are made of: 16 products for each of 32 sums.
    if operations != threads * f64::from(ROUNDS) * 32.0 * 16.0 * 2.0 {
        return Err(CheckError::Wrong(format!("{operations} operations were counted")));
    }
    // Half of one pair in sixteen is off by 2^-10 in half of the rows.
    Ok(Measured { error, tolerance: 1e-3 })
}
