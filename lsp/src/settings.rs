//! What the user can set: defaults, then the editor's `initializationOptions`, then its
//! configuration section `redstart`, each over the one before.
//!
//! ```json
//! {
//!   "model": "/models/Qwen2.5-Coder-7B-Instruct-AWQ",
//!   "reviewModel": "/models/Qwen2.5-Coder-14B-Instruct-AWQ",
//!   "threads": 8,
//!   "completion": {
//!     "enabled": true, "menu": "auto", "maxLines": 20, "ahead": "plugged-in", "record": false,
//!     "context": { "definitions": true, "similar": true, "openFiles": true, "recentEdits": true, "diagnostics": true }
//!   },
//!   "languages": { "markdown": { "enabled": false } }
//! }
//! ```
//!
//! A setting that is wrong costs a warning and its default, never the session.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::typing::options::Ahead;

/// Name of the section in an editor's configuration.
pub const SECTION: &str = "redstart";

/// The settings of a session.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// Model directory; `None` leaves the choice to the command line, and then to the embedded model.
    pub model: Option<PathBuf>,
    /// Directory of a second model, for reviews; `None` leaves the choice to the command line, and then the
    /// model for typing reviews too.
    pub review_model: Option<PathBuf>,
    /// Threads of the CPU backend; `None` lets the engine choose.
    pub threads: Option<usize>,
    /// Suggestions while typing.
    pub completion: CompletionSettings,
    /// By LSP language id.
    pub languages: BTreeMap<String, LanguageSettings>,
}

/// Settings under `completion`.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionSettings {
    /// Whether there are suggestions at all.
    pub enabled: bool,
    /// Whether suggestions are also offered in the completion menu.
    pub menu: CompletionMenu,
    /// Most lines in a suggestion; `None` lets the syntax decide.
    pub max_lines: Option<usize>,
    /// When to generate what may be wanted next before it is asked for.
    pub ahead: Ahead,
    /// Whether to keep a record, on this machine, of what was shown and accepted.
    pub record: bool,
    /// What of the workspace prompts may have.
    pub context: ContextSettings,
}

/// Settings under `completion.context`: which text from elsewhere prompts may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ContextSettings {
    /// Definitions behind the imports of the file.
    pub definitions: bool,
    /// Text of the workspace like that around the caret.
    pub similar: bool,
    /// Other open files.
    pub open_files: bool,
    /// What was edited lately.
    pub recent_edits: bool,
    /// What other servers say about the lines near the caret.
    pub diagnostics: bool,
}

impl ContextSettings {
    const ALL: Self =
        Self { definitions: true, similar: true, open_files: true, recent_edits: true, diagnostics: true };

    /// Whether any is wanted.
    pub fn any(&self) -> bool {
        self.definitions || self.similar || self.open_files || self.recent_edits || self.diagnostics
    }

    fn merge(&mut self, value: &Value, reader: &mut Reader) {
        if let Some(all) = value.as_bool() {
            let Self { definitions, similar, open_files, recent_edits, diagnostics } = self;
            for source in [definitions, similar, open_files, recent_edits, diagnostics] {
                *source = all;
            }
            return;
        }
        for (key, value) in reader.object("completion.context", value).into_iter().flatten() {
            let path = format!("completion.context.{key}");
            let source = match key.as_str() {
                "definitions" => &mut self.definitions,
                "similar" => &mut self.similar,
                "openFiles" => &mut self.open_files,
                "recentEdits" => &mut self.recent_edits,
                "diagnostics" => &mut self.diagnostics,
                _ => {
                    reader.unknown(path);
                    continue;
                }
            };
            if let Some(wanted) = reader.boolean(&path, value) {
                *source = wanted;
            }
        }
    }
}

impl Default for CompletionSettings {
    fn default() -> Self {
        Self {
            enabled: true,
            menu: CompletionMenu::Auto,
            max_lines: None,
            ahead: Ahead::On,
            record: false,
            context: ContextSettings::ALL,
        }
    }
}

/// Whether suggestions are offered in the completion menu.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CompletionMenu {
    /// In editors that cannot show inline completions.
    #[default]
    Auto,
    /// Always.
    On,
    /// Never.
    Off,
}

