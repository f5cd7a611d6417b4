//! A model's files: configuration and tensors by name.
//!
//! Tensors are safetensors, in one file or in shards listed by an index, memory-mapped: opening costs
//! the headers, and a backend that has repacked the weights can drop the checkpoint. Embedded models
//! are the same bytes without a directory.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use half::{bf16, f16};
use memmap2::Mmap;
#[cfg(unix)]
use memmap2::UncheckedAdvice;
use safetensors::tensor::{Dtype, SafeTensorError, SafeTensors};

use crate::awq::AwqLinear;
use crate::config::{ConfigError, ModelConfig};

/// An open model: its configuration and where each tensor lies.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    directory: Option<PathBuf>,
    config: ModelConfig,
    files: Vec<FileBytes>,
    tensors: HashMap<String, Location>,
}

#[derive(Debug)]
enum FileBytes {
    Mapped(Mmap),
    /// Memory that no file stands behind: pages that are given back come back as zeros.
    Anonymous(Mmap),
    Static(&'static [u8]),
}

#[derive(Debug)]
struct Location {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
    /// Whether its bytes were given back and are lost.
    lost: AtomicBool,
}

/// A tensor inside a checkpoint: row-major, little-endian, not necessarily aligned.
#[derive(Clone, Copy, Debug)]
pub struct Tensor<'a> {
    /// Its full name.
    pub name: &'a str,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: &'a [usize],
    /// The elements.
    pub bytes: &'a [u8],
}

