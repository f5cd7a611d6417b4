//! Drawn tokens against a sampler in float64 that sorts.
//!
//! Greedy tokens, and what is said of invalid logits, must be exact. A token drawn by chance must be the one
//! that the reference draws with the same random number, or one that it draws with a number within
//! [`DRAW_BORDER`] of it from a nucleus that differs by [`NUCLEUS_BORDER`]: a single wrong member of the
//! nucleus would shift the draws of about every second random number. The error that is measured is the
//! relative one of the sum of exponentials. Where all weights are equal nothing is rounded, and all must be
//! exact.

use std::cmp::Ordering;

use bytemuck::Zeroable;
use fastrand::Rng;
use redstart_kernels::device::Device;
use redstart_kernels::sampling::{
    Drawn, Kind, NO_MASK, SampleParams, Sampling, Status, mask_words, sample, scratch_bytes,
};

use crate::{Case, CheckError, Measured};

/// What float32 weights may move the border of a nucleus by, as a share of the probability.
const NUCLEUS_BORDER: f64 = 1e-6;
/// The same for the border between two tokens. A nucleus between the smallest and the largest that are
/// allowed moves it by twice as much as the weights do.
const DRAW_BORDER: f64 = 3e-6;
/// A sum of up to 152,064 exponentials in float32, pairwise as a rule, each within 2⁻²².
const SUM_TOLERANCE: f64 = 5e-6;

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (vocab, heavy) in [(777, false), (1024, false), (4099, false), (32_000, false), (152_064, true)] {
        cases.push(case(format!("sampling greedy {vocab}"), heavy, vocab, greedy_slots));
        cases.push(case(format!("sampling invalid logits {vocab}"), heavy, vocab, invalid_slots));
        let few = vocab > 8192 && !heavy;
        for top_k in [2, 40, vocab as u32] {
            for top_p in [1e-9, 0.5, 0.95, 1.0] {
                if few && top_k != 40 && top_p != 0.95 {
                    continue;
                }
                cases.push(chance(vocab, heavy, top_k, top_p, 1.0, Shape::Peaked));
            }
        }
        for top_p in [0.5, 0.95, 1.0] {
            cases.push(chance(vocab, heavy, 0, top_p, 0.3, Shape::Peaked));
            cases.push(chance(vocab, heavy, 0, top_p, 2.0, Shape::Peaked));
        }
    }
    for (vocab, heavy) in [(4099, false), (152_064, true)] {
        for shape in [Shape::Equal, Shape::FewValues, Shape::Close] {
            cases.push(chance(vocab, heavy, 0, 0.5, 1.0, shape));
            cases.push(chance(vocab, heavy, 1500, 1.0, 0.7, shape));
            cases.push(chance(vocab, heavy, 3000, 0.9, 1.5, shape));
        }
    }
    // Half of these is a whole number of tokens.
    cases.push(chance(1024, false, 0, 0.5, 1.0, Shape::Equal));
    cases.push(chance(777, false, 0, 1.0, f32::MIN_POSITIVE / 8.0, Shape::Peaked));
    cases.push(chance(1, false, 0, 0.9, 1.0, Shape::Peaked));
    cases.push(frequencies("sampling frequencies 40", false, 256));
    cases.push(frequencies("sampling frequencies 40, many", true, 8192));
    cases
}

/// One slot's operands.
struct Slot {
    logits: Vec<f32>,
    params: SampleParams,
    allowed: Option<Vec<u32>>,
}

fn slot(kind: Kind, logits: Vec<f32>) -> Slot {
    let params = SampleParams { kind: kind as u32, temperature: 1.0, ..SampleParams::SKIP };
    Slot { logits, params, allowed: None }
}

fn case(name: String, heavy: bool, vocab: usize, slots: fn(usize, &mut Rng) -> Vec<Slot>) -> Case {
    let run =
        move |device: &mut dyn Device, seed: u64| measure(device, &slots(vocab, &mut Rng::with_seed(seed)));
    Case { name, heavy, run: Box::new(run) }
}

