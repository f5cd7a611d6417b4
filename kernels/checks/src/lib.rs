//! Every kernel against a float64 reference, on whatever [`Device`] is at hand: the host shim in the tests,
//! a card in the bundle for GPU machines.
//!
//! A [`Case`] draws fresh random inputs from a seed, poisons the outputs, runs one operation and compares.

pub mod attention;
pub mod elementwise;
pub mod linear;
pub mod machine;
pub mod sampling;
mod scope;

use redstart_kernels::device::{Device, DeviceError};

/// One operation on one shape.
pub struct Case {
    /// Family, variant and shape, for example `linear int4 g128 3x512x96 silu`.
    pub name: String,
    /// Whether it is a real model's size, too large for the host shim.
    pub heavy: bool,
    /// Runs it with inputs drawn from the seed.
    pub run: Box<Run>,
}

/// What runs a case on a device, with inputs drawn from a seed.
pub type Run = dyn Fn(&mut dyn Device, u64) -> Result<Measured, CheckError> + Send + Sync;

/// How far a result was from the reference.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// The error, in the case's own measure (as a rule the norm of the difference over the norm of the
    /// reference); NaN where an output was NaN or not written.
    pub error: f64,
    /// What it may be.
    pub tolerance: f64,
}

impl Measured {
    /// Whether the result is good. NaN is not.
    pub fn passes(&self) -> bool {
        self.error <= self.tolerance
    }
}

/// Why a case could not be measured, or what is wrong beyond an error's size.
#[derive(Debug)]
pub enum CheckError {
    /// The device failed.
    Device(DeviceError),
    /// Something that must hold exactly does not.
    Wrong(String),
}

impl From<DeviceError> for CheckError {
    fn from(error: DeviceError) -> Self {
        Self::Device(error)
    }
}

/// All cases of all families.
pub fn cases() -> Vec<Case> {
    let mut cases = linear::cases();
    cases.extend(attention::cases());
    cases.extend(elementwise::cases());
    cases.extend(sampling::cases());
    cases.extend(machine::cases());
    cases
}
