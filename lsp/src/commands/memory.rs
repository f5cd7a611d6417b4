//! What memory this process takes, where the system tells (Linux).

/// Resident memory now, in MB of 2^20 bytes.
pub(super) fn resident_mb() -> Option<f64> {
    status_mb("VmRSS:")
}

/// The most that was resident since the start, in MB of 2^20 bytes.
pub(super) fn peak_mb() -> Option<f64> {
    status_mb("VmHWM:")
}

fn status_mb(field: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(field))?;
    let kilobytes: f64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes / 1024.0)
}
