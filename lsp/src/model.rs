//! A model that serves: from its files to a running engine, with what builds its prompts.
//!
//! Loading takes from milliseconds (the embedded model) to seconds; the server answers meanwhile. So a
//! [`Loader`](crate::loader::Loader) works on a thread of its own and everyone else follows a [`ModelWatch`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::generator::{Generator, ModelInfo};
use redstart_engine::synthetic::SyntheticModel;
use redstart_engine::tokenizer::Tokenizer;
use redstart_plugins::prompt::ChatFrame;
use redstart_plugins::{Assembler, Tokenize};
use serde::Deserialize;
use tokio::sync::watch;

use crate::backend::{self, Placed, Weights};
use crate::chat;
use crate::embedded;
use crate::plugins::{PluginFiles, Plugins};

/// Where the model stands.
#[derive(Clone)]
pub enum ModelState {
    /// Being loaded; `what` is for people: `loading Qwen2.5-Coder-1.5B-AWQ`.
    Loading {
        /// What is going on.
        what: String,
    },
    /// Ready to serve.
    Ready(Arc<LoadedModel>),
    /// Will not come; the message says why and what to do.
    Failed {
        /// For the user.
        message: String,
    },
    /// No model was asked for. Only of the one for reviews, where the model for typing then does both.
    Unset,
}

impl ModelState {
    /// The model, when it can serve.
    pub(crate) fn ready(&self) -> Result<Arc<LoadedModel>, String> {
        match self {
            Self::Ready(model) => Ok(Arc::clone(model)),
            Self::Loading { what } => Err(format!("the model is not ready: {what}")),
            Self::Failed { message } => Err(message.clone()),
            Self::Unset => Err("no model was asked for".to_owned()),
        }
    }
}

/// Text whose tokens are remembered: the windows of a few documents.
pub const SEGMENT_CACHE_BYTES: usize = 1 << 20;

/// Synthetic models have the same weights every time.
pub const SYNTHETIC_SEED: u64 = 1;

/// Follows the model's state; cloned freely.
pub type ModelWatch = watch::Receiver<ModelState>;

/// A model that can serve, with what its directory says about prompts and the plugins that build them.
pub struct LoadedModel {
    /// Generates.
    pub generator: Arc<dyn Generator>,
    /// How the model frames a conversation, or why it cannot: without it there are no reviews.
    pub chat: Result<ChatFrame, String>,
    /// How the model likes its prompts.
    pub hints: PromptHints,
    /// What builds prompts.
    pub plugins: Plugins,
    /// What turns them into this model's tokens.
    pub assembler: Assembler,
    /// What went wrong without being fatal, for the user.
    pub warnings: Vec<String>,
    /// How long loading took.
    pub load_time: Duration,
}

impl LoadedModel {
    /// Whether the model can follow instructions.
    ///
    /// # Errors
    /// Why not and what to install, in words for the user.
    pub fn can_review(&self) -> Result<(), String> {
        match &self.chat {
            Ok(_) => Ok(()),
            Err(why) => Err(format!(
                "{} completes code but cannot review it: {why}. Give --model (or the setting \
                 \"model\") the directory of an instruct model, such as Qwen2.5-Coder-1.5B-Instruct-AWQ",
                self.generator.model().name
            )),
        }
    }
}

/// `redstart.json` in a model's directory: what its config does not say about prompts. All optional.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct PromptHints {
    /// Order of a fill-in-the-middle prompt: `line-last` (Qwen2.5-Coder and most), `suffix-line-last`,
    /// `suffix-first` or `prefix-first`.
    pub fim_layout: String,
    /// Longest completion prompt the model does well with, in tokens.
    pub window_tokens: usize,
    /// Most tokens of text from elsewhere in the workspace, beside the window; 0 for a model that was trained on
    /// single files.
    pub context_tokens: usize,
    /// Suggestions whose first line has a lower mean token probability (0 to 1, geometric) are not shown
    /// while typing. A weak model is right more often than not only above some level.
    pub min_confidence: f32,
}

impl Default for PromptHints {
    fn default() -> Self {
        // 2,048 tokens are some 200 lines: prefilled cold on a CPU in a few seconds, and once.
        Self {
            fim_layout: "line-last".into(),
            window_tokens: 2048,
            context_tokens: 1024,
            min_confidence: 0.0,
        }
    }
}

