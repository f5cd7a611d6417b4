//! A loaded plugin: its calls, and its standing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use wasmtime::Store;

use crate::check;
use crate::error::PluginError;
use crate::host::{Guard, PluginHost, Sandbox};
use crate::prompt::bindings::{PromptPlugin, PromptPluginPre};
use crate::prompt::{Answer, Context, Info, Prompt};
use crate::workers::{GuestThread, Outcome};

/// A call that takes less may be made where an editor's messages are handled. Most take a tenth of a millisecond.
const QUICK: Duration = Duration::from_millis(2);

/// A plugin ready to be called. Cheap to clone; the clones share their standing.
#[derive(Clone)]
pub struct Plugin {
    host: Arc<PluginHost>,
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    info: Info,
    pre: PromptPluginPre<Guard>,
    /// For the next call.
    ready: Mutex<Option<Instance>>,
    /// Whether the last call took less than [`QUICK`].
    quick: AtomicBool,
    standing: Mutex<Standing>,
}

/// A plugin's code with memory of its own, for one call.
struct Instance {
    store: Store<Guard>,
    exports: PromptPlugin,
}

#[derive(Default)]
struct Standing {
    /// Failures since the last success.
    failures: u32,
    last: String,
}

impl Plugin {
    /// Asks the plugin what it is; the first of its code to run.
    pub(crate) fn new(
        host: Arc<PluginHost>,
        name: &str,
        pre: PromptPluginPre<Guard>,
    ) -> Result<Self, PluginError> {
        let of_job = pre.clone();
        let info = host.run_blocking(move |thread| {
            let sandbox = thread.sandbox();
            let Instance { mut store, exports } = Instance::new(sandbox, &of_job)?;
            sandbox.run(&mut store, |store| exports.redstart_prompt_plugin().call_describe(store))
        })?;
        check::info(&info)?;
        let (ready, quick, standing) = Default::default();
        let shared = Shared { name: name.to_owned(), info, pre, ready, quick, standing };
        Ok(Self { host, shared: Arc::new(shared) })
    }

    /// The name it was loaded under.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// What the plugin says of itself.
    pub fn info(&self) -> &Info {
        &self.shared.info
    }

    /// Whether the plugin builds prompts for this task (`complete`, `review`).
    pub fn has_task(&self, task: &str) -> bool {
        self.shared.info.tasks.iter().any(|known| known == task)
    }

    /// Runs `job` on a thread of the host's on which plugins can be called, so that what belongs before and after a
    /// call happens without a change of thread. It is queued now. Dropping the outcome before the job has begun
    /// cancels it; later it runs to its end. A job that panics panics where it is waited for.
    pub fn run<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> Outcome<T> {
        self.host.run(job)
    }

    /// [`run`](Self::run) for what somebody waits for: done now, on the calling thread, if the plugin's last call was quick. To
    /// wake another thread takes as long as the call, and milliseconds where other work has the processors.
    ///
    /// A plugin that is slow for once keeps the calling thread, for [`crate::Limits::deadline`] at most; one that always is
    /// never does.
    pub fn run_urgent<T: Send + 'static>(
        &self,
        job: impl FnOnce(&GuestThread<'_>) -> T + Send + 'static,
    ) -> Outcome<T> {
        if self.shared.quick.load(Ordering::Relaxed) { self.host.run_here(job) } else { self.run(job) }
    }

    /// [`build_on`](Self::build_on) one of the host's threads.
    ///
    /// # Errors
    /// Why there is no prompt.
    pub async fn build(&self, context: Context) -> Result<Prompt, PluginError> {
        let plugin = self.clone();
        self.run(move |thread| plugin.build_on(thread, &context)).await
    }

    /// The prompt for this context, checked: every control token is one the model has.
    ///
    /// # Errors
    /// Why there is none; the caller falls back to [`crate::builtin::complete`] or tells the user.
    pub fn build_on(&self, thread: &GuestThread<'_>, context: &Context) -> Result<Prompt, PluginError> {
        self.call(thread, check::context_bytes(context), |plugin, store| {
            let prompt = plugin.redstart_prompt_plugin().call_build(store, context)?;
            Ok(prompt.map_err(PluginError::Returned).and_then(|prompt| check::prompt(prompt, context)))
        })
    }

