//! Every instruction set's kernels against the portable ones, and attention as a whole against a plain
//! computation in `f64`, on random and extreme inputs.

use half::f16;

use super::kernels::{Factor, Product, Stored};
use super::*;
use crate::cpu::Isa;
use crate::step_plan::{BlockId, PlannedSequence};

/// A few hundred additions in `f32` in another order, relative to the sum of the magnitudes that went in.
const TOLERANCE: f64 = 2e-6;

/// Attention against `f64`, relative to the largest input. Keys and values are compared as the cache holds them,
/// so what is left is arithmetic in `f32`, where the error of a score is a relative error of its weight.
/// Measured in every instruction set: 1.6e-7 with inputs up to 1, 1.3e-5 with inputs up to 12, whose scores
/// reach several hundred.
const ATTENTION_TOLERANCE: f64 = 1e-4;

fn all() -> impl Iterator<Item = (Isa, AttentionKernels)> {
    Isa::ALL.into_iter().filter_map(|isa| Some((isa, AttentionKernels::new(isa)?)))
}

fn portable() -> AttentionKernels {
    AttentionKernels::new(Isa::Portable).unwrap()
}

/// Reproducible numbers without structure, between -1 and 1.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0 >> 33
    }

    fn float(&mut self) -> f32 {
        (self.next() % 20_001) as f32 / 10_000.0 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

fn to_bits(values: &[f32]) -> Vec<u16> {
    values.iter().map(|value| f16::from_f32(*value).to_bits()).collect()
}

fn from_bits(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|bits| f16::from_bits(*bits).to_f32()).collect()
}

/// Every instruction set with every format.
fn each() -> impl Iterator<Item = (KvFormat, (Isa, AttentionKernels))> {
    [KvFormat::F16, KvFormat::Int8].into_iter().flat_map(|format| all().map(move |kernels| (format, kernels)))
}

/// A key or value as the cache holds it.
fn as_kept(values: &[f32], format: KvFormat) -> Vec<f32> {
    match format {
        KvFormat::F16 => from_bits(&to_bits(values)),
        KvFormat::Int8 => {
            let mut digits = vec![0; values.len()];
            let scale = f16::from_bits(portable().quantize(values, &mut digits)).to_f32();
            digits.iter().map(|digit| f32::from(*digit) * scale).collect()
        }
    }
}

