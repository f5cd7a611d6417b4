//! The sandbox: one wasmtime engine, configured for pure functions, with its clock and its threads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{Component, Linker};
use wasmtime::{Config, Engine, ResourceLimiter, Store};

use crate::compiled_cache::CompiledCache;
use crate::error::PluginError;
use crate::plugin::Plugin;
use crate::prompt::bindings::PromptPluginPre;
use crate::ticker::{TICK, Ticker};
use crate::workers::{GuestThread, Outcome, Workers};

/// The interface this host calls, without the patch level, which never changes the contract.
const INTERFACE: &str = "redstart:prompt/plugin";
const VERSION: (u64, u64) = (0, 1);

/// Stack of a guest. The thread it runs on has [`THREAD_STACK`], of which the host needs the rest:
/// overflowing that would end the process. A thread of somebody else's ([`Plugin::run_urgent`]) has a megabyte or more on every
/// system we know.
const GUEST_STACK: usize = 512 << 10;
const THREAD_STACK: usize = 4 << 20;

/// What plugins may use.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limits {
    /// Largest component file, in bytes. Compiling is not interruptible, so this bounds it.
    pub component_bytes: usize,
    /// Largest context with the raw text, in bytes.
    pub input_bytes: usize,
    /// Largest prompt or answer, in bytes.
    pub output_bytes: usize,
    /// Linear memory of one call, in bytes.
    pub memory_bytes: usize,
    /// Time of one call, its instantiation included. Precise to some hundredths of a second.
    pub deadline: Duration,
    /// Failures in a row after which a plugin is suspended.
    pub failures: u32,
    /// Calls that can run at the same time.
    pub threads: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            component_bytes: 10 << 20,
            input_bytes: 2 << 20,
            output_bytes: 2 << 20,
            memory_bytes: 64 << 20,
            // A call takes well under a millisecond; this is what a stalled machine is given before
            // typing goes on without the plugin.
            deadline: Duration::from_millis(250),
            failures: 3,
            threads: 2,
        }
    }
}

/// Loads plugins and runs them. One per server.
pub struct PluginHost {
    sandbox: Arc<Sandbox>,
    workers: Workers,
    cache: Option<CompiledCache>,
}

/// What a call needs. The clock stops when the host and the threads are gone.
pub(crate) struct Sandbox {
    pub(crate) engine: Engine,
    pub(crate) limits: Limits,
    ticker: Ticker,
}

impl PluginHost {
    /// Starts the clock and the threads.
    ///
    /// # Errors
    /// [`PluginError::Sandbox`] where the machine has no room for them.
    pub fn new(limits: Limits) -> Result<Arc<Self>, PluginError> {
        Self::start(limits, None)
    }

