//! Times on the device: launches recorded once and run again and again.

use redstart_kernels::device::{Device, DeviceError};

/// How often a recording is run for a time.
const RUNS: usize = 21;

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
