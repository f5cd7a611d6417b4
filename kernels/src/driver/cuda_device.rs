//! The launch interface over the CUDA driver: one card, one stream.
//!
//! The device may be moved to another thread between calls: every call makes the card's context current first,
//! which costs a look at a thread-local number. All work goes to one stream of its own, so it happens in the
//! order of the calls; the legacy default stream is not involved. Two devices on one card share the card's
//! primary context and nothing else.

use std::collections::HashMap;
use std::ffi::c_void;
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{
    self, CUevent, CUgraphExec, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue,
    CUlaunchConfig, CUresult, CUstream, CUstreamCaptureMode,
};

use super::cards::{self, DeviceChoice};
use super::context::Context;
use super::error::check;
use super::kernels::Kernels;
use super::library::NoCuda;
use crate::card::{CardInfo, Urgency};
use crate::device::{Buffer, Device, DeviceError, DeviceProperties, Graph, Launch, MARKS, Mark, Pinned};

/// Why a card was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is none that can be used.
    #[error(transparent)]
    NoCuda(#[from] NoCuda),
    /// It could be used, but failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

/// The most bytes of a parameter block.
const PARAMETER_BYTES: usize = 4096;

/// How long a wait that should be short keeps its core busy before it lets go.
const SPIN: Duration = Duration::from_millis(20);

/// A card, opened.
pub struct CudaDevice {
    properties: DeviceProperties,
    card: CardInfo,
    /// Whether kernels may start before the one before has ended: the card can from Hopper on; the driver records
    /// that into graphs from 12.3 on.
    overlaps: bool,
    stream: CUstream,
    /// Taken out first when the device goes.
    kernels: Option<Kernels>,
    /// All device memory that is taken: address and bytes.
    allocations: HashMap<u64, usize>,
    /// The events of the marks; mark number n is event n modulo their number.
    events: Vec<CUevent>,
    /// The number of the next mark.
    next_mark: u32,
    /// How many marks were made, up to as many as are good at a time.
    marks_made: u32,
    graphs: Vec<CUgraphExec>,
    recording: bool,
    /// Where parameter blocks lie while they are passed, aligned as strictly as any of them may ask.
    parameters: Box<[u128; PARAMETER_BYTES / 16]>,
    /// Dropped last.
    context: Arc<Context>,
}

// SAFETY: the driver's handles may be used from any thread that has the context current, which every call sees
// to; the device has one owner, so never from two at a time.
unsafe impl Send for CudaDevice {}

impl CudaDevice {
    /// Opens a card: makes its context and loads every kernel.
    ///
    /// # Errors
    /// When there is no such card, it cannot run the kernels, or something on the way fails.
    pub fn open(choice: DeviceChoice, urgency: Urgency) -> Result<Self, OpenError> {
        let (card, driver) = cards::choose(choice)?;
        let handle = cards::handle(card.ordinal)?;
        let properties = cards::properties(handle)?;
        let context = Context::retain(handle)?;
        context.bind()?;
        // From here on, what is made goes with the device, also when a later step fails.
        let mut device = Self {
            overlaps: properties.compute_capability >= (9, 0) && driver >= (12, 3),
            properties,
            card,
            stream: std::ptr::null_mut(),
            kernels: None,
            allocations: HashMap::new(),
            events: Vec::new(),
            next_mark: 0,
            marks_made: 0,
            graphs: Vec::new(),
            recording: false,
            parameters: Box::new([0; PARAMETER_BYTES / 16]),
            context,
        };
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        let (mut lowest, mut highest) = (0, 0);
        // SAFETY: the context is current; there are places for the numbers.
        let result = unsafe { sys::cuCtxGetStreamPriorityRange(&mut lowest, &mut highest) };
        check(result, "the GPU's priorities cannot be asked for")?;
        let priority = match urgency {
            Urgency::First => highest,
            Urgency::Yields => lowest,
        };
        // SAFETY: the context is current; there is a place for the handle.
        let result = unsafe { sys::cuStreamCreateWithPriority(&mut device.stream, flags, priority) };
        check(result, "the GPU's stream cannot be made")?;
        // Marks measure time, and a thread that waits for one sleeps unless it spins by itself.
        let flags = sys::CUevent_flags_enum::CU_EVENT_BLOCKING_SYNC as u32;
        for _ in 0..MARKS {
            let mut event = std::ptr::null_mut();
            // SAFETY: as above.
            check(unsafe { sys::cuEventCreate(&mut event, flags) }, "the GPU's events cannot be made")?;
            device.events.push(event);
        }
        device.kernels = Some(Kernels::load(&device.card, device.properties.shared_memory_per_block)?);
        Ok(device)
    }

    /// Which card it is, and where its kernels came from.
    pub fn card(&self) -> &CardInfo {
        &self.card
    }

    /// Makes the context current for a call that does not belong into a recording.
    fn enter(&self, what: &str) -> Result<(), DeviceError> {
        if self.recording {
            return Err(DeviceError::Failed(format!(
                "{what} during a recording, which takes launches alone"
            )));
        }
        self.context.bind()
    }

    fn synchronize(&self) -> Result<(), DeviceError> {
        // SAFETY: the stream is ours and its context current.
        check(unsafe { sys::cuStreamSynchronize(self.stream) }, "the GPU's work failed")
    }

    /// The event of a mark, while the mark is good.
    fn event(&self, mark: Mark) -> Result<CUevent, DeviceError> {
        let age = self.next_mark.wrapping_sub(mark.0);
        if age == 0 || age > self.marks_made {
            return Err(DeviceError::Failed(format!("mark {} is not good any more", mark.0)));
        }
        Ok(self.events[(mark.0 % MARKS) as usize])
    }

    fn start_copy_in(&self, from: *const u8, bytes: usize, to: Buffer) -> Result<(), DeviceError> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller has that many bytes at `from`, checked that they fit into `to`, and keeps them as they
        // are until the copy is done; the context is current.
        let result = unsafe { sys::cuMemcpyHtoDAsync_v2(to.address(), from.cast(), bytes, self.stream) };
        check(result, "copying to the GPU failed")
    }

    fn start_copy_out(&self, from: Buffer, to: *mut u8) -> Result<(), DeviceError> {
        if from.bytes() == 0 {
            return Ok(());
        }
        // SAFETY: the caller has room for `from` at `to` and leaves it alone until the copy is done; the context is
        // current.
        let result =
            unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from.address(), from.bytes(), self.stream) };
        check(result, "copying from the GPU failed")
    }
}