    /// What the model's raw text means, for the same context that the prompt was built from.
    ///
    /// # Errors
    /// As [`Plugin::build_on`].
    pub async fn finish(&self, context: Arc<Context>, raw: String) -> Result<Answer, PluginError> {
        let plugin = self.clone();
        self.run(move |thread| {
            let input_bytes = check::context_bytes(&context) + raw.len();
            plugin.call(thread, input_bytes, |plugin, store| {
                let answer = plugin.redstart_prompt_plugin().call_finish(store, &context, &raw)?;
                Ok(answer.map_err(PluginError::Returned).and_then(|answer| check::answer(answer, &context)))
            })
        })
        .await
    }

    /// Why the plugin is not called any more, if it is not.
    pub fn suspended(&self) -> Option<PluginError> {
        let standing = self.standing();
        (standing.failures >= self.host.limits().failures)
            .then(|| PluginError::Suspended { failures: standing.failures, last: standing.last.clone() })
    }

    /// Gives a suspended plugin another chance.
    pub fn resume(&self) {
        *self.standing() = Standing::default();
    }

    fn call<T>(
        &self,
        thread: &GuestThread<'_>,
        input_bytes: usize,
        call: impl FnOnce(&PromptPlugin, &mut Store<Guard>) -> wasmtime::Result<Result<T, PluginError>>,
    ) -> Result<T, PluginError> {
        if let Some(suspended) = self.suspended() {
            return Err(suspended);
        }
        let limit = self.host.limits().input_bytes;
        if input_bytes > limit {
            return Err(PluginError::ContextTooLarge { bytes: input_bytes, limit });
        }
        let begun = Instant::now();
        let sandbox = thread.sandbox();
        let mut instance = self.shared.next_instance(sandbox);
        let result = match &mut instance {
            Ok(Instance { store, exports }) => {
                let call = || sandbox.run(store, |store| call(exports, store)).flatten();
                catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| Err(lost()))
            }
            Err(error) => Err(error.clone()),
        };
        self.shared.quick.store(begun.elapsed() < QUICK, Ordering::Relaxed);
        self.shared.note(&result);
        let shared = Arc::clone(&self.shared);
        // Nobody waits until its memory is given back, nor until that of the next one is there.
        thread.afterwards(move |sandbox| {
            drop(instance);
            shared.make_ready(sandbox);
        });
        result
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.shared.standing()
    }
}

impl Instance {
    fn new(sandbox: &Sandbox, pre: &PromptPluginPre<Guard>) -> Result<Self, PluginError> {
        let mut store = sandbox.store();
        let exports = sandbox.run(&mut store, |store| pre.instantiate(store))?;
        Ok(Self { store, exports })
    }
}

impl Shared {
    /// An instance that nobody has called yet.
    fn next_instance(&self, sandbox: &Sandbox) -> Result<Instance, PluginError> {
        let ready = self.ready().take();
        ready.map_or_else(|| Instance::new(sandbox, &self.pre), Ok)
    }

    /// Sees to it that the next call finds an instance: making one takes longer than most calls.
    fn make_ready(&self, sandbox: &Sandbox) {
        if self.ready().is_none() {
            // What keeps it from being made is said to the call that needs it.
            let next = Instance::new(sandbox, &self.pre).ok();
            *self.ready() = next;
        }
    }

    fn ready(&self) -> MutexGuard<'_, Option<Instance>> {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn standing(&self) -> MutexGuard<'_, Standing> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note<T>(&self, result: &Result<T, PluginError>) {
        let mut standing = self.standing();
        match result {
            Err(error) if error.is_misbehaviour() => {
                standing.failures += 1;
                standing.last = error.to_string();
                tracing::warn!(plugin = self.name, failures = standing.failures, %error, "plugin failed");
            }
            _ => *standing = Standing::default(),
        }
    }
}

/// The call panicked in the host.
fn lost() -> PluginError {
    PluginError::Sandbox("the call was lost; the log says more".to_owned())
}