// ---- Inputs -----------------------------------------------------------------------------------------------

/// What a row of logits looks like.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// As a model's: a wide hump and a few above it.
    Peaked,
    /// One value: thousands of equals.
    Equal,
    /// Three values.
    FewValues,
    /// All different, by so little that they fall into few bins.
    Close,
}

fn logits(shape: Shape, vocab: usize, rng: &mut Rng) -> Vec<f32> {
    let mut hump = || (0..4).map(|_| rng.f32() - 0.5).sum::<f32>();
    let mut logits: Vec<f32> = match shape {
        Shape::Peaked => (0..vocab).map(|_| hump() * 6.0).collect(),
        Shape::Equal => vec![1.25; vocab],
        Shape::FewValues => (0..vocab).map(|_| (hump() * 2.0).round().clamp(-1.0, 1.0)).collect(),
        Shape::Close => (0..vocab).map(|_| 7.0 + hump() * 1e-3).collect(),
    };
    if matches!(shape, Shape::Peaked) {
        for _ in 0..12 {
            logits[rng.usize(..vocab)] = 8.0 + 5.0 * rng.f32();
        }
        logits[rng.usize(..vocab)] = f32::NEG_INFINITY;
    }
    // The only token cannot be impossible.
    if vocab == 1 { vec![0.5] } else { logits }
}

/// About half of the tokens.
fn mask(vocab: usize, rng: &mut Rng) -> Vec<u32> {
    let mut mask: Vec<u32> = (0..mask_words(vocab)).map(|_| rng.u32(..)).collect();
    // One at least is allowed; what is past the end does not matter.
    mask[0] |= 1;
    mask
}

fn greedy_slots(vocab: usize, rng: &mut Rng) -> Vec<Slot> {
    let mut slots: Vec<Slot> = [Shape::Peaked, Shape::Equal, Shape::FewValues, Shape::Close]
        .map(|shape| slot(Kind::Likeliest, logits(shape, vocab, rng)))
        .into();
    slots.push(slot(Kind::Skip, logits(Shape::Peaked, vocab, rng)));
    for shape in [Shape::Peaked, Shape::FewValues] {
        let masked = slot(Kind::Likeliest, logits(shape, vocab, rng));
        slots.push(Slot { allowed: Some(mask(vocab, rng)), ..masked });
    }
    let mut lone = vec![f32::NEG_INFINITY; vocab];
    lone[rng.usize(..vocab)] = -3e38;
    slots.push(slot(Kind::Likeliest, lone));
    // Minus zero and zero are equals, though their bits differ.
    let mut zeros: Vec<f32> = (0..vocab).map(|_| if rng.bool() { 0.0 } else { -1.0 }).collect();
    zeros[rng.usize(..vocab / 2)] = -0.0;
    slots.push(slot(Kind::Likeliest, zeros));
    // A row whose every exponential counts.
    slots.push(slot(Kind::Likeliest, (0..vocab).map(|_| rng.f32()).collect()));
    slots
}

fn invalid_slots(vocab: usize, rng: &mut Rng) -> Vec<Slot> {
    let mut slots = Vec::new();
    for kind in [Kind::Likeliest, Kind::ByChance] {
        for bad in [&[f32::NAN][..], &[f32::INFINITY], &[f32::NAN, f32::INFINITY, -f32::NAN]] {
            let mut logits = logits(Shape::Peaked, vocab, rng);
            for &value in bad {
                logits[rng.usize(..vocab)] = value;
            }
            // Whether it is allowed or not.
            slots.push(Slot { allowed: rng.bool().then(|| mask(vocab, rng)), ..slot(kind, logits) });
        }
        slots.push(slot(kind, vec![f32::NEG_INFINITY; vocab]));
        let mut forbidden = vec![f32::NEG_INFINITY; vocab];
        forbidden[vocab - 1] = 1.0;
        let mut only_others = vec![u32::MAX; mask_words(vocab)];
        only_others[(vocab - 1) / 32] &= !(1 << ((vocab - 1) % 32));
        slots.push(Slot { allowed: Some(only_others), ..slot(kind, forbidden) });
    }
    slots
}

