//! What the card can do at most.

use redstart_kernels::device::{Device, DeviceError};
use redstart_kernels::machine;

use crate::timing::median_us;

/// A card's measured rates.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Bytes read per second, every byte once.
    pub read: f64,
    /// Operations per second of 16-bit matrix products in registers, a multiplication and an addition being two.
    pub matrix: f64,
}

/// Measures both: reading `bytes` of memory, many times what the caches hold, and `rounds` of products.
///
/// # Errors
/// When the memory cannot be had or the device failed.
pub fn measure(device: &mut dyn Device, bytes: usize, rounds: u32) -> Result<Rates, DeviceError> {
    let memory = device.allocate(bytes, "measuring the memory's bandwidth")?;
    let sink = device.allocate(machine::multiply_sink_bytes(device).max(256), "measuring")?;
    let mut random = fastrand::Rng::with_seed(1);
    let pattern: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(1 << 20).collect();
    let from = device.allocate(pattern.len(), "measuring")?;
    device.upload(&pattern, from)?;
    machine::repeat(device, from, memory)?;

    let mut read_bytes = 0;
    let read_us = median_us(device, |device| {
        read_bytes = machine::read_memory(device, memory, sink.slice(0, 4))?;
        Ok(())
    })?;
    let mut operations = 0.0;
    // Halves near one, of both signs: zeros would draw less power than real data does.
    let multiply_us = median_us(device, |device| {
        operations = machine::multiply(device, rounds, [0x3c00_bb80, 0xba00_3b00], sink)?;
        Ok(())
    })?;
    for buffer in [memory, sink, from] {
        device.free(buffer);
    }
    Ok(Rates { read: read_bytes as f64 / read_us * 1e6, matrix: operations / multiply_us * 1e6 })
}
