//! Runs the CUDA kernels as plain C++ on the host.
//!
//! [`HostDevice`] is a [`Device`] without a card. `build.rs` compiles the same `kernels/cuda/*.cu` that nvcc
//! compiles, as C++20; `cpp/shim.hpp` gives their primitives a meaning here, and `cpp/runtime.cpp` runs a
//! block at a time with a fiber for every thread. Kernels enter themselves into a list by being linked in.
//!
//! It is for tests, and it is strict: fresh device memory, and shared memory at the start of a block, is full
//! of 0xff bytes; an asynchronous copy happens when it is waited for and not before; every allocation has
//! exactly the bytes that were asked for. Threads, and blocks, run in an order that the test chooses
//! ([`Order`]), so that a missing barrier shows up as a difference between orders. With
//! [`Options::overlap_eagerly`] a kernel that does not wait for the one before it reads what is not there
//! yet. A barrier that only some threads reach, a collective that only some lanes call, an address that is
//! not aligned: the launch fails with [`DeviceError::Failed`], which names kernel, block and thread.
//!
//! With the address and undefined-behaviour sanitizers (GCC on Linux) an access outside a buffer ends the
//! process with a report that names the line of the kernel. One command runs everything that way:
//!
//! ```sh
//! REDSTART_SHIM_SANITIZE=address,undefined \
//!     cargo nextest run -p redstart-kernels-shim --target-dir target/sanitize
//! ```
//!
//! What it cannot find are races that the order of threads does not bring out, and wrong memory orders
//! between blocks: those are for the card. It needs a Unix system; on others this crate is empty.

#![cfg(unix)]

use std::alloc::{Layout, alloc, dealloc};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CStr, c_char, c_void};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use redstart_kernels::device::{
    Buffer, Device, DeviceError, DeviceProperties, Graph, Launch, MARKS, Mark, Pinned,
};

/// Bytes of a parameter block that every card takes.
const MAX_PARAMS_BYTES: usize = 4096;

/// What fresh memory is filled with. As a number of any width it is a NaN.
const POISON: u8 = 0xff;

/// In which order the threads of a block, or the blocks of a grid, have their turn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// From the first to the last.
    #[default]
    Ascending,
    /// From the last to the first.
    Descending,
    /// Drawn anew each time, from this seed.
    Shuffled(u64),
}

/// What a [`HostDevice`] is like.
#[derive(Clone, Debug)]
pub struct Options {
    /// What it says of itself. The limits are enforced.
    pub properties: DeviceProperties,
    /// The order of warps in a block and of lanes in a warp.
    pub threads: Order,
    /// The order of blocks in a grid.
    pub blocks: Order,
    /// Starts the first and the last block of every launch that may overlap before the two launches before
    /// it have run, up to their `wait_for_previous_kernel`.
    pub overlap_eagerly: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            properties: DeviceProperties {
                name: "host shim".to_owned(),
                compute_capability: (8, 6),
                multiprocessors: 4,
                shared_memory_per_block: 99 << 10,
                shared_memory_per_multiprocessor: 100 << 10,
                l2_bytes: 4 << 20,
                memory_bytes: 4 << 30,
            },
            threads: Order::Ascending,
            blocks: Order::Ascending,
            overlap_eagerly: false,
        }
    }
}

/// A device that runs kernels on the host; see the page of the crate.
pub struct HostDevice {
    options: Options,
    allocations: BTreeMap<u64, usize>,
    free_bytes: u64,
    /// Launches that were accepted and have not run, oldest first. Only with `overlap_eagerly`.
    held: VecDeque<Run>,
    /// What went wrong in a call that reports nothing; the next one does.
    fault: Option<DeviceError>,
    recording: Option<Vec<Stored>>,
    graphs: Vec<Vec<Stored>>,
    /// When the last [`MARKS`] marks were made, and how many there have been.
    marks: VecDeque<Instant>,
    marks_made: u32,
}