/// Which weights to load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// The model inside the binary.
    Embedded,
    /// A Hugging Face directory.
    Directory(PathBuf),
    /// Random weights in the shapes of a real model, to measure speed with.
    Synthetic(SyntheticModel),
}

impl ModelSource {
    /// `None` is the embedded model.
    pub fn from_option(directory: Option<PathBuf>) -> Self {
        directory.map_or(Self::Embedded, Self::Directory)
    }

    /// Name for people.
    pub fn name(&self) -> String {
        match self {
            Self::Embedded => embedded::NAME.into(),
            Self::Directory(directory) => {
                let full = directory.canonicalize().unwrap_or_else(|_| directory.clone());
                full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
            }
            Self::Synthetic(model) => format!("synthetic {}", model.name()),
        }
    }

    /// What went wrong, with the directory where there is one.
    fn explain(&self, error: &dyn std::fmt::Display) -> String {
        match self {
            Self::Directory(directory) => format!("cannot load {}: {error}", directory.display()),
            Self::Embedded | Self::Synthetic(_) => error.to_string(),
        }
    }
}

/// How to run the model.
#[derive(Clone, Debug, Default)]
pub struct RunOptions {
    /// What computes.
    pub backend: BackendChoice,
    /// Worker threads of the CPU backend; `None` lets it choose.
    pub threads: Option<usize>,
    /// Keep activations in float32 (slower; for checking). CPU only.
    pub exact: bool,
    /// How keys and values are kept.
    pub kv: KvCacheType,
    /// What concerns a GPU only.
    pub gpu: GpuOptions,
    /// Size of the KV cache; `None` leaves it to the backend.
    pub kv_cache: Option<KvCacheSize>,
    /// Limits of the scheduler. Its `kv_cache` is overridden.
    pub engine: EngineOptions,
}

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum BackendChoice {
    /// A GPU where there is one that can, else the processor. The model inside this program always runs on
    /// the processor: it is too small to gain
    #[default]
    Auto,
    /// An NVIDIA GPU (Ampere or newer); an error where there is none
    Cuda,
    /// The processor
    Cpu,
}

/// The KV cache's number formats.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum KvCacheType {
    /// 16-bit floating point: closest to the model
    #[default]
    F16,
    /// 8-bit integers, on the processor: nearly twice as many tokens in the same memory, and faster answers
    /// after long prompts; the model's probabilities become a little less exact
    Int8,
    /// 8-bit floating point, on a GPU: twice as many tokens in the same memory; a little less exact
    Fp8,
}

/// How the output head is kept on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum HeadType {
    /// 16-bit floating point, as the model has it
    #[default]
    F16,
    /// Rounded to 8-bit integers: half the memory to read for every token; a little less exact
    Int8,
}

/// How the layers' weights are kept on a GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum WeightType {
    /// As the model has them
    #[default]
    Model,
    /// Rounded to 8-bit floating point where the model has 16-bit weights: half the memory; less exact
    Fp8,
}

/// What concerns a GPU only.
#[derive(Clone, Debug, PartialEq)]
pub struct GpuOptions {
    /// Share of the GPU's memory that may be used, 0 to 1, by all who use it.
    pub memory_utilization: f32,
    /// The output head's format.
    pub head: HeadType,
    /// The layers' format.
    pub weights: WeightType,
    /// Bytes of that memory to leave to a second model.
    pub reserved_bytes: u64,
    /// Whether others' work on the GPU goes first.
    pub yields: bool,
}

impl Default for GpuOptions {
    fn default() -> Self {
        // A desktop, a browser and an editor take one to two GB of a card that also shows the screen.
        Self {
            memory_utilization: 0.85,
            head: HeadType::default(),
            weights: WeightType::default(),
            reserved_bytes: 0,
            yields: false,
        }
    }
}

impl RunOptions {
    /// These options, with room left for a second model.
    #[must_use]
    pub fn beside(mut self, second: Option<&Path>) -> Self {
        self.gpu.reserved_bytes = second.map_or(0, memory_of_second);
        self
    }