/// The weights of one linear layer, in the form the checkpoint holds them.
#[derive(Clone, Copy, Debug)]
pub enum LinearWeights<'a> {
    /// AWQ int4.
    Awq(AwqLinear<'a>),
    /// A floating-point matrix `[out, in]`.
    Dense(Tensor<'a>),
}

/// Why a model's files could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The directory is not there.
    #[error("there is no model directory {0}")]
    NoDirectory(PathBuf),
    /// A file the directory must have is not there, or cannot be read.
    #[error("cannot read {path}: {detail}")]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: std::io::Error,
    },
    /// A file that was to be made cannot be.
    #[error("cannot write {path}: {detail}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        detail: std::io::Error,
    },
    /// The system does not give the memory for a checkpoint that lives there.
    #[error("cannot get {wanted_mb} MB of memory for the weights: {detail}")]
    NoMemory {
        /// Megabytes asked for.
        wanted_mb: usize,
        /// What the system said.
        detail: std::io::Error,
    },
    /// No weights in a known form.
    #[error(
        "{0} holds neither model.safetensors nor model.safetensors.index.json; only safetensors are supported"
    )]
    NoWeights(PathBuf),
    /// The configuration was refused.
    #[error("{model}: {source}")]
    Config {
        /// Which model.
        model: String,
        /// Why.
        source: ConfigError,
    },
    /// A safetensors file is damaged.
    #[error("{file} is damaged: {detail}; download it again")]
    DamagedFile {
        /// The file.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// The index of shards is damaged.
    #[error("{file} is not a safetensors index: {detail}")]
    DamagedIndex {
        /// The index.
        file: String,
        /// What is wrong with it.
        detail: String,
    },
    /// A shard that the index names is not there.
    #[error("the index of {model} names {shard} for tensor {tensor}, but that file is missing")]
    MissingShard {
        /// Which model.
        model: String,
        /// File name of the shard.
        shard: String,
        /// One tensor it should hold.
        tensor: String,
    },
    /// A tensor the model needs is not there.
    #[error("{model} has no tensor {tensor}{hint}")]
    MissingTensor {
        /// Which model.
        model: String,
        /// Its name.
        tensor: String,
        /// What else was looked for.
        hint: String,
    },
    /// A tensor's shape does not fit the configuration.
    #[error("tensor {tensor} has shape {found:?}, expected {expected:?} from config.json")]
    WrongShape {
        /// Its name.
        tensor: String,
        /// Shape in the file.
        found: Vec<usize>,
        /// Shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A tensor has an element type this engine does not read there.
    #[error("tensor {tensor} has element type {found}; supported: {supported}")]
    UnsupportedDtype {
        /// Its name.
        tensor: String,
        /// Type in the file.
        found: Dtype,
        /// Types accepted.
        supported: &'static str,
    },
    /// A value that would make every result NaN.
    #[error("tensor {tensor} holds {value} at element {index}; the checkpoint is damaged")]
    NotFinite {
        /// Its name.
        tensor: String,
        /// The value.
        value: f32,
        /// Flat index of the first one.
        index: usize,
    },
    /// A linear layer that cannot be quantized in the way the configuration says.
    #[error("{tensor}: {detail}")]
    BadQuantization {
        /// Its name.
        tensor: String,
        /// What does not fit.
        detail: String,
    },
}

impl Checkpoint {
    /// Opens a Hugging Face directory. Reads the configuration and the tensor headers, no weights.
    ///
    /// # Errors
    /// See [`CheckpointError`]; every message names the file or tensor.
    pub fn open(directory: &Path) -> Result<Self, CheckpointError> {
        if !directory.is_dir() {
            return Err(CheckpointError::NoDirectory(directory.to_owned()));
        }
        let absolute = directory.canonicalize().unwrap_or_else(|_| directory.to_owned());
        let name =
            absolute.file_name().map_or_else(|| "model".into(), |name| name.to_string_lossy().into_owned());
        let config_json = read(&directory.join("config.json"))?;
        let generation_config = std::fs::read(directory.join("generation_config.json")).ok();
        let config = ModelConfig::parse(&config_json, generation_config.as_deref())
            .map_err(|source| CheckpointError::Config { model: name.clone(), source })?;

        let mut checkpoint = Self {
            name,
            directory: Some(directory.to_owned()),
            config,
            files: Vec::new(),
            tensors: HashMap::new(),
        };
        let single = directory.join("model.safetensors");
        let index = directory.join("model.safetensors.index.json");
        if single.is_file() {
            checkpoint.add_file(&single.display().to_string(), FileBytes::Mapped(map(&single)?))?;
        } else if index.is_file() {
            checkpoint.add_shards(directory, &index)?;
        } else {
            return Err(CheckpointError::NoWeights(directory.to_owned()));
        }
        Ok(checkpoint)
    }

    /// A model compiled into the program.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_static(
        name: &str,
        config_json: &[u8],
        safetensors: &'static [u8],
    ) -> Result<Self, CheckpointError> {
        let config = ModelConfig::parse(config_json, None)
            .map_err(|source| CheckpointError::Config { model: name.into(), source })?;
        let mut checkpoint =
            Self { name: name.into(), directory: None, config, files: Vec::new(), tensors: HashMap::new() };
        checkpoint.add_file(name, FileBytes::Static(safetensors))?;
        Ok(checkpoint)
    }

    /// A model whose safetensors image lies in memory of its own.
    pub(crate) fn from_memory(name: &str, config: ModelConfig, image: Mmap) -> Result<Self, CheckpointError> {
        let mut checkpoint =
            Self { name: name.into(), directory: None, config, files: Vec::new(), tensors: HashMap::new() };
        checkpoint.add_file(name, FileBytes::Anonymous(image))?;
        Ok(checkpoint)
    }

    /// The directory's name, or the name given to an embedded model.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The model's shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Another file of the model's directory, such as `tokenizer.json`; `None` where there is none,
    /// and always for an embedded model.
    pub fn read_file(&self, name: &str) -> Option<Vec<u8>> {
        std::fs::read(self.directory.as_ref()?.join(name)).ok()
    }

    /// Bytes of the files.
    pub fn bytes(&self) -> usize {
        self.files.iter().map(|file| file.as_slice().len()).sum()
    }

    /// Gives the memory of a module's tensors (those called `{module}.{something}`, such as the three of
    /// `model.layers.0.mlp.up_proj`) back to the system, so that a backend that repacks them does not
    /// hold the weights twice. Only whole pages go. Pages of a file can be read again, from the file; of
    /// a checkpoint in memory the tensors are lost, and [`find`](Self::find) finds them no more. Bytes
    /// compiled into the program stay, and so does everything where the system knows no such advice.
    ///
    /// # Safety
    /// Nothing may read these tensors through slices obtained before: they may have become zeros.
    pub unsafe fn release(&self, module: &str) {
        let belongs = |name: &str| name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        for (_, location) in self.tensors.iter().filter(|(name, _)| belongs(name)) {
            let file = &self.files[location.file];
            if matches!(file, FileBytes::Anonymous(_)) {
                location.lost.store(true, Ordering::Relaxed);
            }
            if let FileBytes::Anonymous(map) | FileBytes::Mapped(map) = file {
                // SAFETY: the caller's promise.
                unsafe { give_back(map, &location.bytes) };
            }
        }
    }

    /// As [`release`](Self::release) for some bytes of one tensor, which is then lost as a whole.
    ///
    /// # Safety
    /// As there, for these bytes.
    pub unsafe fn release_part(&self, tensor: &str, bytes: Range<usize>) {
        let Some(location) = self.tensors.get(tensor) else { return };
        let file = &self.files[location.file];
        if matches!(file, FileBytes::Anonymous(_)) {
            location.lost.store(true, Ordering::Relaxed);
        }
        if let FileBytes::Anonymous(map) | FileBytes::Mapped(map) = file {
            let start = location.bytes.start;
            let bytes = start + bytes.start..location.bytes.end.min(start + bytes.end);
            // SAFETY: the caller's promise.
            unsafe { give_back(map, &bytes) };
        }
    }

    /// The tensor called `name`, if there is one and it was not [lost](Self::release).
    pub fn find<'a>(&'a self, name: &str) -> Option<Tensor<'a>> {
        let (name, location) = self.tensors.get_key_value(name)?;
        if location.lost.load(Ordering::Relaxed) {
            return None;
        }
        let file = self.files[location.file].as_slice();
        Some(Tensor {
            name,
            dtype: location.dtype,
            shape: &location.shape,
            bytes: &file[location.bytes.clone()],
        })
    }

    /// The tensor called `name`, of the given shape.
    ///
    /// # Errors
    /// When it is missing or has another shape.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, CheckpointError> {
        let tensor = self.find(name).ok_or_else(|| self.missing(name, String::new()))?;
        if tensor.shape != shape {
            return Err(CheckpointError::WrongShape {
                tensor: name.into(),
                found: tensor.shape.into(),
                expected: shape.into(),
            });
        }
        Ok(tensor)
    }

    /// The weights of the linear layer `prefix` (such as `model.layers.0.mlp.up_proj`), quantized or
    /// not as its tensors show: `modules_to_not_convert` is not to be relied on.
    ///
    /// # Errors
    /// When tensors are missing, have other shapes or types, or hold a scale that is not finite.
    pub fn linear(
        &self,
        prefix: &str,
        input: usize,
        output: usize,
    ) -> Result<LinearWeights<'_>, CheckpointError> {
        let weight = format!("{prefix}.weight");
        if self.find(&format!("{prefix}.qweight")).is_some() {
            return AwqLinear::find(self, prefix, input, output).map(LinearWeights::Awq);
        }
        if self.find(&weight).is_none() {
            return Err(self.missing(&weight, format!(" (nor {prefix}.qweight)")));
        }
        self.tensor(&weight, &[output, input]).map(LinearWeights::Dense)
    }

    pub(crate) fn missing(&self, tensor: &str, hint: String) -> CheckpointError {
        CheckpointError::MissingTensor { model: self.name.clone(), tensor: tensor.into(), hint }
    }

    fn add_shards(&mut self, directory: &Path, index: &Path) -> Result<(), CheckpointError> {
        #[derive(serde::Deserialize)]
        struct Index {
            weight_map: std::collections::BTreeMap<String, String>,
        }
        let damaged =
            |detail: String| CheckpointError::DamagedIndex { file: index.display().to_string(), detail };
        let parsed: Index =
            serde_json::from_slice(&read(index)?).map_err(|error| damaged(error.to_string()))?;
        let mut shards: Vec<(&String, &String)> = Vec::new();
        for (tensor, shard) in &parsed.weight_map {
            if !shards.iter().any(|(known, _)| *known == shard) {
                shards.push((shard, tensor));
            }
        }
        for (shard, tensor) in shards {
            // A shard is a file beside the index; a path out of the directory is not a checkpoint's.
            if Path::new(shard).file_name() != Some(shard.as_ref()) {
                return Err(damaged(format!("shard {shard:?} is not a plain file name")));
            }
            let path = directory.join(shard);
            if !path.is_file() {
                return Err(CheckpointError::MissingShard {
                    model: self.name.clone(),
                    shard: shard.clone(),
                    tensor: tensor.clone(),
                });
            }
            self.add_file(&path.display().to_string(), FileBytes::Mapped(map(&path)?))?;
        }
        match parsed.weight_map.keys().find(|tensor| !self.tensors.contains_key(*tensor)) {
            Some(tensor) => Err(self.missing(tensor, ", though its index lists it".into())),
            None => Ok(()),
        }
    }

    fn add_file(&mut self, file: &str, bytes: FileBytes) -> Result<(), CheckpointError> {
        let data = bytes.as_slice();
        let (header_length, metadata) = SafeTensors::read_metadata(data).map_err(|error| {
            CheckpointError::DamagedFile { file: file.into(), detail: describe(&error, data) }
        })?;
        // The tensors begin after the 8-byte length and the header itself.
        let start = 8 + header_length;
        for (name, info) in metadata.tensors() {
            let (from, to) = info.data_offsets;
            let location = Location {
                file: self.files.len(),
                dtype: info.dtype,
                shape: info.shape.clone(),
                bytes: start + from..start + to,
                lost: AtomicBool::new(false),
            };
            self.tensors.insert(name, location);
        }
        self.files.push(bytes);
        Ok(())
    }
}

