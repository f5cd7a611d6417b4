//! The model inside the binary, so that a first completion needs no download.

/// Name shown to people.
pub const NAME: &str = "nano (embedded)";

/// `config.json` of the embedded model.
pub const CONFIG: &[u8] = include_bytes!("../../models/nano/config.json");

/// `tokenizer.json` of the embedded model.
pub const TOKENIZER: &[u8] = include_bytes!("../../models/nano/tokenizer.json");

/// `redstart.json` of the embedded model: how it likes its prompts.
pub const PROMPT_HINTS: &[u8] = include_bytes!("../../models/nano/redstart.json");

/// The weights, aligned so that tensors can be read in place as if the file were mapped.
pub static WEIGHTS: &[u8] = &ALIGNED.bytes;

#[repr(C, align(64))]
struct Aligned<Bytes: ?Sized> {
    bytes: Bytes,
}

static ALIGNED: &Aligned<[u8]> = &Aligned { bytes: *include_bytes!("../../models/nano/model.safetensors") };