#[test]
fn products_agree_and_do_not_depend_on_the_other_rows() {
    let mut random = Random(1);
    for rows in [1, 2, 3, 5, 6, 7, 8, 9, 12, 13, 14, 31] {
        for (depth, columns) in [(1, 16), (7, 48), (64, 16), (64, 64), (96, 80), (128, 128)] {
            let (a_stride, b_stride, c_stride) = (depth + 3, columns + 5, columns + 2);
            let a: Vec<f32> = random.floats(rows * a_stride).iter().map(|x| x * 1e3).collect();
            let bits = to_bits(&random.floats(depth * b_stride));
            let digits: Vec<i8> = (0..depth * b_stride).map(|_| (random.next() % 255) as u8 as i8).collect();
            let wide_digits: Vec<f32> = digits.iter().map(|digit| f32::from(*digit)).collect();
            let start = random.floats(rows * c_stride);
            let factors =
                [(from_bits(&bits), Stored::F16(&bits)), (wide_digits.clone(), Stored::Int8(&digits))];
            for ((b, stored), add) in factors.iter().flat_map(|factor| [(factor, false), (factor, true)]) {
                let run = |kernels: AttentionKernels, b: Factor<'_>, first: usize, rows: usize| {
                    let mut c = start[first * c_stride..].to_vec();
                    let a = &a[first * a_stride..];
                    let product = Product { rows, depth, columns, a, a_stride, b, b_stride, add };
                    kernels.multiply(&product, &mut c, c_stride);
                    c
                };
                let wide = Factor::F32 { values: b, ahead: *stored };
                let expected = run(portable(), wide, 0, rows);
                for (isa, kernels) in all() {
                    let found = run(kernels, wide, 0, rows);
                    let widened = run(kernels, Factor::Stored { values: *stored, ahead: *stored }, 0, rows);
                    assert!(found == widened, "{isa:?}: widening while reading changed a result");
                    for row in 0..rows {
                        let alone = run(kernels, wide, row, 1);
                        for column in 0..c_stride {
                            let at = row * c_stride + column;
                            assert_eq!(alone[column].to_bits(), found[at].to_bits(), "{isa:?}: row {row}");
                            if column >= columns {
                                assert_eq!(found[at], start[at], "{isa:?}: wrote beyond the columns");
                                continue;
                            }
                            let magnitude: f64 = (0..depth)
                                .map(|k| f64::from(a[row * a_stride + k] * b[k * b_stride + column]).abs())
                                .sum();
                            let error = f64::from(found[at] - expected[at]).abs();
                            assert!(error <= TOLERANCE * (magnitude + 1.0), "{isa:?}: {error}, {magnitude}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn softmax_is_that_of_the_visible_scores() {
    let mut random = Random(2);
    for visible in [1, 2, 15, 16, 17, 31, 33, 64, 100, 255, 256] {
        let random_scores = random.floats(visible);
        let cases: [Vec<f32>; 5] = [
            random_scores.iter().map(|x| x * 20.0).collect(),
            vec![7.5; visible],
            // Far apart, where all but the largest vanish, and large enough to swallow a unit.
            random_scores.iter().map(|x| x * 1e6).collect(),
            random_scores.iter().map(|x| x - 3e8).collect(),
            random_scores.iter().map(|x| x * 1e38).collect(),
        ];
        for scores in cases {
            let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let weights: Vec<f64> = scores.iter().map(|x| f64::from(x - max).exp2()).collect();
            for (isa, kernels) in all() {
                for hidden in [f32::NAN, f32::INFINITY, -1e30] {
                    let mut row = [hidden; 256];
                    row[..visible].copy_from_slice(&scores);
                    let state = kernels.softmax(&mut row, visible);
                    assert_eq!(state.max, max, "{isa:?}, {visible} visible");
                    let sum: f64 = weights.iter().sum();
                    assert!(
                        (f64::from(state.sum) - sum).abs() <= TOLERANCE * sum,
                        "{isa:?}: {state:?}, {sum}"
                    );
                    for (found, expected) in row.iter().zip(&weights) {
                        // The polynomial is good to 2e-7; the smallest weights stop at 2^-100.
                        let error = (f64::from(*found) - expected).abs();
                        assert!(error <= 3e-7 * expected + 8e-31, "{isa:?}: {found} for {expected}");
                    }
                }
            }
        }
        for (isa, kernels) in all() {
            let mut row = [0.0; 256];
            row[visible - 1] = f32::NAN;
            assert!(kernels.softmax(&mut row, visible).sum.is_nan(), "{isa:?}: a fault must show");
        }
    }
}

#[test]
fn the_small_kernels_are_the_same_everywhere() {
    let mut random = Random(3);
    for len in [2, 16, 30, 64, 80, 96, 128] {
        let (x, y) = (random.floats(len), random.floats(len));
        let mut wide: Vec<f32> = x.iter().map(|x| x * 1e5).collect();
        wide[0] = f32::INFINITY;
        wide[1] = 1e-7;
        let angles: Vec<f32> = random.floats(len / 2);
        let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|angle| (angle.cos(), angle.sin())).unzip();
        let run = |kernels: AttentionKernels| {
            let (mut bits, mut widened) = (vec![0; 3 * len], vec![5.0; 3 * (len + 3)]);
            kernels.narrow(&wide, &mut bits[..len]);
            kernels.narrow(&y, &mut bits[len..2 * len]);
            kernels.narrow(&x, &mut bits[2 * len..]);
            kernels.widen(Stored::F16(&bits), len, &mut widened, len + 3);
            let mut turned = vec![0.0; len];
            kernels.rotate(&x, &cos, &sin, 0.3, &mut turned);
            let (mut total, mut state) = (x.clone(), SoftmaxState { max: 3.0, sum: 2.0 });
            kernels.merge(&mut total, &mut state, &y, SoftmaxState { max: 4.5, sum: 1.5 });
            (bits, widened, turned, total, state)
        };
        let expected = run(portable());
        assert_eq!(f16::from_bits(expected.0[0]), f16::MAX, "an infinity must become a number");
        assert_eq!(from_bits(&expected.0[..len]), expected.1[..len]);
        assert_eq!(expected.1[len], 5.0, "wrote between the rows");
        for (isa, kernels) in all() {
            assert!(run(kernels) == expected, "{isa:?}, {len}");
        }

        let mut turned = vec![0.0; len];
        portable().rotate(&x, &cos, &sin, 2.0, &mut turned);
        let half = len / 2;
        assert!((turned[0] - 2.0 * (x[0] * cos[0] - x[half] * sin[0])).abs() < 1e-6);
        assert!((turned[half] - 2.0 * (x[half] * cos[0] + x[0] * sin[0])).abs() < 1e-6);

        let (mut total, mut state) = (vec![0.0; len], SoftmaxState::EMPTY);
        let part = SoftmaxState { max: -2.0, sum: 1.25 };
        portable().merge(&mut total, &mut state, &y, part);
        assert!(total == y && state == part, "the first part must come through as it is");
    }
}

#[test]
fn digits_are_the_same_everywhere_and_near_the_number() {
    let mut random = Random(7);
    for len in [2, 16, 30, 64, 80, 96, 128] {
        let unit = random.floats(len);
        for factor in [1.0, 1e-3, 3e4, 1e-6, 1e-9, 0.0, 1e30] {
            let numbers: Vec<f32> = unit.iter().map(|x| x * factor).collect();
            let run = |kernels: AttentionKernels| {
                let (mut digits, mut widened) = (vec![1; 3 * len], vec![5.0; 3 * (len + 3)]);
                let scale = kernels.quantize(&numbers, &mut digits[..len]);
                kernels.quantize(&unit, &mut digits[len..2 * len]);
                digits[2 * len..].fill(-127);
                kernels.widen(Stored::Int8(&digits), len, &mut widened, len + 3);
                let mut scaled = widened[..len].to_vec();
                kernels.scale(&mut scaled, &unit);
                (digits, scale, widened, scaled)
            };
            let expected = run(portable());
            for (isa, kernels) in all() {
                assert!(run(kernels) == expected, "{isa:?}, {len} numbers up to {factor}");
            }
            let (digits, scale, widened, scaled) = expected;
            assert_eq!(widened[len], 5.0, "wrote between the rows");
            let scale = f16::from_bits(scale).to_f32();
            let largest = numbers.iter().fold(0.0f32, |max, x| max.max(x.abs())).min(65504.0);
            // The scale itself is rounded: by 2^-11, or where it is tiny by 2^-25.
            let tolerance = largest * (0.5 / 127.0 + 1.0 / 2048.0) + 127.0 / 2.0f32.powi(25);
            for i in 0..len {
                assert_eq!(widened[i], f32::from(digits[i]));
                assert_eq!(scaled[i], widened[i] * unit[i]);
                assert!(digits[i] >= -127);
                let error = (widened[i] * scale - numbers[i].clamp(-65504.0, 65504.0)).abs();
                assert!(error <= tolerance, "{} became {} * {scale}", numbers[i], digits[i]);
            }
        }
    }
}

#[test]
fn digits_round_to_even_and_hold_what_is_no_number() {
    for (isa, kernels) in all() {
        let digits_of = |numbers: &[f32]| {
            // Long enough for every instruction set's registers.
            let numbers: Vec<f32> = numbers.iter().copied().cycle().take(32 * numbers.len()).collect();
            let mut digits = vec![99; numbers.len()];
            let scale = f16::from_bits(kernels.quantize(&numbers, &mut digits)).to_f32();
            digits.truncate(numbers.len() / 32);
            (digits, scale)
        };
        let (digits, scale) = digits_of(&[-127.0, 0.5, 1.5, -2.5, 126.5, -0.0]);
        assert_eq!((digits, scale), (vec![-127, 0, 2, -2, 126, 0], 1.0), "{isa:?}");
        assert_eq!(digits_of(&[0.0, -0.0]), (vec![0, 0], 0.0), "{isa:?}");
        assert_eq!(digits_of(&[1e-9, -1e-30]), (vec![0, 0], 0.0), "{isa:?}");
        let (digits, scale) = digits_of(&[f32::INFINITY, f32::NEG_INFINITY, 1.0, 65504.0]);
        assert_eq!(digits, [127, -127, 0, 127], "{isa:?}: an infinity must become a number");
        assert!((scale * 127.0 / 65504.0 - 1.0).abs() < 1e-3, "{isa:?}: {scale}");
        let (digits, scale) = digits_of(&[1.0, -f32::NAN, f32::INFINITY]);
        assert!(digits == [0, 0, 0] && scale.is_nan(), "{isa:?}: a fault must show");
    }
}

/// A model's attention with one sequence of given inputs.
struct Setup {
    format: KvFormat,
    config: ModelConfig,
    qkv: Vec<f32>,
    len: usize,
}

impl Setup {
    fn new(
        random: &mut Random,
        kv_heads: usize,
        group: usize,
        head_dim: usize,
        len: usize,
        scale: f32,
    ) -> Self {
        let json = serde_json::json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu",
            "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": kv_heads * group,
            "num_key_value_heads": kv_heads, "head_dim": head_dim, "intermediate_size": 64,
            "vocab_size": 64, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
            "max_position_embeddings": 4096, "tie_word_embeddings": true
        });
        let config = ModelConfig::parse(json.to_string().as_bytes(), None).unwrap();
        let width = (group + 2) * kv_heads * head_dim;
        let qkv = random.floats(len * width).iter().map(|x| x * scale).collect();
        Self { format: KvFormat::F16, config, qkv, len }
    }

    fn width(&self) -> usize {
        (self.config.num_heads + 2 * self.config.num_kv_heads) * self.config.head_dim
    }

    /// Output of every row, with the sequence appended in steps of `step` rows to blocks full of NaN.
    fn run(&self, kernels: AttentionKernels, threads: usize, step: usize) -> Vec<f32> {
        let blocks = self.len.div_ceil(BLOCK_SIZE);
        let mut pool = ThreadPool::new(threads).unwrap();
        let mut attention = Attention::new(kernels, &self.config, threads);
        let mut cache = KvCache::new(&self.config, self.format, blocks).unwrap();
        let layer = 1;
        cache.fill_with_nan();
        let columns = self.config.num_heads * self.config.head_dim;
        let mut output = vec![0.0; self.len * columns];
        for start in (0..self.len).step_by(step) {
            let rows = step.min(self.len - start);
            let plan = StepPlan {
                tokens: vec![0; rows],
                positions: (start..start + rows).map(|position| position as u32).collect(),
                sequences: vec![PlannedSequence {
                    rows: 0..rows,
                    block_table: (0..blocks as BlockId).rev().collect(),
                }],
                logits_rows: Vec::new(),
                ..StepPlan::default()
            };
            let qkv = &self.qkv[start * self.width()..][..rows * self.width()];
            let output = &mut output[start * columns..][..rows * columns];
            attention.prepare(&plan);
            attention.append(&mut pool, &plan, &mut cache, layer, qkv);
            attention.run(&mut pool, &plan, &cache, layer, qkv, output);
        }
        output
    }

    /// Attention of a query head at `position` as a textbook has it, in `f64`.
    fn reference(&self, position: usize, head: usize) -> Vec<f64> {
        let (head_dim, heads) = (self.config.head_dim, self.config.num_heads);
        let kv_head = heads + head / self.config.heads_per_kv_head();
        let part =
            |position: usize, head: usize| &self.qkv[position * self.width() + head * head_dim..][..head_dim];
        let mut rotary = Rotary::new(head_dim, self.config.rope_theta);
        rotary.prepare(&(0..=position as u32).collect::<Vec<_>>());
        let rotated = |position: usize, head: usize| {
            let mut to = vec![0.0; head_dim];
            let (cos, sin) = rotary.angles(position);
            portable().rotate(part(position, head), cos, sin, 1.0, &mut to);
            to
        };
        let query = rotated(position, head);
        let scores: Vec<f64> = (0..=position)
            .map(|p| {
                let keys = as_kept(&rotated(p, kv_head), self.format);
                let products = query.iter().zip(keys).map(|(q, k)| f64::from(*q) * f64::from(k));
                products.sum::<f64>() / (head_dim as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut sums = vec![0.0; head_dim];
        let mut sum = 0.0;
        for (p, score) in scores.iter().enumerate() {
            let weight = (score - max).exp();
            sum += weight;
            let values = as_kept(part(p, kv_head + self.config.num_kv_heads), self.format);
            for (total, value) in sums.iter_mut().zip(values) {
                *total += weight * f64::from(value);
            }
        }
        sums.iter().map(|total| total / sum).collect()
    }

    /// Largest error of a few rows.
    fn error(&self, output: &[f32]) -> f64 {
        let (head_dim, heads) = (self.config.head_dim, self.config.num_heads);
        let boundaries = [0, 1, 15, 16, 63, 64, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK];
        let rows = boundaries.into_iter().filter(|row| *row < self.len).chain([self.len - 1]);
        rows.flat_map(|row| [0, heads / 2, heads - 1].map(|head| (row, head)))
            .flat_map(|(row, head)| {
                let found = &output[(row * heads + head) * head_dim..][..head_dim];
                let expected = self.reference(row, head);
                found.iter().zip(expected).map(|(f, e)| (f64::from(*f) - e).abs()).collect::<Vec<_>>()
            })
            // NaN counts as the largest of all.
            .fold(0.0, |max, error| if error <= max { max } else { error })
    }
}

const HEADS: [(usize, usize, usize); 8] = [
    // Key/value heads, query heads of each, width.
    (2, 7, 64),
    (2, 6, 128),
    (1, 1, 64),
    (3, 2, 80),
    (1, 8, 96),
    (2, 5, 70),
    (1, 17, 16),
    (1, 120, 16),
];

#[test]
fn attention_is_that_of_a_textbook() {
    let mut random = Random(4);
    for (kv_heads, group, head_dim) in HEADS {
        for (len, scale, step) in
            [(1, 1.0, 1), (17, 1.0, 16), (CHUNK + 1, 1.0, 300), (CHUNK * 2 + 30, 1.0, 500), (300, 12.0, 300)]
        {
            let mut setup = Setup::new(&mut random, kv_heads, group, head_dim, len, scale);
            for (format, (isa, kernels)) in each() {
                setup.format = format;
                let error = setup.error(&setup.run(kernels, 2, step));
                assert!(
                    error <= ATTENTION_TOLERANCE * f64::from(scale),
                    "{isa:?}, {format:?}, {kv_heads} x {group} x {head_dim}, {len} rows, scale {scale}: {error}"
                );
            }
        }
    }
}

/// Blocks hold NaN wherever nothing was written, so this also shows that no hidden slot is used.
#[test]
fn neither_threads_nor_steps_change_a_bit() {
    let mut random = Random(5);
    for (kv_heads, group, head_dim) in HEADS {
        let len = CHUNK + 45;
        let mut setup = Setup::new(&mut random, kv_heads, group, head_dim, len, 2.0);
        for (format, (isa, kernels)) in each() {
            setup.format = format;
            let expected = setup.run(kernels, 1, len);
            assert!(expected.iter().all(|value| value.is_finite()));
            for (threads, step) in [(3, len), (1, 1), (2, 16), (3, 37), (2, CHUNK), (3, 2)] {
                let found = setup.run(kernels, threads, step);
                assert!(
                    found == expected,
                    "{isa:?}, {format:?}, group {group}: {threads} threads, steps of {step}"
                );
            }
        }
    }
}

/// A row whose own key and value are not numbers must not reach the rows before it.
#[test]
fn a_fault_stays_with_the_rows_that_see_it() {
    let mut random = Random(6);
    let (len, bad) = (CHUNK + 20, CHUNK - 9);
    let mut setup = Setup::new(&mut random, 2, 7, 64, len, 1.0);
    let sound = setup.qkv.clone();
    let width = setup.width();
    setup.qkv[bad * width..(bad + 1) * width].fill(f32::NAN);
    for (format, (isa, kernels)) in each() {
        setup.format = format;
        for step in [len, 1] {
            let output = setup.run(kernels, 2, step);
            let (before, after) = output.split_at(bad * 14 * 64);
            assert!(after.iter().all(|value| value.is_nan()), "{isa:?}, {format:?}: a fault must show");
            let whole = Setup { format, qkv: sound.clone(), config: setup.config.clone(), len };
            assert!(
                whole.run(kernels, 2, step)[..before.len()] == *before,
                "{isa:?}, {format:?}, steps of {step}"
            );
        }
    }
}