/// Launches that may be waiting while a later one starts early. With programmatic launches, a kernel can
/// start when the one before it has started, and that one when the one before *it* has.
const MAX_HELD: usize = 2;

impl Default for HostDevice {
    fn default() -> Self {
        Self::new(Options::default())
    }
}

impl HostDevice {
    /// A device like that.
    pub fn new(options: Options) -> Self {
        Self {
            free_bytes: options.properties.memory_bytes,
            options,
            allocations: BTreeMap::new(),
            held: VecDeque::new(),
            fault: None,
            recording: None,
            graphs: Vec::new(),
            marks: VecDeque::new(),
            marks_made: 0,
        }
    }

    /// Finishes all launches that were held back.
    fn finish(&mut self) -> Result<(), DeviceError> {
        if let Some(fault) = self.fault.take() {
            return Err(fault);
        }
        while !self.held.is_empty() {
            self.finish_first()?;
        }
        Ok(())
    }

    fn finish_first(&mut self) -> Result<(), DeviceError> {
        match self.held.pop_front() {
            Some(mut run) => run.finish(),
            None => Ok(()),
        }
    }

    /// Everything but a launch comes after the launches before it, and not into a recording.
    fn settle(&mut self, what: &str) -> Result<(), DeviceError> {
        if self.recording.is_some() {
            return Err(DeviceError::Failed(format!("{what} while launches are being recorded")));
        }
        self.finish()
    }

    /// The bytes of a buffer, if they are this device's.
    fn memory(&self, buffer: Buffer, bytes: usize) -> Result<NonNull<u8>, DeviceError> {
        let inside =
            self.allocations.range(..=buffer.address()).next_back().is_some_and(|(start, length)| {
                let end = buffer.address().checked_add(bytes as u64);
                end.is_some_and(|end| end <= start + *length as u64)
            });
        if bytes > buffer.bytes() {
            return Err(DeviceError::Failed(format!("{bytes} bytes for a buffer of {}", buffer.bytes())));
        }
        match NonNull::new(buffer.address() as *mut u8) {
            Some(memory) if inside => Ok(memory),
            _ => Err(DeviceError::Failed(format!("{buffer:?} is not memory of this device"))),
        }
    }

    /// Checks a launch as the driver would.
    fn check(&self, launch: &Launch<'_>) -> Result<&'static Kernel, DeviceError> {
        let Launch { kernel: name, grid, threads, shared_bytes, params, .. } = *launch;
        let refuse = |why: String| Err(DeviceError::Failed(format!("kernel {name}: {why}")));
        let Some(kernel) = kernels()?.get(name) else {
            return refuse("there is no such kernel".to_owned());
        };
        if params.len() as u64 != kernel.params_bytes {
            return refuse(format!("{} bytes of parameters, it takes {}", params.len(), kernel.params_bytes));
        }
        if params.len() > MAX_PARAMS_BYTES {
            return refuse(format!("{} bytes of parameters are more than {MAX_PARAMS_BYTES}", params.len()));
        }
        if threads == 0 || threads % 32 != 0 || threads > kernel.threads.min(1024) {
            return refuse(format!(
                "{threads} threads in a block; it takes a multiple of 32 up to {}",
                kernel.threads
            ));
        }
        let limit = self.options.properties.shared_memory_per_block;
        if shared_bytes > limit {
            return refuse(format!("{shared_bytes} bytes of shared memory, a block can have {limit}"));
        }
        if grid.contains(&0) || grid[0] > i32::MAX as u32 || grid[1] > 65535 || grid[2] > 65535 {
            return refuse(format!("a grid of {grid:?} blocks"));
        }
        if grid.iter().try_fold(1u32, |product, blocks| product.checked_mul(*blocks)).is_none() {
            return refuse(format!("a grid of {grid:?} blocks is more than the shim counts"));
        }
        Ok(kernel)
    }

    fn start(&mut self, launch: &Stored) -> Result<(), DeviceError> {
        let mut run = Run::new(launch, &self.options);
        if !self.options.overlap_eagerly {
            return run.finish();
        }
        if launch.overlap {
            run.start_early()?;
            if self.held.len() == MAX_HELD {
                self.finish_first()?;
            }
        } else {
            // It starts when all before it has ended; what comes after it may start before it ends.
            self.finish()?;
        }
        self.held.push_back(run);
        Ok(())
    }
}

impl Drop for HostDevice {
    fn drop(&mut self) {
        self.held.clear();
        for (&address, &bytes) in &self.allocations {
            // SAFETY: it came from `alloc` with this layout and goes exactly once: `free` takes what it
            // frees out of the map.
            unsafe { dealloc(address as *mut u8, layout(bytes)) };
        }
    }
}

/// One allocation: exactly the bytes that were asked for, so that tools see the byte behind the last.
fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes.max(1), 256).expect("fewer bytes than an address space")
}

