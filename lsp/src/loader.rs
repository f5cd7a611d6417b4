//! Loading models in the background, and again when the settings change or a GPU is lost.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::model::{
    self, BackendChoice, KvCacheType, ModelSource, ModelState, ModelWatch, RunOptions, Served,
};
use crate::plugins::PluginFiles;
use crate::settings::Settings;

/// What a load is of. An equal one need not be loaded again.
#[derive(Clone, PartialEq, Eq)]
struct Wanted {
    source: ModelSource,
    threads: Option<usize>,
    /// A second model that memory is left for.
    beside: Option<PathBuf>,
}

/// Loads one model at a time, on a thread of its own, and tells watchers.
pub struct Loader {
    state: watch::Sender<ModelState>,
    /// What was last asked for; an older load that ends later is thrown away.
    wanted: Mutex<Option<Wanted>>,
    options: RunOptions,
    plugins: PluginFiles,
    /// A model that loads before this one does.
    first: Option<ModelWatch>,
    /// What loads; another one in tests.
    load: LoadFunction,
}

type LoadFunction = fn(&ModelSource, &RunOptions, &PluginFiles) -> Result<Served, String>;

/// An engine that fails sooner than this after it was started is not started again: it would go on for ever.
const LEAST_SERVICE: Duration = Duration::from_secs(10);

impl Loader {
    /// A loader; nothing is loaded yet.
    pub fn new(options: RunOptions, plugins: PluginFiles) -> Arc<Self> {
        let (state, _) = watch::channel(ModelState::Loading { what: "waiting to load a model".into() });
        Arc::new(Self {
            state,
            wanted: Mutex::default(),
            options,
            plugins,
            first: None,
            load: model::load_and_watch,
        })
    }

    /// A loader of a second model: it begins when the one that `first` follows is there, so that each finds
    /// the memory that was meant for it.
    fn after(first: ModelWatch, options: RunOptions, plugins: PluginFiles) -> Arc<Self> {
        let (state, _) = watch::channel(ModelState::Unset);
        Arc::new(Self {
            state,
            wanted: Mutex::default(),
            options,
            plugins,
            first: Some(first),
            load: model::load_and_watch,
        })
    }

    /// Follows the state.
    pub fn watch(&self) -> ModelWatch {
        self.state.subscribe()
    }

    /// Starts loading `source` and returns at once. A model that was ready serves no longer.
    pub fn load(self: &Arc<Self>, source: ModelSource) {
        self.want(Some(Wanted { source, threads: self.options.threads, beside: None }));
    }

    /// Takes up what is wanted now, unless it is what was wanted before.
    fn want(self: &Arc<Self>, wanted: Option<Wanted>) {
        let mut last = self.wanted();
        if *last == wanted {
            return;
        }
        last.clone_from(&wanted);
        drop(last);
        match wanted {
            None => drop(self.state.send_replace(ModelState::Unset)),
            Some(wanted) => self.start(wanted),
        }
    }

    fn start(self: &Arc<Self>, wanted: Wanted) {
        let what = format!("loading {}", wanted.source.name());
        self.state.send_replace(ModelState::Loading { what });
        let loader = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("redstart-load".into())
            .spawn(move || loader.load_and_tell(&wanted));
        if let Err(error) = started {
            self.state
                .send_replace(ModelState::Failed { message: format!("cannot start a thread: {error}") });
        }
    }