impl FileBytes {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(map) | Self::Anonymous(map) => map,
            Self::Static(bytes) => bytes,
        }
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CheckpointError> {
    std::fs::read(path).map_err(|detail| CheckpointError::Unreadable { path: path.to_owned(), detail })
}

fn map(path: &Path) -> Result<Mmap, CheckpointError> {
    let unreadable = |detail| CheckpointError::Unreadable { path: path.to_owned(), detail };
    let file = File::open(path).map_err(unreadable)?;
    // SAFETY: the map is read-only and private to this process. A model file that another process
    // rewrites while it loads can give wrong bytes, which only ever become numbers; backends copy the
    // weights at load and do not keep the map.
    unsafe { Mmap::map(&file) }.map_err(unreadable)
}

/// Tells the system that the whole pages within `range` of `map` are not needed. Best effort: where it does
/// not, the memory stays taken.
///
/// # Safety
/// Nothing may read that range of an anonymous map through slices obtained before.
#[cfg(unix)]
unsafe fn give_back(map: &Mmap, range: &Range<usize>) {
    // Pages are larger elsewhere, up to this size.
    const PAGE: usize = if cfg!(target_arch = "x86_64") { 4 << 10 } else { 64 << 10 };
    // The map begins on a page, so offsets are as good as addresses; whole pages only, since the advice
    // would widen the range to the neighbours' bytes.
    let (start, end) = (range.start.next_multiple_of(PAGE), range.end / PAGE * PAGE);
    if start < end {
        // SAFETY: the range lies in the map. Pages of a file are read from it again, the others are zeros
        // from now on, which the caller said nobody sees.
        let given = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, end - start) };
        if let Err(error) = given {
            tracing::debug!(%error, "the weights' memory stays taken");
        }
    }
}