    /// These options, for a second model: a review gives way to typing.
    #[must_use]
    pub fn for_reviews(&self) -> Self {
        let mut options = self.clone();
        options.gpu.yields = true;
        options
    }
}

/// Memory that a second model will need: its weights, and keys and values for some long reviews.
fn memory_of_second(directory: &Path) -> u64 {
    const CACHE_AND_SCRATCH: u64 = 1 << 30;
    let files = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let weights: u64 = files
        .filter(|file| file.path().extension().is_some_and(|extension| extension == "safetensors"))
        .filter_map(|file| Some(file.metadata().ok()?.len()))
        .sum();
    weights + CACHE_AND_SCRATCH
}

/// A state that never changes: a model that is already there.
pub fn ready(model: LoadedModel) -> ModelWatch {
    watch::channel(ModelState::Ready(Arc::new(model))).1
}

/// A model that can serve, and what to watch of the engine behind it.
pub struct Served {
    /// The model.
    pub model: LoadedModel,
    /// Becomes a reason when the engine stops by itself.
    pub failure: watch::Receiver<Option<String>>,
    /// Whether it runs on a GPU.
    pub on_gpu: bool,
}

/// Loads a model and the plugins, both at once.
///
/// # Errors
/// A message for the user: what was wrong, where, and what to do.
pub fn load(source: &ModelSource, options: &RunOptions, files: &PluginFiles) -> Result<LoadedModel, String> {
    load_and_watch(source, options, files).map(|served| served.model)
}

/// As [`load`], for whoever starts another engine when this one fails.
///
/// # Errors
/// As there.
pub fn load_and_watch(
    source: &ModelSource,
    options: &RunOptions,
    files: &PluginFiles,
) -> Result<Served, String> {
    let started = Instant::now();
    let (loaded, plugins) = std::thread::scope(|scope| {
        let plugins = scope.spawn(|| Plugins::load(files));
        (OpenModel::open(source).and_then(|model| model.load(options)), plugins.join())
    });
    let loaded = loaded?;
    let (plugins, mut warnings) = plugins.map_err(|_| "loading the prompt plugins panicked".to_owned())?;
    warnings.extend(loaded.placed.notice.clone());
    let on_gpu = loaded.placed.on_gpu;
    let engine_options = loaded.engine_options(options);
    let (engine, directory) = loaded.start(engine_options)?;

    let tokenizer = engine.model().tokenizer.clone().ok_or_else(|| {
        format!("{} has no tokenizer.json; copy it there from where the weights came from", source.name())
    })?;
    let chat = chat::chat_frame(
        directory.read("tokenizer_config.json").as_deref(),
        directory.read("chat_template.jinja").as_deref(),
        &tokenizer.control_tokens(),
    )
    .and_then(|frame| frame.ok_or_else(|| "it has no chat template".to_owned()));
    let hints = prompt_hints(&directory)?;
    let assembler = Assembler::new(Arc::new(PromptTokenizer(tokenizer)), SEGMENT_CACHE_BYTES);
    let failure = engine.failure();
    let generator = Arc::new(engine);
    let load_time = started.elapsed();
    let model = LoadedModel { generator, chat, hints, plugins, assembler, warnings, load_time };
    Ok(Served { model, failure, on_gpu })
}

/// Loads weights and starts the engine, without plugins or chat: what `inspect` needs too.
///
/// # Errors
/// A message for the user.
pub fn load_engine(source: &ModelSource, options: &RunOptions) -> Result<(Engine, ModelFiles), String> {
    let loaded = OpenModel::open(source)?.load(options)?;
    let engine_options = loaded.engine_options(options);
    loaded.start(engine_options)
}

/// A model whose files are open and whose weights no backend has yet.
pub struct OpenModel {
    /// Its weights, or what they will be made up from.
    pub weights: Weights,
    source: ModelSource,
    tokenizer: Option<Arc<Tokenizer>>,
    files: ModelFiles,
}