    /// Loads until something serves or nothing can; then follows what serves to its end and, when its engine
    /// failed, loads again.
    fn load_and_tell(&self, wanted: &Wanted) {
        if let Some(first) = &self.first {
            wait_until(first.clone(), |state| !matches!(state, ModelState::Loading { .. }));
        }
        let options = RunOptions { threads: wanted.threads, ..self.options.clone() };
        let mut options = options.beside(wanted.beside.as_deref());
        let mut notice = None;
        loop {
            let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                (self.load)(&wanted.source, &options, &self.plugins)
            }))
            .unwrap_or_else(|_| {
                let name = wanted.source.name();
                Err(format!("loading {name} stopped by a defect of Redstart; please report it"))
            });
            let Served { mut model, failure, on_gpu } = match loaded {
                Ok(served) => served,
                Err(message) => return self.tell(wanted, ModelState::Failed { message }),
            };
            model.warnings.extend(notice.take());
            let ready = Instant::now();
            self.tell(wanted, ModelState::Ready(Arc::new(model)));

            wait_until(failure.clone(), Option::is_some);
            let Some(reason) = failure.borrow().clone() else { return };
            if self.wanted().as_ref() != Some(wanted) {
                return;
            }
            tracing::error!(%reason, "the engine stopped");
            match after_failure(&reason, on_gpu, ready.elapsed()) {
                Err(message) => return self.tell(wanted, ModelState::Failed { message }),
                Ok(told) => notice = Some(told),
            }
            if on_gpu {
                options.backend = BackendChoice::Cpu;
                options.kv = KvCacheType::F16;
            }
            let what = format!("loading {} again: the engine stopped ({reason})", wanted.source.name());
            self.tell(wanted, ModelState::Loading { what });
        }
    }

    /// Tells the state, unless something else is wanted by now.
    fn tell(&self, wanted: &Wanted, state: ModelState) {
        let newest = self.wanted();
        if newest.as_ref() == Some(wanted) {
            self.state.send_replace(state);
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Option<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether to start another engine after one that served for a while failed: what to tell the user when it is
/// there, or why not.
fn after_failure(reason: &str, on_gpu: bool, served: Duration) -> Result<String, String> {
    match (on_gpu, served >= LEAST_SERVICE) {
        (true, _) => Ok(format!(
            "the engine on the GPU stopped ({reason}); the processor serves until Redstart is started again"
        )),
        (false, true) => Ok(format!("the engine stopped ({reason}) and was started again")),
        (false, false) => Err(format!("the engine stopped: {reason}")),
    }
}

/// Blocks until the watched value is as wanted, or will change no more.
fn wait_until<T>(mut watched: watch::Receiver<T>, wanted: impl FnMut(&T) -> bool) {
    match tokio::runtime::Builder::new_current_thread().build() {
        // An error means that it will change no more.
        Ok(runtime) => drop(runtime.block_on(watched.wait_for(wanted))),
        Err(error) => tracing::warn!(%error, "a thread cannot wait"),
    }
}

/// Which models the command line asks for.
#[derive(Clone, Debug)]
pub struct Choice {
    /// The model for typing, and for all else where there is no second one.
    pub typing: ModelSource,
    /// A second model, for reviews.
    pub reviewing: Option<PathBuf>,
}

/// The model for typing and, where one is wanted, a second one for reviews. They share the memory of the
/// machine: the first leaves room for the second.
pub struct Models {
    typing: Arc<Loader>,
    reviewing: Arc<Loader>,
    options: RunOptions,
}

impl Models {
    /// Nothing is loaded yet.
    pub fn new(options: &RunOptions, plugins: &PluginFiles) -> Self {
        let typing = Loader::new(options.clone(), plugins.clone());
        // What the model for typing does not take is for this one.
        let reviewing = Loader::after(typing.watch(), options.for_reviews(), plugins.clone());
        Self { typing, reviewing, options: options.clone() }
    }

    /// Follows the model for typing.
    pub fn typing(&self) -> ModelWatch {
        self.typing.watch()
    }

    /// Follows the model for reviews.
    pub fn reviewing(&self) -> ModelWatch {
        self.reviewing.watch()
    }

    /// Loads what is asked for, unless it is what was asked for last. The command line's word stands above
    /// the settings'.
    pub fn apply(&self, command_line: &Choice, settings: &Settings) {
        let source = match (&command_line.typing, &settings.model) {
            (ModelSource::Embedded, Some(directory)) => ModelSource::Directory(directory.clone()),
            (given, _) => given.clone(),
        };
        let reviewing = command_line.reviewing.clone().or_else(|| settings.review_model.clone());
        let threads = self.options.threads.or(settings.threads);
        self.typing.want(Some(Wanted { source, threads, beside: reviewing.clone() }));
        self.reviewing.want(reviewing.map(|directory| Wanted {
            source: ModelSource::Directory(directory),
            threads,
            beside: None,
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// What makes an engine of [`fake_gpu`]'s fail, and what it was asked to run on.
    type FakeEngine = (watch::Sender<Option<String>>, BackendChoice);

    /// The test that is told of the engines that [`fake_gpu`] starts.
    static ENGINES: Mutex<Option<mpsc::Sender<FakeEngine>>> = Mutex::new(None);

    /// The embedded model, said to be on a GPU as long as a GPU is not ruled out.
    fn fake_gpu(_: &ModelSource, options: &RunOptions, files: &PluginFiles) -> Result<Served, String> {
        let model = model::load(&ModelSource::Embedded, &RunOptions::default(), files)?;
        let (failing, failure) = watch::channel(None);
        let engines = ENGINES.lock().unwrap();
        engines.as_ref().unwrap().send((failing, options.backend)).unwrap();
        Ok(Served { model, failure, on_gpu: options.backend != BackendChoice::Cpu })
    }

    #[test]
    fn a_lost_gpu_is_followed_by_the_processor_with_a_word_on_it() {
        let (sender, engines) = mpsc::channel();
        *ENGINES.lock().unwrap() = Some(sender);
        let (state, _) = watch::channel(ModelState::Unset);
        let loader = Arc::new(Loader {
            state,
            wanted: Mutex::default(),
            options: RunOptions::default(),
            plugins: PluginFiles::default(),
            first: None,
            load: fake_gpu,
        });
        let watching = loader.watch();
        loader.load(ModelSource::Embedded);
        let (gpu, backend) = engines.recv().unwrap();
        assert_eq!(backend, BackendChoice::Auto);
        wait_until(watching.clone(), |state| state.ready().is_ok());
        assert!(watching.borrow().ready().unwrap().warnings.is_empty());

        gpu.send_replace(Some("the GPU was lost (ECC error)".into()));
        let (processor, backend) = engines.recv().unwrap();
        assert_eq!(backend, BackendChoice::Cpu);
        wait_until(watching.clone(), |state| state.ready().is_ok_and(|model| !model.warnings.is_empty()));
        let warnings = watching.borrow().ready().unwrap().warnings.clone();
        assert!(warnings[0].contains("ECC error") && warnings[0].contains("processor"), "{warnings:?}");

        // One that fails at once would fail for ever.
        processor.send_replace(Some("it panicked".into()));
        wait_until(watching.clone(), |state| matches!(state, ModelState::Failed { .. }));
    }

    #[test]
    fn an_engine_that_served_for_a_while_is_started_again() {
        assert!(after_failure("it panicked", false, LEAST_SERVICE).is_ok());
        assert!(after_failure("it panicked", false, Duration::ZERO).is_err());
        assert!(after_failure("the GPU was lost", true, Duration::ZERO).is_ok());
    }
}