fn chance(vocab: usize, heavy: bool, top_k: u32, top_p: f32, temperature: f32, shape: Shape) -> Case {
    let name = format!("sampling {vocab} top-k {top_k} top-p {top_p} temperature {temperature:e} {shape:?}");
    let count = if heavy || vocab < 2000 { 6 } else { 2 };
    let run = move |device: &mut dyn Device, seed: u64| {
        let mut rng = Rng::with_seed(seed);
        let slots: Vec<Slot> = (0..count)
            .map(|index| {
                let mut slot = slot(Kind::ByChance, logits(shape, vocab, &mut rng));
                let (seed, position) = (rng.u64(..), rng.u64(..1 << 20));
                slot.params = SampleParams { top_k, top_p, temperature, seed, position, ..slot.params };
                slot.allowed = (index % 3 == 1).then(|| mask(vocab, &mut rng));
                slot
            })
            .collect();
        measure(device, &slots)
    };
    Case { name, heavy, run: Box::new(run) }
}

/// Draws from one distribution `draws` times: every frequency must be within five standard deviations.
fn frequencies(name: &str, heavy: bool, draws: usize) -> Case {
    const VOCAB: usize = 40;
    let run = move |device: &mut dyn Device, seed: u64| {
        let mut rng = Rng::with_seed(seed);
        let row: Vec<f32> = (0..VOCAB).map(|_| 4.0 * rng.f32()).collect();
        let base = slot(Kind::ByChance, row);
        let first = rng.u64(..);
        let slots: Vec<Slot> = (0..draws as u64)
            .map(|draw| Slot {
                logits: base.logits.clone(),
                params: SampleParams {
                    top_k: 10,
                    temperature: 0.8,
                    top_p: 0.95,
                    seed: first.wrapping_add(draw / 16),
                    position: draw % 16,
                    ..base.params
                },
                allowed: None,
            })
            .collect();
        let mut seen = [0.0; VOCAB];
        for drawn in draw(device, &slots)? {
            seen[drawn.token as usize] += 1.0 / draws as f64;
        }
        let reference = Reference::new(&slots[0]);
        let kept = &reference.by_likelihood[..reference.kept(0.95)];
        let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
        let mut deviation: f64 = 0.0;
        for (id, &frequency) in (0..).zip(&seen) {
            let weight = kept.iter().find(|&&(kept, _)| kept == id).map_or(0.0, |&(_, weight)| weight);
            let probability = weight / total;
            let sigma = (probability * (1.0 - probability) / draws as f64).sqrt();
            deviation = deviation.max((frequency - probability).abs() / sigma.max(1e-12));
        }
        Ok(Measured { error: deviation, tolerance: 5.0 })
    };
    Case { name: name.to_owned(), heavy, run: Box::new(run) }
}

// ---- Runs and comparisons ---------------------------------------------------------------------------------