impl Device for CudaDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.properties
    }

    fn free_memory(&mut self) -> Result<u64, DeviceError> {
        self.enter("asking for free memory")?;
        Ok(self.context.memory()?.0)
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        self.enter("an allocation")?;
        let mut address = 0;
        // The driver refuses to give nothing. What it gives is aligned to at least 256 bytes.
        // SAFETY: the context is current; there is a place for the address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut address, bytes.max(1)) };
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            const MB: u64 = 1 << 20;
            return Err(DeviceError::OutOfMemory {
                what: what.to_owned(),
                wanted_mb: (bytes as u64).div_ceil(MB),
                free_mb: self.context.memory()?.0 / MB,
            });
        }
        check(result, &format!("GPU memory for {what} cannot be had"))?;
        self.allocations.insert(address, bytes);
        Ok(Buffer::new(address, bytes))
    }

    fn free(&mut self, buffer: Buffer) {
        let taken = self.allocations.remove(&buffer.address());
        assert_eq!(taken, Some(buffer.bytes()), "what is freed is a whole allocation of this device");
        // A card that does not answer any more has no memory to give back.
        if self.enter("freeing memory").is_ok() && self.synchronize().is_ok() {
            // SAFETY: the memory is ours, what used it is done, and it is forgotten here.
            unsafe { sys::cuMemFree_v2(buffer.address()) };
        }
    }

    fn allocate_pinned(&mut self, bytes: usize) -> Result<Box<dyn Pinned>, DeviceError> {
        self.enter("an allocation")?;
        let mut address = std::ptr::null_mut();
        // SAFETY: the context is current; there is a place for the address.
        let result =
            unsafe { sys::cuMemHostAlloc(&mut address, bytes.max(1), sys::CU_MEMHOSTALLOC_PORTABLE) };
        check(result, &format!("{bytes} bytes of page-locked memory cannot be had"))?;
        let address = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| DeviceError::Failed("the driver gave no page-locked memory".to_owned()))?;
        // SAFETY: the driver gave that many bytes.
        unsafe { address.write_bytes(0, bytes) };
        Ok(Box::new(PinnedMemory { address, bytes, context: self.context.clone() }))
    }

    fn upload(&mut self, bytes: &[u8], to: Buffer) -> Result<(), DeviceError> {
        assert!(bytes.len() <= to.bytes(), "{} bytes into a buffer of {}", bytes.len(), to.bytes());
        self.enter("an upload")?;
        self.start_copy_in(bytes.as_ptr(), bytes.len(), to)?;
        self.synchronize()
    }

    fn download(&mut self, from: Buffer, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let from = from.slice(0, bytes.len());
        self.enter("a download")?;
        self.start_copy_out(from, bytes.as_mut_ptr())?;
        self.synchronize()
    }

    fn copy_in(&mut self, from: &mut dyn Pinned, bytes: usize, to: Buffer) -> Result<(), DeviceError> {
        assert!(bytes <= to.bytes(), "{bytes} bytes into a buffer of {}", to.bytes());
        self.enter("a copy")?;
        self.start_copy_in(from.bytes()[..bytes].as_ptr(), bytes, to)
    }

    fn copy_out(&mut self, from: Buffer, to: &mut dyn Pinned) -> Result<(), DeviceError> {
        self.enter("a copy")?;
        self.start_copy_out(from, to.bytes()[..from.bytes()].as_mut_ptr())
    }

    fn fill(&mut self, buffer: Buffer, byte: u8) -> Result<(), DeviceError> {
        self.enter("filling memory")?;
        if buffer.bytes() == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is device memory of that length; the context is current.
        let result = unsafe { sys::cuMemsetD8Async(buffer.address(), byte, buffer.bytes(), self.stream) };
        check(result, "filling GPU memory failed")
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let name = launch.kernel;
        let failed = |why: String| Err(DeviceError::Failed(format!("the kernel {name} {why}")));
        let Some(&function) = self.kernels.as_ref().and_then(|kernels| kernels.get(name)) else {
            return failed("does not exist".to_owned());
        };
        if launch.params.len() != function.parameter_bytes || launch.params.len() > PARAMETER_BYTES {
            let (given, taken) = (launch.params.len(), function.parameter_bytes);
            return failed(format!("takes {taken} bytes of parameters and was given {given}"));
        }
        if launch.shared_bytes > function.shared_bytes {
            let (wanted, most) = (launch.shared_bytes, function.shared_bytes);
            return failed(format!("was given {wanted} bytes of shared memory; this card has {most} for it"));
        }
        if launch.threads == 0 || launch.threads > function.threads || launch.grid.contains(&0) {
            let (grid, threads, most) = (launch.grid, launch.threads, function.threads);
            return failed(format!(
                "cannot run {grid:?} blocks of {threads} threads; a block has up to {most}"
            ));
        }
        self.context.bind()?;
        bytemuck::bytes_of_mut(&mut *self.parameters)[..launch.params.len()].copy_from_slice(launch.params);
        let mut arguments = [self.parameters.as_mut_ptr().cast::<c_void>()];
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            // All of it, for the driver may look at more than the one number.
            value: CUlaunchAttributeValue { pad: [0; 64] },
        };
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let config = CUlaunchConfig {
            gridDimX: launch.grid[0],
            gridDimY: launch.grid[1],
            gridDimZ: launch.grid[2],
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes as u32,
            hStream: self.stream,
            attrs: &mut attribute,
            numAttrs: u32::from(launch.overlap && self.overlaps),
        };
        // SAFETY: function and stream belong to the current context. The kernel takes one parameter of the length that
        // was checked, and the driver copies it before it returns, also into a recording. What the kernel does with
        // the addresses in it is the family's business.
        let result = unsafe {
            sys::cuLaunchKernelEx(&config, function.handle, arguments.as_mut_ptr(), std::ptr::null_mut())
        };
        if result == CUresult::CUDA_SUCCESS {
            return Ok(());
        }
        check(result, &format!("launching {name} failed"))
    }

    fn begin_recording(&mut self) -> Result<(), DeviceError> {
        self.enter("a recording")?;
        // Thread-local: what other threads do meanwhile on other devices is none of its business.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours, its context current, and nothing is being recorded.
        check(unsafe { sys::cuStreamBeginCapture_v2(self.stream, mode) }, "recording cannot start")?;
        self.recording = true;
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Graph, DeviceError> {
        if !std::mem::take(&mut self.recording) {
            return Err(DeviceError::Failed("no recording is under way".to_owned()));
        }
        self.context.bind()?;
        let (mut graph, mut ready) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: the stream is ours and is recording; there is a place for the handle.
        check(unsafe { sys::cuStreamEndCapture(self.stream, &mut graph) }, "the recording failed")?;
        // SAFETY: the graph was made a moment ago; it is not needed once it has been made ready, or could not be.
        let result = unsafe {
            let result = sys::cuGraphInstantiateWithFlags(&mut ready, graph, 0);
            sys::cuGraphDestroy(graph);
            result
        };
        check(result, "the recording cannot be made ready to run")?;
        self.graphs.push(ready);
        // So that the first run does not do it.
        // SAFETY: graph and stream belong to the current context.
        check(unsafe { sys::cuGraphUpload(ready, self.stream) }, "the recording cannot be put on the GPU")?;
        Ok(Graph(self.graphs.len() as u32 - 1))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.enter("a replay")?;
        let unknown = || DeviceError::Failed(format!("there is no recording number {}", graph.0));
        let ready = *self.graphs.get(graph.0 as usize).ok_or_else(unknown)?;
        // SAFETY: graph and stream belong to the current context.
        check(unsafe { sys::cuGraphLaunch(ready, self.stream) }, "running a recording failed")
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        self.enter("a mark")?;
        let mark = Mark(self.next_mark);
        // SAFETY: event and stream belong to the current context.
        let result = unsafe { sys::cuEventRecord(self.events[(mark.0 % MARKS) as usize], self.stream) };
        check(result, "the GPU takes no mark")?;
        self.next_mark = self.next_mark.wrapping_add(1);
        self.marks_made = (self.marks_made + 1).min(MARKS);
        Ok(mark)
    }

    fn wait(&mut self, mark: Mark, soon: bool) -> Result<(), DeviceError> {
        self.enter("a wait")?;
        let event = self.event(mark)?;
        const FAILED: &str = "the GPU's work failed";
        let started = Instant::now();
        while soon && started.elapsed() < SPIN {
            // SAFETY: the event belongs to the current context.
            match unsafe { sys::cuEventQuery(event) } {
                CUresult::CUDA_ERROR_NOT_READY => std::hint::spin_loop(),
                done => return check(done, FAILED),
            }
        }
        // SAFETY: as above.
        check(unsafe { sys::cuEventSynchronize(event) }, FAILED)
    }

    fn elapsed_ms(&mut self, from: Mark, to: Mark) -> Result<f32, DeviceError> {
        self.enter("reading the time")?;
        let (from, to) = (self.event(from)?, self.event(to)?);
        let mut milliseconds = 0.0;
        // SAFETY: the events belong to the current context and have been recorded; there is a place for the number.
        let result = unsafe { sys::cuEventElapsedTime(&mut milliseconds, from, to) };
        check(result, "the GPU's time cannot be read")?;
        Ok(milliseconds)
    }
}