    /// [`new`](Self::new), and keeps compiled plugins in `folder`, which must be private to this user;
    /// otherwise it is not used and the log says so.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn with_cache(limits: Limits, folder: PathBuf) -> Result<Arc<Self>, PluginError> {
        let cache = CompiledCache::open(folder.clone());
        let cache = cache.inspect_err(|error| {
            tracing::warn!(%error, folder = %folder.display(), "compiled plugins are not kept");
        });
        Self::start(limits, cache.ok())
    }

    fn start(limits: Limits, cache: Option<CompiledCache>) -> Result<Arc<Self>, PluginError> {
        let failed = |error: &dyn std::fmt::Display| PluginError::Sandbox(error.to_string());
        let engine = Engine::new(&config()).map_err(|error| failed(&error))?;
        let ticker = Ticker::start(engine.clone()).map_err(|error| failed(&error))?;
        let sandbox = Arc::new(Sandbox { engine, limits, ticker });
        let workers = Workers::start(limits.threads.max(1), THREAD_STACK, &sandbox);
        let workers = workers.map_err(|error| failed(&error))?;
        Ok(Arc::new(Self { sandbox, workers, cache }))
    }

    /// Compiles a plugin (or takes it from the cache), checks that it keeps to the contract and asks what it
    /// is. `name` is for the log. Compiling takes a tenth of a second: call it off the request path.
    ///
    /// # Errors
    /// What keeps the plugin from being used.
    pub fn load(self: &Arc<Self>, name: &str, bytes: &[u8]) -> Result<Plugin, PluginError> {
        let limit = self.sandbox.limits.component_bytes;
        if bytes.len() > limit {
            return Err(PluginError::TooLarge { bytes: bytes.len(), limit });
        }
        let started = std::time::Instant::now();
        let component = self.component(bytes)?;
        refuse_imports(&self.sandbox.engine, &component)?;
        check_version(&self.sandbox.engine, &component)?;
        let pre = Linker::new(&self.sandbox.engine)
            .instantiate_pre(&component)
            .and_then(PromptPluginPre::new)
            .map_err(|error| incompatible(format!("{INTERFACE} with other types ({error:#})")))?;
        let plugin = Plugin::new(self.clone(), name, pre)?;
        tracing::debug!(plugin = name, elapsed = ?started.elapsed(), "plugin loaded");
        Ok(plugin)
    }

    fn component(&self, bytes: &[u8]) -> Result<Component, PluginError> {
        let engine = &self.sandbox.engine;
        if let Some(component) = self.cache.as_ref().and_then(|cache| cache.get(engine, bytes)) {
            return Ok(component);
        }
        let component = compile(engine, bytes)?;
        if let Some(cache) = &self.cache {
            cache.put(engine, bytes, &component);
        }
        Ok(component)
    }

    /// What plugins may use.
    pub fn limits(&self) -> Limits {
        self.sandbox.limits
    }

    pub(crate) fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> Outcome<T> {
        self.workers.run(job)
    }

    pub(crate) fn run_here<T>(&self, job: impl FnOnce(&GuestThread<'_>) -> T) -> Outcome<T> {
        self.workers.run_here(&self.sandbox, job)
    }

    pub(crate) fn run_blocking<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> T {
        self.workers.run_blocking(job)
    }
}

impl Sandbox {
    /// A fresh store with the limits of memory and output. One call may be made in it.
    pub(crate) fn store(&self) -> Store<Guard> {
        let mut store = Store::new(&self.engine, Guard { memory_bytes: self.limits.memory_bytes });
        store.limiter(|guard| guard);
        store.set_hostcall_fuel(self.limits.output_bytes);
        store
    }

    /// Runs `call` in `store` with the deadline in force.
    pub(crate) fn run<T>(
        &self,
        store: &mut Store<Guard>,
        call: impl FnOnce(&mut Store<Guard>) -> wasmtime::Result<T>,
    ) -> Result<T, PluginError> {
        let _ticking = self.ticker.run();
        // N ticks are anything from N-1 to N times the tick.
        let ticks = self.limits.deadline.as_nanos().div_ceil(TICK.as_nanos()) + 1;
        store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX / 2));
        call(store).map_err(|error| self.explain(&error))
    }

    /// The error of a call in our words. The text of wasmtime's errors is for its developers.
    fn explain(&self, error: &wasmtime::Error) -> PluginError {
        if error.downcast_ref::<MemoryDenied>().is_some() {
            return PluginError::OutOfMemory { limit: self.limits.memory_bytes };
        }
        match error.downcast_ref::<wasmtime::Trap>() {
            Some(wasmtime::Trap::Interrupt) => PluginError::Timeout { budget: self.limits.deadline },
            Some(wasmtime::Trap::StackOverflow) => PluginError::StackOverflow,
            Some(trap) => PluginError::Trap { reason: trap.to_string(), backtrace: backtrace(error) },
            // wasmtime has no type for this one; the hostile guest of the tests notices a new wording.
            None if format!("{error:#}").contains("too much data is being copied") => {
                PluginError::OutputTooLarge { limit: self.limits.output_bytes }
            }
            None => PluginError::Malformed(format!("{error:#}")),
        }
    }
}

/// Everything a pure function in Rust does not need is off: what is not there has no bugs.
fn config() -> Config {
    let mut config = Config::new();
    config
        .epoch_interruption(true)
        // A guest's data is copied when its instance is made, which is ahead of the call; mapped, each page of it would
        // be faulted in during the call.
        .memory_init_cow(false)
        .max_wasm_stack(GUEST_STACK)
        .wasm_backtrace_details(wasmtime::WasmBacktraceDetails::Disable)
        .concurrency_support(false)
        .wasm_simd(false)
        .wasm_relaxed_simd(false)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_wide_arithmetic(false)
        .wasm_custom_page_sizes(false)
        .wasm_gc(false)
        .wasm_function_references(false)
        .wasm_exceptions(false)
        .wasm_extended_const(false);
    config
}