fn draw(device: &mut dyn Device, slots: &[Slot]) -> Result<Vec<Drawn>, CheckError> {
    let vocab = slots[0].logits.len();
    let logits: Vec<f32> = slots.iter().flat_map(|slot| slot.logits.iter().copied()).collect();
    let mut masks: Vec<u32> = Vec::new();
    let mut params = Vec::new();
    for slot in slots {
        let mask_offset = if slot.allowed.is_some() { masks.len() as u32 } else { NO_MASK };
        masks.extend(slot.allowed.iter().flatten());
        params.push(SampleParams { mask_offset, ..slot.params });
    }
    masks.push(0);
    let mut put = |bytes: &[u8], what: &str| {
        let buffer = device.allocate(bytes.len(), what)?;
        device.upload(bytes, buffer)?;
        Ok::<_, CheckError>(buffer)
    };
    let sampling = Sampling {
        logits: put(bytemuck::cast_slice(&logits), "logits")?,
        params: put(bytemuck::cast_slice(&params), "parameters")?,
        masks: put(bytemuck::cast_slice(&masks), "masks")?,
        drawn: put(&vec![0xff; slots.len() * size_of::<Drawn>()], "drawn tokens")?,
        scratch: put(&vec![0; scratch_bytes(slots.len(), vocab)], "scratch")?,
        slots: slots.len() as u32,
        vocab: vocab as u32,
    };
    let mut run = || {
        let mut drawn = vec![Drawn::zeroed(); slots.len()];
        device.fill(sampling.drawn, 0xff)?;
        sample(device, &sampling)?;
        device.download(sampling.drawn, bytemuck::cast_slice_mut(&mut drawn))?;
        Ok::<_, CheckError>(drawn)
    };
    let (first, second) = (run()?, run()?);
    for buffer in [sampling.logits, sampling.params, sampling.masks, sampling.drawn, sampling.scratch] {
        device.free(buffer);
    }
    // As bytes: an invalid logit may be NaN.
    if bytemuck::cast_slice::<_, u8>(&first) != bytemuck::cast_slice::<_, u8>(&second) {
        return Err(CheckError::Wrong("a second launch draws something else".into()));
    }
    Ok(first)
}

fn measure(device: &mut dyn Device, slots: &[Slot]) -> Result<Measured, CheckError> {
    let mut error: f64 = 0.0;
    for (index, (slot, drawn)) in slots.iter().zip(draw(device, slots)?).enumerate() {
        let wrong = |what| CheckError::Wrong(format!("slot {index}: {what}"));
        let deviation = compare(slot, &drawn).map_err(wrong)?;
        // NaN stays.
        error = if deviation <= error { error } else { deviation };
    }
    Ok(Measured { error, tolerance: SUM_TOLERANCE })
}

/// The relative error of the sum of exponentials, or what is wrong.
fn compare(slot: &Slot, drawn: &Drawn) -> Result<f64, String> {
    let expect = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{what}: {drawn:?}")) };
    if slot.params.kind == Kind::Skip as u32 {
        let untouched = bytemuck::bytes_of(drawn).iter().all(|&byte| byte == 0xff);
        return expect(untouched, "a slot that wants nothing was written").map(|()| 0.0);
    }
    expect((drawn.token as usize) < slot.logits.len(), "not a token")?;
    let invalid = |logit: f32| logit.is_nan() || logit == f32::INFINITY;
    if let Some(id) = slot.logits.iter().position(|&logit| invalid(logit)) {
        let named = drawn.status() == Some(Status::InvalidLogit)
            && drawn.invalid_id as usize == id
            && drawn.invalid_logit.is_nan() == slot.logits[id].is_nan();
        return expect(named, &format!("token {id} is invalid")).map(|()| 0.0);
    }
    let best = likeliest(&slot.logits, |_| true);
    if let Some(best) = best {
        expect(drawn.best as usize == best, &format!("token {best} is the likeliest"))?;
        expect(drawn.best_logit == slot.logits[best], "not its logit")?;
    }
    let Some(best_allowed) = likeliest(&slot.logits, |id| slot.allows(id)) else {
        return expect(drawn.status() == Some(Status::NothingPossible), "nothing is possible").map(|()| 0.0);
    };
    expect(drawn.status() == Some(Status::Token), "a token is possible")?;
    if slot.params.kind == Kind::Likeliest as u32 {
        expect(
            drawn.token as usize == best_allowed,
            &format!("token {best_allowed} is the likeliest allowed"),
        )?;
    } else {
        let acceptable = Reference::new(slot).acceptable();
        expect(acceptable.contains(&drawn.token), &format!("one of {acceptable:?} is to be drawn"))?;
    }
    let max = f64::from(slot.logits[best.expect("one is possible")]);
    let sum: f64 = slot.logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
    Ok((f64::from(drawn.exp_sum) / sum - 1.0).abs())
}