struct HostMemory(Vec<u8>);

impl Pinned for HostMemory {
    fn bytes(&mut self) -> &mut [u8] {
        &mut self.0
    }
}

impl Device for HostDevice {
    fn properties(&self) -> &DeviceProperties {
        &self.options.properties
    }

    fn free_memory(&mut self) -> Result<u64, DeviceError> {
        Ok(self.free_bytes)
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        let out_of_memory = |free: u64| DeviceError::OutOfMemory {
            what: what.to_owned(),
            wanted_mb: (bytes as u64).div_ceil(1 << 20),
            free_mb: free >> 20,
        };
        if bytes as u64 > self.free_bytes {
            return Err(out_of_memory(self.free_bytes));
        }
        // SAFETY: the layout has at least one byte.
        let Some(memory) = NonNull::new(unsafe { alloc(layout(bytes)) }) else {
            return Err(out_of_memory(self.free_bytes));
        };
        // SAFETY: that many bytes were just allocated.
        unsafe { memory.write_bytes(POISON, bytes) };
        let address = memory.as_ptr().expose_provenance() as u64;
        self.allocations.insert(address, bytes);
        self.free_bytes -= bytes as u64;
        Ok(Buffer::new(address, bytes))
    }

    /// # Panics
    /// When it is not an allocation of this device, or only a part of one.
    fn free(&mut self, buffer: Buffer) {
        self.fault = self.finish().err();
        assert_eq!(
            self.allocations.get(&buffer.address()),
            Some(&buffer.bytes()),
            "{buffer:?} is not a whole allocation of this device"
        );
        self.allocations.remove(&buffer.address());
        self.free_bytes += buffer.bytes() as u64;
        // SAFETY: `alloc` made it with this layout, and it is in the map no more.
        unsafe { dealloc(buffer.address() as *mut u8, layout(buffer.bytes())) };
    }

    fn allocate_pinned(&mut self, bytes: usize) -> Result<Box<dyn Pinned>, DeviceError> {
        Ok(Box::new(HostMemory(vec![0; bytes])))
    }