/// Settings under `languages.<id>`.
#[derive(Clone, Debug, PartialEq)]
pub struct LanguageSettings {
    /// Whether there are suggestions in this language.
    pub enabled: bool,
}

impl Settings {
    /// Whether suggestions are wanted in documents of this LSP language id.
    pub fn suggests_in(&self, language_id: &str) -> bool {
        self.completion.enabled && self.languages.get(language_id).is_none_or(|of| of.enabled)
    }

    /// Takes over what `value` sets and returns what is wrong with the rest, in words for the user.
    /// `value` is the section, or an object that has it under its name; `null` sets nothing.
    pub fn merge(&mut self, value: &Value) -> Vec<String> {
        let mut reader = Reader::default();
        let section = value.get(SECTION).unwrap_or(value);
        if let Some(object) = reader.object("the settings", section) {
            self.merge_section(object, &mut reader);
        }
        reader.warnings()
    }

    fn merge_section(&mut self, section: &Map<String, Value>, reader: &mut Reader) {
        for (key, value) in section {
            match key.as_str() {
                "model" => reader.path("model", value, &mut self.model),
                "reviewModel" => reader.path("reviewModel", value, &mut self.review_model),
                "threads" => reader.count("threads", value, &mut self.threads),
                "completion" => {
                    for (key, value) in reader.object("completion", value).into_iter().flatten() {
                        self.completion.merge(key, value, reader);
                    }
                }
                "languages" => {
                    for (id, value) in reader.object("languages", value).into_iter().flatten() {
                        self.merge_language(id, value, reader);
                    }
                }
                _ => reader.unknown(key.clone()),
            }
        }
    }

    fn merge_language(&mut self, id: &str, value: &Value, reader: &mut Reader) {
        let path = format!("languages.{id}");
        for (key, value) in reader.object(&path, value).into_iter().flatten() {
            let path = format!("{path}.{key}");
            match key.as_str() {
                "enabled" => {
                    if let Some(enabled) = reader.boolean(&path, value) {
                        self.languages.insert(id.to_owned(), LanguageSettings { enabled });
                    }
                }
                _ => reader.unknown(path),
            }
        }
    }
}

impl CompletionSettings {
    fn merge(&mut self, key: &str, value: &Value, reader: &mut Reader) {
        let path = format!("completion.{key}");
        match key {
            "enabled" => {
                if let Some(enabled) = reader.boolean(&path, value) {
                    self.enabled = enabled;
                }
            }
            "menu" => match value.as_str() {
                Some("auto") => self.menu = CompletionMenu::Auto,
                Some("on") => self.menu = CompletionMenu::On,
                Some("off") => self.menu = CompletionMenu::Off,
                _ => reader.wrong(&path, "\"auto\", \"on\" or \"off\"", value),
            },
            "maxLines" => reader.count(&path, value, &mut self.max_lines),
            "ahead" => match value.as_str().map(str::parse) {
                Some(Ok(ahead)) => self.ahead = ahead,
                _ => reader.wrong(&path, "\"on\", \"plugged-in\" or \"off\"", value),
            },
            "context" => self.context.merge(value, reader),
            "record" => {
                if let Some(record) = reader.boolean(&path, value) {
                    self.record = record;
                }
            }
            _ => reader.unknown(path),
        }
    }
}

/// Reads values and keeps account of what is wrong with them.
#[derive(Default)]
struct Reader {
    unknown: Vec<String>,
    wrong: Vec<String>,
}

impl Reader {
    fn object<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v Map<String, Value>> {
        if !value.is_object() && !value.is_null() {
            self.wrong(path, "an object", value);
        }
        value.as_object()
    }

