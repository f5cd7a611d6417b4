//! The launch interface: device memory, copies, launches and recorded graphs.
//!
//! One [`Device`] is one stream of work on one card; everything on it happens in the order of the calls.
//! Whoever owns it is alone with it. Memory belongs to the device and goes when the device goes.

use bytemuck::Pod;

/// What a device is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceProperties {
    /// The card's name.
    pub name: String,
    /// Compute capability, major and minor.
    pub compute_capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Shared memory in bytes that one block can ask for.
    pub shared_memory_per_block: usize,
    /// Shared memory in bytes of one multiprocessor.
    pub shared_memory_per_multiprocessor: usize,
    /// Bytes of the second-level cache.
    pub l2_bytes: usize,
    /// Device memory in bytes, all of it.
    pub memory_bytes: u64,
}

/// A range of device memory. A name, not an owner: copying it copies nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    address: u64,
    bytes: usize,
}

impl Buffer {
    /// For implementations of [`Device`]: memory they allocated.
    pub fn new(address: u64, bytes: usize) -> Self {
        Self { address, bytes }
    }

    /// Its first byte, as kernels see it.
    pub fn address(self) -> u64 {
        self.address
    }

    /// Its length.
    pub fn bytes(self) -> usize {
        self.bytes
    }

    /// `bytes` bytes of it from `offset` on.
    ///
    /// # Panics
    /// When they are not all inside.
    #[must_use]
    pub fn slice(self, offset: usize, bytes: usize) -> Self {
        assert!(
            offset.checked_add(bytes).is_some_and(|end| end <= self.bytes),
            "bytes {offset}+{bytes} of a buffer of {}",
            self.bytes
        );
        Self { address: self.address + offset as u64, bytes }
    }
}

/// Page-locked host memory that the device copies from and to.
pub trait Pinned: Send {
    /// Its bytes. Only while no copy that was started on it is under way.
    fn bytes(&mut self) -> &mut [u8];
}

/// A point in the device's stream of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark(pub u32);

/// Marks that are good at a time.
pub const MARKS: u32 = 64;

/// A recorded sequence of launches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Graph(pub u32);

/// One kernel launch.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// The kernel's name in the C++ sources.
    pub kernel: &'static str,
    /// Blocks in x, y and z.
    pub grid: [u32; 3],
    /// Threads in a block; a multiple of 32.
    pub threads: u32,
    /// Dynamic shared memory in bytes.
    pub shared_bytes: usize,
    /// The kernel's parameter block; [`Launch::params`] makes it from the struct.
    pub params: &'a [u8],
    /// Whether the kernel may start before the one before it has ended: it then calls
    /// `wait_for_previous_kernel` before it touches anything that one writes. Every kernel here does.
    pub overlap: bool,
}

impl Launch<'_> {
    /// A parameter block as bytes. The struct is `repr(C)` and has the fields of its C++ twin, padding
    /// spelled out.
    pub fn params<P: Pod>(params: &P) -> &[u8] {
        bytemuck::bytes_of(params)
    }
}

/// Why a device did not do what it was told.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// An allocation does not fit.
    #[error("not enough GPU memory for {what}: {wanted_mb} MB wanted, {free_mb} MB free")]
    OutOfMemory {
        /// What it was for.
        what: String,
        /// Megabytes asked for.
        wanted_mb: u64,
        /// Megabytes free at that moment.
        free_mb: u64,
    },
    /// The card does not answer any more; everything on it is lost.
    #[error("the GPU was lost ({0}); its driver or the machine must be looked at")]
    Lost(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// A card, or what stands in for one.
pub trait Device: Send {
    /// What it is.
    fn properties(&self) -> &DeviceProperties;

    /// Bytes of device memory that are free now.
    ///
    /// # Errors
    /// When the device does not answer.
    fn free_memory(&mut self) -> Result<u64, DeviceError>;

    /// Takes memory, aligned to 256 bytes, its contents undefined. `what` is for the error message.
    ///
    /// # Errors
    /// When there is not enough.
    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, DeviceError>;

    /// Gives a whole allocation back, after what was started on it.
    fn free(&mut self, buffer: Buffer);

    /// Takes page-locked host memory, zeroed.
    ///
    /// # Errors
    /// When the system does not give it.
    fn allocate_pinned(&mut self, bytes: usize) -> Result<Box<dyn Pinned>, DeviceError>;

    /// Copies `bytes` to the front of `to`; returns when `bytes` may be changed. For loading: a step
    /// copies from pinned memory.
    ///
    /// # Errors
    /// When the device failed.
    fn upload(&mut self, bytes: &[u8], to: Buffer) -> Result<(), DeviceError>;

    /// Copies the front of `from` into `bytes`, after all that was started before.
    ///
    /// # Errors
    /// When the device failed.
    fn download(&mut self, from: Buffer, bytes: &mut [u8]) -> Result<(), DeviceError>;

    /// Starts a copy of the first `bytes` bytes of `from` to the front of `to`.
    ///
    /// # Errors
    /// When the device failed.
    fn copy_in(&mut self, from: &mut dyn Pinned, bytes: usize, to: Buffer) -> Result<(), DeviceError>;

    /// Starts a copy of all of `from` to the front of `to`.
    ///
    /// # Errors
    /// When the device failed.
    fn copy_out(&mut self, from: Buffer, to: &mut dyn Pinned) -> Result<(), DeviceError>;

    /// Sets every byte of `buffer`.
    ///
    /// # Errors
    /// When the device failed.
    fn fill(&mut self, buffer: Buffer, byte: u8) -> Result<(), DeviceError>;

    /// Launches a kernel, or adds it to the recording under way.
    ///
    /// # Errors
    /// When there is no such kernel or it cannot be launched like that. Faults of a running kernel show
    /// up at a later call.
    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), DeviceError>;

    /// Starts recording: launches are noted and not run, until [`end_recording`](Self::end_recording).
    ///
    /// # Errors
    /// When the device failed.
    fn begin_recording(&mut self) -> Result<(), DeviceError>;

    /// Ends the recording and makes it ready to run.
    ///
    /// # Errors
    /// When the device failed.
    fn end_recording(&mut self) -> Result<Graph, DeviceError>;

    /// Runs a recording.
    ///
    /// # Errors
    /// When the device failed.
    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError>;

    /// A mark after all that was started so far. It is good until [`MARKS`] more were made.
    ///
    /// # Errors
    /// When the device failed.
    fn mark(&mut self) -> Result<Mark, DeviceError>;

    /// Waits until the work before the mark is done. `soon`: it will take less than a few milliseconds,
    /// and waking up late costs more than a busy core.
    ///
    /// # Errors
    /// What went wrong with that work.
    fn wait(&mut self, mark: Mark, soon: bool) -> Result<(), DeviceError>;

    /// Milliseconds of device time between two marks, both of which have been waited for or precede one that has.
    ///
    /// # Errors
    /// When the device failed.
    fn elapsed_ms(&mut self, from: Mark, to: Mark) -> Result<f32, DeviceError>;
}