    fn upload(&mut self, bytes: &[u8], to: Buffer) -> Result<(), DeviceError> {
        self.settle("an upload")?;
        let memory = self.memory(to, bytes.len())?;
        // SAFETY: that many bytes there belong to an allocation of this device, of which Rust has no
        // reference.
        unsafe { memory.as_ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&mut self, from: Buffer, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.settle("a download")?;
        let memory = self.memory(from, bytes.len())?;
        // SAFETY: as in `upload`.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(memory.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy_in(&mut self, from: &mut dyn Pinned, bytes: usize, to: Buffer) -> Result<(), DeviceError> {
        let from = from.bytes();
        let Some(part) = from.get(..bytes) else {
            return Err(DeviceError::Failed(format!("{bytes} bytes of {} pinned ones", from.len())));
        };
        self.upload(part, to)
    }

    fn copy_out(&mut self, from: Buffer, to: &mut dyn Pinned) -> Result<(), DeviceError> {
        let to = to.bytes();
        let length = to.len();
        let Some(part) = to.get_mut(..from.bytes()) else {
            return Err(DeviceError::Failed(format!("{} bytes to {length} pinned ones", from.bytes())));
        };
        self.download(from, part)
    }

    fn fill(&mut self, buffer: Buffer, byte: u8) -> Result<(), DeviceError> {
        self.settle("a fill")?;
        let memory = self.memory(buffer, buffer.bytes())?;
        // SAFETY: as in `upload`.
        unsafe { memory.write_bytes(byte, buffer.bytes()) };
        Ok(())
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        let launch = Stored {
            kernel: self.check(launch)?,
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes,
            params: launch.params.to_vec(),
            overlap: launch.overlap,
        };
        match &mut self.recording {
            Some(launches) => launches.push(launch),
            None => self.start(&launch)?,
        }
        Ok(())
    }

    fn begin_recording(&mut self) -> Result<(), DeviceError> {
        self.settle("a recording")?;
        self.recording = Some(Vec::new());
        Ok(())
    }

    fn end_recording(&mut self) -> Result<Graph, DeviceError> {
        let Some(launches) = self.recording.take() else {
            return Err(DeviceError::Failed("no recording is under way".to_owned()));
        };
        self.graphs.push(launches);
        Ok(Graph((self.graphs.len() - 1) as u32))
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.settle("a replay")?;
        let Some(launches) = self.graphs.get(graph.0 as usize).cloned() else {
            return Err(DeviceError::Failed(format!("there is no {graph:?}")));
        };
        launches.iter().try_for_each(|launch| self.start(launch))
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        self.settle("a mark")?;
        if self.marks.len() == MARKS as usize {
            self.marks.pop_front();
        }
        self.marks.push_back(Instant::now());
        self.marks_made += 1;
        Ok(Mark(self.marks_made - 1))
    }

    fn wait(&mut self, mark: Mark, _soon: bool) -> Result<(), DeviceError> {
        self.settle("a wait")?;
        self.time_of(mark).map(|_| ())
    }

    fn elapsed_ms(&mut self, from: Mark, to: Mark) -> Result<f32, DeviceError> {
        let (from, to) = (self.time_of(from)?, self.time_of(to)?);
        Ok(to.saturating_duration_since(from).as_secs_f32() * 1e3)
    }
}

impl HostDevice {
    fn time_of(&self, mark: Mark) -> Result<Instant, DeviceError> {
        let age = self.marks_made.wrapping_sub(mark.0) as usize;
        let place = self.marks.len().checked_sub(age).filter(|_| age > 0);
        place.map(|place| self.marks[place]).ok_or_else(|| {
            DeviceError::Failed(format!("{mark:?} is not one of the last {MARKS} of {}", self.marks_made))
        })
    }
}

/// A launch that was checked.
#[derive(Clone)]
struct Stored {
    kernel: &'static Kernel,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: usize,
    params: Vec<u8>,
    overlap: bool,
}

/// An entry of the list of kernels; `Kernel` in `cpp/shim.hpp`.
#[repr(C)]
struct Kernel {
    name: *const c_char,
    run: unsafe extern "C" fn(*const c_void),
    params_bytes: u64,
    threads: u32,
    next: *const Kernel,
}

// SAFETY: kernels are written while the program starts, before `main`, and never again.
unsafe impl Sync for Kernel {}

/// `Order` in `cpp/runtime.cpp`.
#[repr(C)]
struct OrderRequest {
    kind: u64,
    seed: u64,
}

impl From<Order> for OrderRequest {
    fn from(order: Order) -> Self {
        match order {
            Order::Ascending => Self { kind: 0, seed: 0 },
            Order::Descending => Self { kind: 1, seed: 0 },
            Order::Shuffled(seed) => Self { kind: 2, seed },
        }
    }
}

/// `LaunchRequest` in `cpp/runtime.cpp`.
#[repr(C)]
struct LaunchRequest {
    kernel: *const Kernel,
    grid: [u32; 3],
    threads: u32,
    shared_bytes: u64,
    params: *const u8,
    thread_order: OrderRequest,
    block_order: OrderRequest,
}

/// `Run` in `cpp/runtime.cpp`.
enum RawRun {}

unsafe extern "C" {
    fn redstart_shim_kernels() -> *const Kernel;
    fn redstart_shim_begin(request: *const LaunchRequest) -> *mut RawRun;
    fn redstart_shim_start_early(run: *mut RawRun) -> *const c_char;
    fn redstart_shim_finish(run: *mut RawRun) -> *const c_char;
    fn redstart_shim_end(run: *mut RawRun);
}

/// The runtime is one for the process: this is held while it is used.
fn runtime() -> MutexGuard<'static, ()> {
    static RUNTIME: Mutex<()> = Mutex::new(());
    RUNTIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All kernels by name.
fn kernels() -> Result<&'static HashMap<&'static str, &'static Kernel>, DeviceError> {
    static KERNELS: OnceLock<Result<HashMap<&'static str, &'static Kernel>, String>> = OnceLock::new();
    let kernels = KERNELS.get_or_init(|| {
        let mut kernels = HashMap::new();
        // SAFETY: the list was built before `main` out of statics and ends with null.
        let mut next = unsafe { redstart_shim_kernels().as_ref() };
        while let Some(kernel) = next {
            // SAFETY: the name is a string literal of C++.
            let name = unsafe { CStr::from_ptr(kernel.name) }.to_str().map_err(|error| error.to_string())?;
            if kernels.insert(name, kernel).is_some() {
                return Err(format!("two kernels are called {name}"));
            }
            // SAFETY: as the first.
            next = unsafe { kernel.next.as_ref() };
        }
        Ok(kernels)
    });
    kernels.as_ref().map_err(|error| DeviceError::Failed(error.clone()))
}