impl Slot {
    fn allows(&self, id: usize) -> bool {
        self.allowed.as_ref().is_none_or(|mask| mask[id / 32] >> (id % 32) & 1 == 1)
    }
}

/// The lowest id of the largest logits.
fn likeliest(logits: &[f32], allows: impl Fn(usize) -> bool) -> Option<usize> {
    let possible = (0..logits.len()).filter(|&id| allows(id) && logits[id] > f32::NEG_INFINITY);
    possible.reduce(|best, id| if logits[id] > logits[best] { id } else { best })
}

/// What a slot draws from, in float64.
struct Reference<'a> {
    params: &'a SampleParams,
    /// What top-k leaves, likeliest first, with weights.
    by_likelihood: Vec<(u32, f64)>,
}

impl<'a> Reference<'a> {
    fn new(slot: &'a Slot) -> Self {
        let params = &slot.params;
        let mut order: Vec<usize> = (0..slot.logits.len()).filter(|&id| slot.allows(id)).collect();
        let logit = |id: usize| f64::from(slot.logits[id]);
        order.sort_by(|&a, &b| logit(b).partial_cmp(&logit(a)).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
        if params.top_k > 0 {
            order.truncate(params.top_k as usize);
        }
        let max = logit(order[0]);
        let weight = |id: usize| ((logit(id) - max) / f64::from(params.temperature)).exp();
        Self { params, by_likelihood: order.into_iter().map(|id| (id as u32, weight(id))).collect() }
    }

    /// How many of them top-p keeps, if it is this.
    fn kept(&self, top_p: f64) -> usize {
        if top_p >= 1.0 {
            return self.by_likelihood.len();
        }
        let total: f64 = self.by_likelihood.iter().map(|&(_, weight)| weight).sum();
        let mut sum = 0.0;
        let reaches = |&(_, weight): &(u32, f64)| {
            sum += weight;
            sum >= top_p * total
        };
        self.by_likelihood.iter().position(reaches).map_or(self.by_likelihood.len(), |last| last + 1)
    }

    /// The tokens that may be drawn; one, but for draws at a border.
    fn acceptable(&self) -> Vec<u32> {
        let top_p = f64::from(self.params.top_p);
        // Equals have weights of exactly 1, and sums of them are exact.
        let exact = self.by_likelihood.iter().all(|&(_, weight)| weight == 1.0);
        let (nucleus_border, draw_border) = if exact { (0.0, 0.0) } else { (NUCLEUS_BORDER, DRAW_BORDER) };
        let sizes = if top_p < 1.0 {
            [self.kept((top_p - nucleus_border).max(0.0)), self.kept(top_p + nucleus_border)]
        } else {
            [self.by_likelihood.len(); 2]
        };
        let random = uniform(self.params.seed, self.params.position);
        let mut tokens = Vec::new();
        for size in sizes {
            let mut kept = self.by_likelihood[..size].to_vec();
            kept.sort_by_key(|&(id, _)| id);
            let total: f64 = kept.iter().map(|&(_, weight)| weight).sum();
            let mut before = 0.0;
            for (id, weight) in kept {
                let after = before + weight;
                let reached = after > (random - draw_border) * total;
                if reached && before <= (random + draw_border) * total && weight > 0.0 {
                    tokens.push(id);
                }
                before = after;
            }
        }
        tokens.sort_unstable();
        tokens.dedup();
        tokens
    }
}

/// The random number of a seed and a position: two rounds of Steele, Lea and Flood's splitmix64.
fn uniform(seed: u64, position: u64) -> f64 {
    let splitmix64 = |state: u64| {
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (splitmix64(splitmix64(seed) ^ position) >> 11) as f64 / (1u64 << 53) as f64
}