    fn string<'v>(&mut self, path: &str, value: &'v Value) -> Option<&'v str> {
        if !value.is_string() && !value.is_null() {
            self.wrong(path, "a string", value);
        }
        value.as_str()
    }

    /// A path; an empty one is none.
    fn path(&mut self, path: &str, value: &Value, into: &mut Option<PathBuf>) {
        if let Some(text) = self.string(path, value) {
            *into = (!text.is_empty()).then(|| PathBuf::from(text));
        }
    }

    fn boolean(&mut self, path: &str, value: &Value) -> Option<bool> {
        if !value.is_boolean() && !value.is_null() {
            self.wrong(path, "true or false", value);
        }
        value.as_bool()
    }

    fn count(&mut self, path: &str, value: &Value, into: &mut Option<usize>) {
        match value.as_u64().and_then(|count| usize::try_from(count).ok()) {
            Some(count) if count > 0 => *into = Some(count),
            _ if value.is_null() => {}
            _ => self.wrong(path, "a whole number above zero", value),
        }
    }

    fn wrong(&mut self, path: &str, expected: &str, value: &Value) {
        self.wrong.push(format!("`{path}` should be {expected}, not {value}"));
    }

    fn unknown(&mut self, path: String) {
        self.unknown.push(path);
    }

    fn warnings(mut self) -> Vec<String> {
        if !self.unknown.is_empty() {
            let names: Vec<_> = self.unknown.iter().map(|key| format!("`{key}`")).collect();
            let plural = if names.len() == 1 { "setting" } else { "settings" };
            self.wrong.insert(0, format!("unknown {plural} {}", names.join(", ")));
        }
        self.wrong
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn everything_can_be_set_with_or_without_the_section_name() {
        let section = json!({
            "model": "/models/m",
            "reviewModel": "/models/r",
            "threads": 4,
            "completion": {
                "enabled": false, "menu": "on", "maxLines": 3, "ahead": "plugged-in", "record": true,
                "context": { "similar": false },
            },
            "languages": { "markdown": { "enabled": false } },
        });
        let mut plain = Settings::default();
        assert_eq!(plain.merge(&section), Vec::<String>::new());
        let mut named = Settings::default();
        assert_eq!(named.merge(&json!({ "redstart": section })), Vec::<String>::new());
        assert_eq!(plain, named);
        assert_eq!(plain.model, Some(PathBuf::from("/models/m")));
        assert_eq!(plain.review_model, Some(PathBuf::from("/models/r")));
        assert_eq!(plain.threads, Some(4));
        let completion = CompletionSettings {
            enabled: false,
            menu: CompletionMenu::On,
            max_lines: Some(3),
            ahead: Ahead::PluggedIn,
            record: true,
            context: ContextSettings { similar: false, ..ContextSettings::ALL },
        };
        assert_eq!(plain.completion, completion);
        assert!(!plain.languages["markdown"].enabled);
    }

    #[test]
    fn null_sets_nothing() {
        let mut settings = Settings::default();
        let value = json!({"model": null, "threads": null, "completion": {"enabled": null}});
        assert_eq!(settings.merge(&value), Vec::<String>::new());
        assert_eq!(settings.merge(&Value::Null), Vec::<String>::new());
        assert_eq!(settings, Settings::default());
    }

    #[test]
    fn one_warning_names_all_unknown_keys() {
        let mut settings = Settings::default();
        let value = json!({
            "modle": "x",
            "completion": { "menue": "on", "maxLines": 2 },
            "languages": { "rust": { "enable": true } },
        });
        assert_eq!(
            settings.merge(&value),
            ["unknown settings `completion.menue`, `languages.rust.enable`, `modle`"]
        );
        assert_eq!(settings.completion.max_lines, Some(2), "the rest holds");
    }

    #[test]
    fn ill_typed_values_are_named_with_what_they_should_be() {
        let mut settings = Settings::default();
        let value = json!({"threads": -1, "completion": {"enabled": "yes", "menu": 1}});
        assert_eq!(
            settings.merge(&value),
            [
                "`completion.enabled` should be true or false, not \"yes\"",
                "`completion.menu` should be \"auto\", \"on\" or \"off\", not 1",
                "`threads` should be a whole number above zero, not -1",
            ]
        );
        assert_eq!(settings, Settings::default());
        assert_eq!(settings.merge(&json!([1])), ["`the settings` should be an object, not [1]"]);
    }

    #[test]
    fn a_language_can_be_switched_off() {
        let mut settings = Settings::default();
        assert!(settings.suggests_in("rust"));
        settings.merge(&json!({"languages": {"rust": {"enabled": false}}}));
        assert!(!settings.suggests_in("rust"));
        assert!(settings.suggests_in("python"));
    }
}
