//! Loading models in the background, and again when the settings change or a GPU is lost.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::model::{self, ModelSource, ModelState, ModelWatch, RunOptions};
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
}

impl Loader {
    /// A loader; nothing is loaded yet.
    pub fn new(options: RunOptions, plugins: PluginFiles) -> Arc<Self> {
        let (state, _) = watch::channel(ModelState::Loading { what: "waiting to load a model".into() });
        Arc::new(Self { state, wanted: Mutex::default(), options, plugins, first: None })
    }

    /// A loader of a second model: it begins when the one that `first` follows is there, so that each finds
    /// the memory that was meant for it.
    fn after(first: ModelWatch, options: RunOptions, plugins: PluginFiles) -> Arc<Self> {
        let (state, _) = watch::channel(ModelState::Unset);
        Arc::new(Self { state, wanted: Mutex::default(), options, plugins, first: Some(first) })
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
            Some(wanted) => self.start(wanted, self.options.clone()),
        }
    }

    fn start(self: &Arc<Self>, wanted: Wanted, options: RunOptions) {
        let what = format!("loading {}", wanted.source.name());
        self.state.send_replace(ModelState::Loading { what });
        let loader = Arc::clone(self);
        let started = std::thread::Builder::new()
            .name("redstart-load".into())
            .spawn(move || loader.load_and_tell(&wanted, options));
        if let Err(error) = started {
            self.state
                .send_replace(ModelState::Failed { message: format!("cannot start a thread: {error}") });
        }
    }

    fn load_and_tell(self: &Arc<Self>, wanted: &Wanted, options: RunOptions) {
        if let Some(first) = &self.first {
            wait_until_loaded(first.clone());
        }
        let options = RunOptions { threads: wanted.threads, ..options }.beside(wanted.beside.as_deref());
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            model::load(&wanted.source, &options, &self.plugins)
        }))
        .unwrap_or_else(|_| {
            let name = wanted.source.name();
            Err(format!("loading {name} stopped by a defect of Redstart; please report it"))
        });
        let newest = self.wanted();
        if newest.as_ref() == Some(wanted) {
            self.state.send_replace(match loaded {
                Ok(model) => ModelState::Ready(Arc::new(model)),
                Err(message) => ModelState::Failed { message },
            });
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Option<Wanted>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Blocks while a model is on its way.
fn wait_until_loaded(mut model: ModelWatch) {
    let there = model.wait_for(|state| !matches!(state, ModelState::Loading { .. }));
    match tokio::runtime::Builder::new_current_thread().build() {
        // An error means that nobody loads any more.
        Ok(runtime) => drop(runtime.block_on(there)),
        Err(error) => tracing::warn!(%error, "the second model does not wait for the first"),
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
