//! What cases have in common: memory with numbers in it, random numbers, errors.

use bytemuck::Pod;
use half::f16;
use redstart_kernels::device::{Buffer, Device, DeviceError};

/// A device, and memory on it that goes when the case is over.
pub(crate) struct Scope<'a> {
    /// The device.
    pub(crate) device: &'a mut dyn Device,
    buffers: Vec<Buffer>,
}

impl<'a> Scope<'a> {
    pub(crate) fn new(device: &'a mut dyn Device) -> Self {
        Self { device, buffers: Vec::new() }
    }

    /// Memory full of 0xff bytes: NaN as a number of any width.
    pub(crate) fn poisoned(&mut self, bytes: usize) -> Result<Buffer, DeviceError> {
        let buffer = self.device.allocate(bytes.max(1), "a check")?;
        self.buffers.push(buffer);
        self.device.fill(buffer, 0xff)?;
        Ok(buffer)
    }

    /// Memory with these values.
    pub(crate) fn upload<T: Pod>(&mut self, values: &[T]) -> Result<Buffer, DeviceError> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let buffer = self.device.allocate(bytes.len().max(1), "a check")?;
        self.buffers.push(buffer);
        self.device.upload(bytes, buffer)?;
        Ok(buffer)
    }

    /// All of a buffer, as values.
    pub(crate) fn download<T: Pod>(&mut self, buffer: Buffer) -> Result<Vec<T>, DeviceError> {
        let mut values = vec![T::zeroed(); buffer.bytes() / size_of::<T>()];
        self.device.download(buffer, bytemuck::cast_slice_mut(&mut values))?;
        Ok(values)
    }
}

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        for buffer in self.buffers.drain(..) {
            self.device.free(buffer);
        }
    }
}

/// A number that is roughly normally distributed, with this deviation.
pub(crate) fn normal(random: &mut fastrand::Rng, deviation: f32) -> f32 {
    let sum: f32 = (0..6).map(|_| random.f32() - 0.5).sum();
    sum * std::f32::consts::SQRT_2 * deviation
}

/// Half-precision numbers, as stored, of these.
pub(crate) fn halves(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&value| f16::from_f32(value).to_bits()).collect()
}

/// What a stored half stands for.
pub(crate) fn half_value(bits: u16) -> f64 {
    f16::from_bits(bits).to_f64()
}

/// The norm of the difference over the norm of the reference; NaN when there is one in `got`.
pub(crate) fn relative_error(got: impl IntoIterator<Item = f64>, reference: &[f64]) -> f64 {
    let (mut difference, mut norm, mut count) = (0.0, 0.0, 0);
    for (got, &want) in got.into_iter().zip(reference) {
        difference += (got - want) * (got - want);
        norm += want * want;
        count += 1;
    }
    assert_eq!(count, reference.len(), "numbers compared");
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}

/// The larger of two errors, NaN if one is.
pub(crate) fn worse(a: f64, b: f64) -> f64 {
    if a.is_nan() || a > b { a } else { b }
}