fn compile(engine: &Engine, bytes: &[u8]) -> Result<Component, PluginError> {
    let not_a_component = |reason: &str| Err(PluginError::NotAComponent(reason.to_owned()));
    // Magic, then a version: 1 for a core module, 13 and layer 1 for a component.
    match bytes {
        [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => {}
        [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => {
            return not_a_component("it is a core module; wrap it with `wasm-tools component new`");
        }
        [b'\0', b'a', b's', b'm', ..] => {
            return not_a_component("it is of an unknown binary version");
        }
        _ => return not_a_component("it does not start as WebAssembly does"),
    }
    // The compiler is not hardened against hostile files as the runtime is; a panic must not spread.
    match catch_unwind(AssertUnwindSafe(|| Component::from_binary(engine, bytes))) {
        Ok(Ok(component)) => Ok(component),
        Ok(Err(error)) => not_a_component(&format!("{error:#}")),
        Err(_) => not_a_component("the compiler gave up on it"),
    }
}

fn refuse_imports(engine: &Engine, component: &Component) -> Result<(), PluginError> {
    let kind = component.component_type();
    let imports: Vec<String> = kind.imports(engine).map(|(name, _)| name.to_owned()).collect();
    if imports.is_empty() { Ok(()) } else { Err(PluginError::MissingImport(imports)) }
}

fn check_version(engine: &Engine, component: &Component) -> Result<(), PluginError> {
    let kind = component.component_type();
    let exports: Vec<&str> = kind.exports(engine).map(|(name, _)| name).collect();
    let spoken = exports.iter().filter_map(|name| name.strip_prefix(INTERFACE)?.strip_prefix('@'));
    let mut others = Vec::new();
    for version in spoken {
        if parse_version(version) == Some(VERSION) {
            return Ok(());
        }
        others.push(format!("{INTERFACE}@{version}"));
    }
    Err(incompatible(match (others.is_empty(), exports.is_empty()) {
        (false, _) => others.join(", "),
        (true, false) => format!("another contract ({})", exports.join(", ")),
        (true, true) => "no contract at all: it exports nothing".to_owned(),
    }))
}

/// Major and minor.
fn parse_version(version: &str) -> Option<(u64, u64)> {
    let mut parts = version.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn incompatible(have: String) -> PluginError {
    PluginError::Incompatible { wanted: format!("{INTERFACE}@{}.{}", VERSION.0, VERSION.1), have }
}

fn backtrace(error: &wasmtime::Error) -> String {
    let Some(backtrace) = error.downcast_ref::<wasmtime::WasmBacktrace>() else {
        return String::new();
    };
    let frame = |frame: &wasmtime::FrameInfo| frame.func_name().unwrap_or("(unnamed)").to_owned();
    backtrace.frames().iter().map(frame).collect::<Vec<_>>().join("\n")
}

/// Holds a call to its memory.
pub(crate) struct Guard {
    memory_bytes: usize,
}

#[derive(Debug, thiserror::Error)]
#[error("memory limit reached")]
struct MemoryDenied;

/// Indirect calls of the largest guest need a few hundred entries.
const TABLE_ELEMENTS: usize = 20_000;

impl ResourceLimiter for Guard {
    fn memory_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        // An error, not a refusal: a refused guest aborts, and that would look like any other crash.
        if desired > self.memory_bytes { Err(wasmtime::Error::new(MemoryDenied)) } else { Ok(true) }
    }

    fn table_growing(
        &mut self,
        _current: usize,
        desired: usize,
        _maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        if desired > TABLE_ELEMENTS { Err(wasmtime::Error::new(MemoryDenied)) } else { Ok(true) }
    }

    fn instances(&self) -> usize {
        // A component of one module has the module, the adapter's shim and its fix-up.
        4
    }

    fn memories(&self) -> usize {
        1
    }

    fn tables(&self) -> usize {
        4
    }
}