/// # Safety
/// None is needed here: it has the signature of the other.
#[cfg(not(unix))]
unsafe fn give_back(_map: &Mmap, _range: &Range<usize>) {}

/// What a safetensors error means for someone who has the file in front of them.
fn describe(error: &SafeTensorError, data: &[u8]) -> String {
    match error {
        SafeTensorError::HeaderTooSmall => {
            format!("it has only {} bytes, too few for a safetensors header", data.len())
        }
        SafeTensorError::HeaderTooLarge | SafeTensorError::InvalidHeaderLength => {
            let length = data.first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
            format!("its header claims {length} bytes, but the file has {}", data.len())
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            format!("its {} bytes are not what its tensors need (truncated?)", data.len())
        }
        SafeTensorError::InvalidHeader(_) | SafeTensorError::InvalidHeaderDeserialization(_) => {
            format!("its header is not JSON ({error})")
        }
        other => other.to_string(),
    }
}

impl Tensor<'_> {
    /// The elements as `f32`.
    ///
    /// # Errors
    /// When the type is not a floating-point type this engine reads, or a value is NaN or infinite.
    pub fn to_f32(&self) -> Result<Vec<f32>, CheckpointError> {
        let values: Vec<f32> = match self.dtype {
            Dtype::F16 => self.chunks().map(|bytes| f16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::BF16 => self.chunks().map(|bytes| bf16::from_le_bytes(bytes).to_f32()).collect(),
            Dtype::F32 => self.chunks().map(f32::from_le_bytes).collect(),
            _ => return Err(self.unsupported_dtype("F16, BF16, F32")),
        };
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(self.not_finite(index, values[index])),
            None => Ok(values),
        }
    }

    fn chunks<const SIZE: usize>(&self) -> impl Iterator<Item = [u8; SIZE]> + '_ {
        self.bytes.as_chunks::<SIZE>().0.iter().copied()
    }

    pub(crate) fn not_finite(&self, index: usize, value: f32) -> CheckpointError {
        CheckpointError::NotFinite { tensor: self.name.into(), value, index }
    }

    pub(crate) fn unsupported_dtype(&self, supported: &'static str) -> CheckpointError {
        CheckpointError::UnsupportedDtype { tensor: self.name.into(), found: self.dtype, supported }
    }

    pub(crate) fn expect_dtype(&self, dtype: Dtype, name: &'static str) -> Result<(), CheckpointError> {
        if self.dtype == dtype { Ok(()) } else { Err(self.unsupported_dtype(name)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A module of two tensors between others, each a few pages and a bit long, and not on page boundaries.
    fn image() -> Vec<u8> {
        let names = ["a.weight", "b.scales", "b.weight", "bc.weight"];
        let bytes: Vec<u8> = (0..200_003u32).map(|i| (i % 251 + 1) as u8).collect();
        let view = |_| safetensors::tensor::TensorView::new(Dtype::U8, vec![bytes.len()], &bytes).unwrap();
        safetensors::serialize(names.map(|name| (name, view(name))), None).unwrap()
    }

    fn with(bytes: FileBytes) -> Checkpoint {
        let config = crate::synthetic::SyntheticModel::B0_5.config();
        let mut checkpoint = Checkpoint {
            name: "test".into(),
            directory: None,
            config,
            files: vec![],
            tensors: HashMap::new(),
        };
        checkpoint.add_file("test", bytes).unwrap();
        checkpoint
    }

    fn anonymous() -> Checkpoint {
        let image = image();
        let mut map = memmap2::MmapMut::map_anon(image.len()).unwrap();
        map.copy_from_slice(&image);
        with(FileBytes::Anonymous(map.make_read_only().unwrap()))
    }

    #[test]
    fn what_is_released_from_memory_is_found_no_more_and_its_neighbours_are_whole() {
        let (checkpoint, untouched) = (anonymous(), anonymous());
        // SAFETY: no slice of it was taken.
        unsafe { checkpoint.release("b") };
        for name in ["b.scales", "b.weight"] {
            assert!(checkpoint.find(name).is_none());
            let message = checkpoint.tensor(name, &[200_003]).unwrap_err().to_string();
            assert!(message.contains(name), "{message}");
        }
        for name in ["a.weight", "bc.weight"] {
            assert_eq!(checkpoint.find(name).unwrap().bytes, untouched.find(name).unwrap().bytes);
        }
        let kept = checkpoint.files[0].as_slice().iter().filter(|byte| **byte != 0).count();
        if cfg!(target_os = "linux") {
            assert!(kept < image().len() - 2 * 60_000, "the system took nothing back");
        }
    }

    #[test]
    fn what_is_released_from_a_file_or_the_program_is_still_there() {
        let (image, untouched) = (image(), anonymous());
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("model.safetensors");
        std::fs::write(&file, &image).unwrap();
        for bytes in [FileBytes::Mapped(map(&file).unwrap()), FileBytes::Static(image.leak())] {
            let checkpoint = with(bytes);
            // SAFETY: no slice of it was taken.
            unsafe { checkpoint.release("b") };
            assert_eq!(checkpoint.find("b.weight").unwrap().bytes, untouched.find("b.weight").unwrap().bytes);
        }
    }
}