/// A launch under way, alone with its copy of the parameters.
struct Run {
    raw: NonNull<RawRun>,
    kernel: &'static str,
}

// SAFETY: it is only touched with the runtime's lock held, and no part of it is bound to an OS thread.
unsafe impl Send for Run {}

impl Run {
    fn new(launch: &Stored, options: &Options) -> Self {
        let request = LaunchRequest {
            kernel: launch.kernel,
            grid: launch.grid,
            threads: launch.threads,
            shared_bytes: launch.shared_bytes as u64,
            params: launch.params.as_ptr(),
            thread_order: options.threads.into(),
            block_order: options.blocks.into(),
        };
        let _alone = runtime();
        // SAFETY: the request holds for the call; `check` has made sure that the parameters have the size
        // that the kernel's entry says.
        let raw = unsafe { redstart_shim_begin(&request) };
        // SAFETY: the name is a string literal of C++, and `kernels` found it to be UTF-8.
        let kernel = unsafe { CStr::from_ptr(launch.kernel.name) }.to_str().unwrap_or_default();
        Self { raw: NonNull::new(raw).expect("the runtime allocates or aborts"), kernel }
    }

    fn start_early(&mut self) -> Result<(), DeviceError> {
        let _alone = runtime();
        // SAFETY: the run is alive and nobody else is in the runtime.
        let error = unsafe { redstart_shim_start_early(self.raw.as_ptr()) };
        self.result(error)
    }

    fn finish(&mut self) -> Result<(), DeviceError> {
        let _alone = runtime();
        // SAFETY: as above.
        let error = unsafe { redstart_shim_finish(self.raw.as_ptr()) };
        self.result(error)
    }

    /// To be called with the lock held: the text is the runtime's.
    fn result(&self, error: *const c_char) -> Result<(), DeviceError> {
        if error.is_null() {
            return Ok(());
        }
        // SAFETY: not null, so it is a string of the runtime that lives until its next call.
        let error = unsafe { CStr::from_ptr(error) }.to_string_lossy();
        Err(DeviceError::Failed(format!("kernel {}, {error}", self.kernel)))
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _alone = runtime();
        // SAFETY: the run ends here, once.
        unsafe { redstart_shim_end(self.raw.as_ptr()) };
    }
}
