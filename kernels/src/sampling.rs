//! Logits to tokens on the device.
//!
//! [`sample`] launches two kernels over all slots; [`SampleParams`] in device memory say what each slot
//! wants. The tokens are those of the CPU's sampler: for greedy slots always, for slots that draw by chance
//! except where a float32 weight (relative error 10⁻⁶, nothing below 2⁻⁴⁰ of the likeliest) moves the border
//! between two tokens across the random number, or across what top-p keeps.

use bytemuck::{Pod, Zeroable};

use crate::device::{Buffer, Device, DeviceError, Launch};

/// Widest row of logits: the weights of so many tokens can be added up in 64 bits.
pub const MAX_VOCAB: usize = 1 << 22;

/// Ids that a block of the first kernel reads.
const CHUNK: usize = 4096;
const SCAN_THREADS: u32 = 256;
/// Bytes of a chunk's result in scratch memory.
const PARTIAL_BYTES: usize = 32;
/// Bytes that the counters of blocks are rounded up to.
const COUNTERS_ALIGNMENT: usize = 256;
/// Shared memory of the second kernel; the C++ side makes sure that it is enough.
const DRAW_SHARED_BYTES: usize = 34 << 10;

/// What a slot wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Nothing: its row is not read and its [`Drawn`] stays what it was.
    Skip = 0,
    /// The likeliest of the allowed tokens; of equals, the lowest id.
    Likeliest = 1,
    /// A token drawn by chance from what temperature, top-k and top-p leave of the allowed ones.
    ByChance = 2,
}

/// How one slot is drawn, in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct SampleParams {
    /// A [`Kind`].
    pub kind: u32,
    /// Keep only the `k` likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// More than 0; only for [`Kind::ByChance`], as all that follows but the mask.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all. More than 0.
    pub top_p: f32,
    /// The random number comes from seed and position alone, as on the CPU.
    pub seed: u64,
    /// The token's place in its sequence.
    pub position: u64,
    /// Word of [`Sampling::masks`] at which the slot's bit set of allowed tokens begins: bit `id % 32` of
    /// word `id / 32`, [`mask_words`] of them; or [`NO_MASK`].
    pub mask_offset: u32,
    /// Nothing.
    pub padding: u32,
}

/// For [`SampleParams::mask_offset`]: every token is allowed.
pub const NO_MASK: u32 = u32::MAX;

impl SampleParams {
    /// For a slot that wants nothing.
    pub const SKIP: Self = Self {
        kind: Kind::Skip as u32,
        top_k: 0,
        temperature: 0.0,
        top_p: 1.0,
        seed: 0,
        position: 0,
        mask_offset: NO_MASK,
        padding: 0,
    };
}

/// What was drawn for one slot, in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C)]
pub struct Drawn {
    /// The token; 0 where the status says that there is none, so that it is a valid id in any case.
    pub token: u32,
    /// A [`Status`].
    pub status: u32,
    /// The likeliest token before mask and temperature.
    pub best: u32,
    /// Its logit.
    pub best_logit: f32,
    /// Sum over all tokens of `exp(logit - best_logit)`.
    pub exp_sum: f32,
    /// The lowest id with an invalid logit; only with [`Status::InvalidLogit`].
    pub invalid_id: u32,
    /// That logit: NaN or +infinity.
    pub invalid_logit: f32,
    /// Nothing.
    pub padding: u32,
}

/// Whether a token was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Status {
    /// Yes.
    Token = 1,
    /// No: a logit, of an allowed token or not, is NaN or +infinity.
    InvalidLogit = 2,
    /// No: every allowed token's logit is -infinity.
    NothingPossible = 3,
}

impl Drawn {
    /// Whether a token was drawn; `None` for memory that no kernel wrote.
    pub fn status(&self) -> Option<Status> {
        [Status::Token, Status::InvalidLogit, Status::NothingPossible]
            .into_iter()
            .find(|&status| status as u32 == self.status)
    }

    /// The natural log-probability of the likeliest token, before mask and temperature.
    pub fn best_logprob(&self) -> f32 {
        -f64::from(self.exp_sum).ln() as f32
    }
}

/// The operands of [`sample`].
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// `[slots][vocab]` fp32.
    pub logits: Buffer,
    /// `[slots]` [`SampleParams`].
    pub params: Buffer,
    /// u32 words; empty where no slot has a mask.
    pub masks: Buffer,
    /// `[slots]` [`Drawn`].
    pub drawn: Buffer,
    /// [`scratch_bytes`], set to zero once; every launch leaves it ready for the next.
    pub scratch: Buffer,
    /// Rows of logits.
    pub slots: u32,
    /// Logits in a row.
    pub vocab: u32,
}

/// The kernels' parameter block.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Params {
    logits: u64,
    slots: u64,
    masks: u64,
    drawn: u64,
    partials: u64,
    counters: u64,
    vocab: u32,
    padding: u32,
}

/// Words of a bit set over the vocabulary.
pub fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(32)
}

/// Bytes of scratch memory for so many slots.
pub fn scratch_bytes(slots: usize, vocab: usize) -> usize {
    counters_bytes(slots) + slots * vocab.div_ceil(CHUNK) * PARTIAL_BYTES
}

fn counters_bytes(slots: usize) -> usize {
    (slots * size_of::<u32>()).next_multiple_of(COUNTERS_ALIGNMENT)
}

/// Draws a token for every slot that wants one: two launches, whose shape depends on `slots` and `vocab`
/// alone.
///
/// # Errors
/// When a launch fails.
///
/// # Panics
/// When a buffer is too small, or there are no slots, or the vocabulary is empty or wider than [`MAX_VOCAB`].
pub fn sample(device: &mut dyn Device, sampling: &Sampling) -> Result<(), DeviceError> {
    let (slots, vocab) = (sampling.slots as usize, sampling.vocab as usize);
    assert!(slots > 0 && (1..=MAX_VOCAB).contains(&vocab), "{slots} slots of {vocab} logits");
    let expect = |buffer: Buffer, bytes: usize, what: &str| {
        assert!(buffer.bytes() >= bytes, "{what} of {} bytes, not {bytes}", buffer.bytes());
    };
    expect(sampling.logits, slots * vocab * size_of::<f32>(), "logits");
    expect(sampling.params, slots * size_of::<SampleParams>(), "sampling parameters");
    expect(sampling.drawn, slots * size_of::<Drawn>(), "drawn tokens");
    expect(sampling.scratch, scratch_bytes(slots, vocab), "scratch memory for sampling");
    let params = Params {
        logits: sampling.logits.address(),
        slots: sampling.params.address(),
        masks: sampling.masks.address(),
        drawn: sampling.drawn.address(),
        partials: sampling.scratch.address() + counters_bytes(slots) as u64,
        counters: sampling.scratch.address(),
        vocab: sampling.vocab,
        padding: 0,
    };
    device.launch(&Launch {
        kernel: "sample_scan",
        grid: [vocab.div_ceil(CHUNK) as u32, sampling.slots, 1],
        threads: SCAN_THREADS,
        shared_bytes: SCAN_THREADS as usize / 32 * PARTIAL_BYTES,
        params: Launch::params(&params),
        overlap: true,
    })?;
    device.launch(&Launch {
        kernel: "sample_draw",
        grid: [sampling.slots, 1, 1],
        // A row in L2 is read the faster the more threads ask for it.
        threads: if vocab > 8192 { 1024 } else { 256 },
        shared_bytes: DRAW_SHARED_BYTES,
        params: Launch::params(&params),
        overlap: true,
    })
}
