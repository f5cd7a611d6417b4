//! The prompt plugins a server runs: the shipped ones, and files the user named in their place.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::future::Either;
use redstart_engine::request::Priority;
use redstart_plugins::shipped;
use redstart_plugins::{GuestThread, Limits, Plugin, PluginHost};

/// Plugin files given on the command line; a later one replaces an earlier one's tasks.
#[derive(Clone, Debug, Default)]
pub struct PluginFiles(pub Vec<PathBuf>);

/// One plugin per task. A task without one uses the built-in prompt, or cannot be done.
pub struct Plugins {
    /// Builds completion prompts.
    pub complete: Option<Arc<Plugin>>,
    /// Builds review prompts and reads the answers.
    pub review: Option<Arc<Plugin>>,
    notices: Mutex<Notices>,
}

/// Failures to tell the user, once per plugin.
#[derive(Default)]
struct Notices {
    told: HashSet<String>,
    pending: Vec<String>,
}

impl Plugins {
    /// Compiles the plugins. A plugin that does not load costs its task's plugin, never the server:
    /// the second value says what went wrong, for the user.
    pub fn load(files: &PluginFiles) -> (Self, Vec<String>) {
        let mut plugins = Self { complete: None, review: None, notices: Mutex::default() };
        let mut problems = Vec::new();
        let host = match cache_folder() {
            Some(folder) => PluginHost::with_cache(Limits::default(), folder),
            None => PluginHost::new(Limits::default()),
        };
        let host = match host {
            Ok(host) => host,
            Err(error) => {
                problems.push(format!("prompt plugins are off: {error}"));
                return (plugins, problems);
            }
        };
        // The compiler takes some hundred milliseconds for all of them: each on its own thread.
        let loaded: Vec<Result<Plugin, String>> = std::thread::scope(|scope| {
            let shipped = [("complete", shipped::COMPLETE), ("review", shipped::REVIEW)];
            let shipped = shipped.map(|(name, bytes)| scope.spawn(|| load(&host, name, bytes)));
            let given = files.0.iter().map(|file| {
                let host = &host;
                scope.spawn(move || load_file(host, file))
            });
            let threads: Vec<_> = shipped.into_iter().chain(given).collect();
            let panicked = |_| Err("compiling a plugin panicked; it is not used".to_owned());
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(panicked)).collect()
        });
        for plugin in loaded {
            match plugin {
                Ok(plugin) => plugins.add(plugin),
                Err(problem) => problems.push(problem),
            }
        }
        (plugins, problems)
    }

    /// Runs `job` where completion prompts are built: on one of the plugin's threads, at once, or, if somebody waits for it
    /// and the plugin is quick, on the caller's; without a plugin there too, when the future is polled. A job that panics panics
    /// where it is waited for.
    pub(crate) fn run<T, F>(&self, priority: Priority, job: F) -> impl Future<Output = T> + Send + use<T, F>
    where
        T: Send + 'static,
        F: FnOnce(Option<&GuestThread<'_>>) -> T + Send + 'static,
    {
        match &self.complete {
            Some(plugin) if priority == Priority::Typing => {
                Either::Left(plugin.run_urgent(|thread| job(Some(thread))))
            }
            Some(plugin) => Either::Left(plugin.run(|thread| job(Some(thread)))),
            None => Either::Right(async move { job(None) }),
        }
    }

    /// Records that a plugin failed while typing, where the built-in prompt serves instead.
    pub fn report(&self, plugin: &Plugin, error: &str) {
        let name = &plugin.info().name;
        tracing::warn!(plugin = name, error, "plugin failed; using the built-in prompt");
        let mut notices = self.notices.lock().unwrap_or_else(PoisonError::into_inner);
        if notices.told.insert(name.clone()) {
            notices.pending.push(format!(
                "The prompt plugin {name} failed ({error}). Redstart uses its built-in prompt."
            ));
        }
    }

    /// Failures not yet told.
    pub fn take_notices(&self) -> Vec<String> {
        std::mem::take(&mut self.notices.lock().unwrap_or_else(PoisonError::into_inner).pending)
    }

    fn add(&mut self, plugin: Plugin) {
        let plugin = Arc::new(plugin);
        if plugin.has_task("complete") {
            self.complete = Some(Arc::clone(&plugin));
        }
        if plugin.has_task("review") {
            self.review = Some(plugin);
        }
    }
}

fn load(host: &Arc<PluginHost>, name: &str, bytes: &[u8]) -> Result<Plugin, String> {
    host.load(name, bytes).map_err(|error| format!("plugin {name} cannot be used: {error}"))
}

fn load_file(host: &Arc<PluginHost>, file: &Path) -> Result<Plugin, String> {
    let name = file.display().to_string();
    let bytes = std::fs::read(file)
        .map_err(|error| format!("plugin {name} cannot be read: {error}; it is not used"))?;
    load(host, &name, &bytes)
}

/// Where compiled plugins are kept: the user's cache folder, as the system has it.
fn cache_folder() -> Option<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let caches = absolute("XDG_CACHE_HOME").or_else(|| {
        let below_home = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        absolute("HOME").map(|home| home.join(below_home))
    })?;
    Some(caches.join("redstart/plugins"))
}