impl Drop for CudaDevice {
    /// Gives everything back, in the reverse order of what depends on what. Errors are of a card that is lost, and
    /// there is nobody to tell.
    fn drop(&mut self) {
        if self.context.bind().is_err() {
            // The modules cannot be unloaded without the context; they go with it.
            std::mem::forget(self.kernels.take());
            return;
        }
        // SAFETY: all handles are ours and of the current context, each is given back once, and nothing uses them any
        // more once the stream's work is done. A recording under way is dropped with its stream.
        unsafe {
            if !self.stream.is_null() && !self.recording {
                sys::cuStreamSynchronize(self.stream);
            }
            for &graph in &self.graphs {
                sys::cuGraphExecDestroy(graph);
            }
            for &event in &self.events {
                sys::cuEventDestroy_v2(event);
            }
            if !self.stream.is_null() {
                sys::cuStreamDestroy_v2(self.stream);
            }
            self.kernels = None;
            for &address in self.allocations.keys() {
                sys::cuMemFree_v2(address);
            }
        }
    }
}

/// Page-locked memory of the host.
struct PinnedMemory {
    address: NonNull<u8>,
    bytes: usize,
    /// The memory is the context's.
    context: Arc<Context>,
}

// SAFETY: it is memory of the host with one owner.
unsafe impl Send for PinnedMemory {}

impl Pinned for PinnedMemory {
    fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the driver gave that many bytes, zeroed when they were taken; the borrow of the owner keeps others
        // away, and the device's users see to it that no copy is under way.
        unsafe { std::slice::from_raw_parts_mut(self.address.as_ptr(), self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: a copy that is under way ends before the memory goes; it is ours and goes once.
            unsafe {
                sys::cuCtxSynchronize();
                sys::cuMemFreeHost(self.address.as_ptr().cast());
            }
        }
    }
}
