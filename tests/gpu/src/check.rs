//! Every kernel against its float64 reference.

use std::fmt::Write as _;
use std::io::Write;

use redstart_kernels::device::Device;
use redstart_kernels_checks::{CheckError, cases};

/// Runs all cases, those of real models' sizes too unless `small`, and writes a line for each and a summary.
/// Returns how many failed.
///
/// # Errors
/// When a line cannot be written.
pub fn run(device: &mut dyn Device, small: bool, seed: u64, out: &mut dyn Write) -> std::io::Result<usize> {
    let (mut failed, mut run) = (0, 0);
    for case in cases().into_iter().filter(|case| !(small && case.heavy)) {
        run += 1;
        let mut line = match (case.run)(device, seed) {
            Ok(measured) if measured.passes() => {
                format!("ok      {:<64} {:.2e} of {:.2e}", case.name, measured.error, measured.tolerance)
            }
            Ok(measured) => {
                failed += 1;
                format!("FAILED  {:<64} {:.2e} of {:.2e}", case.name, measured.error, measured.tolerance)
            }
            Err(error) => {
                failed += 1;
                let reason = match error {
                    CheckError::Device(error) => error.to_string(),
                    CheckError::Wrong(reason) => reason,
                };
                format!("FAILED  {}: {reason}", case.name)
            }
        };
        // Writing to a String cannot fail.
        let _ = writeln!(line);
        out.write_all(line.as_bytes())?;
    }
    writeln!(out, "kernels: {} passed, {failed} failed (seed {seed})", run - failed)?;
    Ok(failed)
}
