//! The prompt plugins a server runs: the shipped ones, and files the user named in their place.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use redstart_plugins::shipped;
use redstart_plugins::{Limits, Plugin, PluginHost};

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
        let host = match PluginHost::new(Limits::default()) {
            Ok(host) => host,
            Err(error) => {
                problems.push(format!("prompt plugins are off: {error}"));
                return (plugins, problems);
            }
        };
        for (name, bytes) in [("complete", shipped::COMPLETE), ("review", shipped::REVIEW)] {
            plugins.add(&host, name, bytes, &mut problems);
        }
        for file in &files.0 {
            let name = file.display().to_string();
            match std::fs::read(file) {
                Ok(bytes) => plugins.add(&host, &name, &bytes, &mut problems),
                Err(error) => problems.push(format!("plugin {name} cannot be read: {error}; it is not used")),
            }
        }
        (plugins, problems)
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

    fn add(&mut self, host: &Arc<PluginHost>, name: &str, bytes: &[u8], problems: &mut Vec<String>) {
        let plugin = match host.load(name, bytes) {
            Ok(plugin) => Arc::new(plugin),
            Err(error) => {
                problems.push(format!("plugin {name} cannot be used: {error}"));
                return;
            }
        };
        let tasks = &plugin.info().tasks;
        if tasks.iter().any(|task| task == "complete") {
            self.complete = Some(Arc::clone(&plugin));
        }
        if tasks.iter().any(|task| task == "review") {
            self.review = Some(Arc::clone(&plugin));
        }
    }
}