impl OpenModel {
    /// Opens the files. A synthetic model has none.
    ///
    /// # Errors
    /// A message for the user.
    pub fn open(source: &ModelSource) -> Result<Self, String> {
        let files = ModelFiles::new(source);
        let weights = match source {
            ModelSource::Embedded => {
                Checkpoint::from_static(embedded::NAME, embedded::CONFIG, embedded::WEIGHTS)
                    .map(Weights::Checkpoint)
            }
            ModelSource::Directory(directory) => Checkpoint::open(directory).map(Weights::Checkpoint),
            ModelSource::Synthetic(model) => Ok(Weights::Synthetic(*model)),
        }
        .map_err(|error| source.explain(&error))?;
        let tokenizer = match files.read("tokenizer.json") {
            Some(bytes) => {
                let parsed = Tokenizer::from_bytes(&bytes)
                    .map_err(|error| source.explain(&format!("tokenizer.json: {error}")))?;
                Some(Arc::new(parsed))
            }
            None => None,
        };
        Ok(Self { weights, source: source.clone(), tokenizer, files })
    }

    /// Makes the weights ready to compute with. The files are closed afterwards.
    ///
    /// # Errors
    /// A message for the user.
    pub fn load(self, options: &RunOptions) -> Result<LoadedBackend, String> {
        let placed = backend::place(&self.weights, &self.source, options)
            .map_err(|error| self.source.explain(&error))?;
        let config = self.weights.config();
        let info = ModelInfo {
            name: self.source.name(),
            description: placed.backend.name(),
            max_model_len: config.max_position_embeddings,
            vocab_size: config.vocab_size,
            tokenizer: self.tokenizer,
        };
        let eos_token_ids = config.eos_token_ids;
        Ok(LoadedBackend { placed, info, source: self.source, eos_token_ids, files: self.files })
    }
}

/// A backend that holds a model's weights, and what an engine must know of the model.
pub struct LoadedBackend {
    /// Holds the weights.
    pub placed: Placed,
    /// Describes the model.
    pub info: ModelInfo,
    source: ModelSource,
    eos_token_ids: Vec<u32>,
    files: ModelFiles,
}

impl LoadedBackend {
    /// The engine options that `options` ask for, with the backend's own choices where they leave it the choice.
    fn engine_options(&self, options: &RunOptions) -> EngineOptions {
        let wanted = options.engine.clone();
        let default_rows = EngineOptions::default().max_batch_tokens;
        EngineOptions {
            kv_cache: options.kv_cache.unwrap_or(self.placed.kv_cache),
            max_batch_tokens: match self.placed.max_batch_tokens {
                Some(rows) if wanted.max_batch_tokens == default_rows => rows,
                _ => wanted.max_batch_tokens,
            },
            ..wanted
        }
    }

    /// Starts the engine's thread.
    ///
    /// # Errors
    /// A message for the user.
    pub fn start(self, options: EngineOptions) -> Result<(Engine, ModelFiles), String> {
        let Self { placed, info, source, eos_token_ids, files, .. } = self;
        let engine = Engine::start(placed.backend, info, eos_token_ids, options);
        Ok((engine.map_err(|error| source.explain(&error))?, files))
    }
}

/// The engine's tokenizer in the plugin host's eyes.
pub struct PromptTokenizer(pub Arc<Tokenizer>);

impl Tokenize for PromptTokenizer {
    fn encode(&self, text: &str) -> Vec<u32> {
        self.0.encode(text)
    }

    fn control_token(&self, name: &str) -> Option<u32> {
        self.0.control_token(name)
    }
}

fn prompt_hints(files: &ModelFiles) -> Result<PromptHints, String> {
    let Some(bytes) = files.read("redstart.json") else { return Ok(PromptHints::default()) };
    serde_json::from_slice(&bytes).map_err(|error| format!("redstart.json in the model's directory: {error}"))
}

/// The small files beside the weights.
pub struct ModelFiles {
    source: ModelSource,
}

impl ModelFiles {
    fn new(source: &ModelSource) -> Self {
        Self { source: source.clone() }
    }

    /// The bytes of a file, where there is one.
    pub fn read(&self, name: &str) -> Option<Vec<u8>> {
        match (&self.source, name) {
            (ModelSource::Directory(directory), _) => std::fs::read(directory.join(name)).ok(),
            (ModelSource::Embedded, "tokenizer.json") => Some(embedded::TOKENIZER.to_vec()),
            (ModelSource::Embedded, "redstart.json") => Some(embedded::PROMPT_HINTS.to_vec()),
            (ModelSource::Embedded | ModelSource::Synthetic(_), _) => None,
        }
    }
}
