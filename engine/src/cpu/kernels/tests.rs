//! Every instruction set's kernels against the portable ones, on random and extreme inputs.
//!
//! Integers must be equal. Floats may differ by rounding: [`TOLERANCE`] relative to the sum of the
//! magnitudes that went in, which is what rounding errors scale with.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Some hundred additions in `f32` in another order: a few units of 2^-24 each way, with room.
const TOLERANCE: f64 = 2e-6;

fn others() -> impl Iterator<Item = Kernels> {
    Isa::ALL.into_iter().filter(|isa| *isa != Isa::Portable).filter_map(Kernels::new)
}

fn portable() -> Kernels {
    Kernels::new(Isa::Portable).unwrap()
}

/// Reproducible numbers without structure.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let x = self.0 ^ (self.0 >> 29);
        x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
    }

    /// Mostly moderate; now and then zero, large, or tiny.
    fn float(&mut self) -> f32 {
        let unit = (self.next() % 20_001) as f32 / 10_000.0 - 1.0;
        match self.next() % 16 {
            0 => 0.0,
            1 => unit * 1e4,
            2 => unit * 1e-6,
            _ => unit,
        }
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

/// Runs `test` on many seeds and small shapes.
fn check(test: impl Fn(&mut Random, usize, usize)) {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 40, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    runner
        .run(&(any::<u64>(), 1usize..5, 1usize..12), |(seed, size, rows)| {
            test(&mut Random(seed), size, rows);
            Ok(())
        })
        .unwrap();
}

fn assert_close(found: f32, expected: f32, magnitude: f64, what: &str) {
    let error = (f64::from(found) - f64::from(expected)).abs();
    assert!(error <= TOLERANCE * magnitude + 1e-37, "{what}: {found} for {expected}, magnitude {magnitude}");
}

struct Int4Data {
    group_size: usize,
    weights: Vec<u8>,
    scales: Vec<u16>,
    zeros: Vec<u8>,
}

impl Int4Data {
    fn random(random: &mut Random, groups: usize, group_size: usize) -> Self {
        let lines = groups * group_size / LINE_INPUTS;
        Self {
            group_size,
            // All-ones nibbles often: the largest products.
            weights: (0..lines * LINE_BYTES)
                .map(|_| if random.next().is_multiple_of(4) { 0xff } else { random.next() as u8 })
                .collect(),
            scales: (0..groups * TILE)
                .map(|_| f16::from_f32(random.float().abs() * 0.01).to_bits())
                .collect(),
            zeros: (0..groups * TILE).map(|_| (random.next() % 16) as u8).collect(),
        }
    }

    fn tile(&self) -> Int4Tile<'_> {
        Int4Tile {
            group_size: self.group_size,
            weights: &self.weights,
            scales: &self.scales,
            zeros: &self.zeros,
        }
    }
}

/// Owned [`QuantizedRows`].
struct Rounded {
    digits: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Rounded {
    fn new(kernels: Kernels, x: &[f32], group_size: usize) -> Self {
        let groups = x.len() / group_size;
        let mut rounded =
            Self { digits: vec![99; x.len() * DIGITS], scales: vec![9.0; groups], sums: vec![9; groups] };
        kernels.quantize_row(x, group_size, &mut rounded.digits, &mut rounded.scales, &mut rounded.sums);
        rounded
    }

    fn rows(&self, width: usize, group_size: usize) -> QuantizedRows<'_> {
        QuantizedRows { width, group_size, digits: &self.digits, scales: &self.scales, sums: &self.sums }
    }

    fn value(&self, i: usize, group_size: usize) -> f32 {
        let at = i / LINE_INPUTS * LINE_INPUTS * DIGITS + i % LINE_INPUTS;
        let v = 128 * i32::from(self.digits[at]) + i32::from(self.digits[at + LINE_INPUTS]);
        v as f32 * self.scales[i / group_size]
    }
}

#[test]
fn rounding_is_the_same_everywhere_and_close() {
    check(|random, size, _| {
        for group_size in [32, 64, 128] {
            let mut x = random.floats(size * group_size);
            // Ties, the extremes of the range, and groups that are nearly or wholly zero.
            x[0] = 127.0;
            x[1] = 0.5;
            x[2] = -0.5;
            if size > 1 {
                let tiny = if random.next().is_multiple_of(2) { 1e-38 } else { 0.0 };
                x[group_size..2 * group_size].fill(tiny);
            }
            let expected = Rounded::new(portable(), &x, group_size);
            for (i, x) in x.iter().enumerate() {
                let error = (expected.value(i, group_size) - x).abs();
                assert!(
                    error <= expected.scales[i / group_size] * 0.51 + SMALLEST_AMAX,
                    "{x} rounded by {error}"
                );
            }
            for kernels in others() {
                let found = Rounded::new(kernels, &x, group_size);
                assert_eq!(found.digits, expected.digits);
                assert_eq!(found.scales, expected.scales);
                assert_eq!(found.sums, expected.sums);
            }
        }
    });
}

#[test]
fn activations_that_are_not_finite_give_nan_and_not_a_number() {
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for kernels in others().chain([portable()]) {
            let mut x = vec![1.0; 64];
            x[37] = bad;
            let rounded = Rounded::new(kernels, &x, 32);
            assert_eq!(rounded.scales[0], 1.0 / LARGEST_ROUNDED);
            assert!(rounded.scales[1].is_nan());
            assert!(rounded.digits[64..].iter().all(|digit| *digit == 0));
        }
    }
}

/// The int4 kernels against each other and against the formula in `f64`; also that the number of rows
/// in a call changes no bit.
#[test]
fn int4_dots_agree() {
    check(|random, groups, rows| {
        let group_size = [32, 64, 128][random.next() as usize % 3];
        let width = groups * group_size;
        let data = Int4Data::random(random, groups, group_size);
        let mut x = random.floats(rows * width);
        if random.next().is_multiple_of(4) {
            // Every product at its largest.
            x.fill(-3.0);
        }
        let rounded = Rounded::new(portable(), &x, group_size);
        let floats = FloatRows { width, values: &x };
        let quantized = rounded.rows(width, group_size);
        for (t, row) in x.chunks_exact(width).enumerate() {
            for n in 0..TILE {
                let (mut sum, mut magnitude, mut rounded_sum) = (0.0, 0.0, 0.0);
                for (k, x) in row.iter().enumerate() {
                    let (line, within) = (k / LINE_INPUTS, k % LINE_INPUTS);
                    let byte = data.weights[line * LINE_BYTES + 4 * n + within % 4];
                    let q = if within < 4 { byte & 15 } else { byte >> 4 };
                    let constants = k / group_size * TILE + n;
                    let scale = f16::from_bits(data.scales[constants]).to_f64();
                    let weight = (f64::from(q) - f64::from(data.zeros[constants])) * scale;
                    sum += weight * f64::from(*x);
                    rounded_sum += weight * f64::from(rounded.value(t * width + k, group_size));
                    // What the factored sums add up before they cancel.
                    magnitude += 15.0 * scale * f64::from(x.abs());
                }
                for kernels in others().chain([portable()]) {
                    let mut out = [[0.0; TILE]];
                    kernels.int4_dot_f32(&data.tile(), &floats, t, &mut out);
                    assert_close(out[0][n], sum as f32, magnitude, "f32");
                    kernels.int4_dot_i8(&data.tile(), &quantized, t, &mut out);
                    assert_close(out[0][n], rounded_sum as f32, magnitude, "i8");
                }
            }
        }
        for kernels in others().chain([portable()]) {
            let (mut together, mut alone) = (vec![[0.0; TILE]; rows], [[0.0; TILE]]);
            kernels.int4_dot_f32(&data.tile(), &floats, 0, &mut together);
            for (t, together) in together.iter().enumerate() {
                kernels.int4_dot_f32(&data.tile(), &floats, t, &mut alone);
                assert_eq!(alone[0], *together);
            }
            kernels.int4_dot_i8(&data.tile(), &quantized, 0, &mut together);
            for (t, together) in together.iter().enumerate() {
                kernels.int4_dot_i8(&data.tile(), &quantized, t, &mut alone);
                assert_eq!(alone[0], *together);
            }
        }
    });
}

#[test]
fn dense_dots_agree() {
    check(|random, size, rows| {
        let width = 7 * size + random.next() as usize % 4;
        let weights = random.floats(width * TILE);
        let x = random.floats(rows * width);
        let floats = FloatRows { width, values: &x };
        for format in [DenseFormat::F16, DenseFormat::Bf16, DenseFormat::F32] {
            let bytes: Vec<u8> = match format {
                DenseFormat::F16 => weights.iter().flat_map(|w| f16::from_f32(*w).to_ne_bytes()).collect(),
                DenseFormat::Bf16 => weights.iter().flat_map(|w| bf16::from_f32(*w).to_ne_bytes()).collect(),
                DenseFormat::F32 => weights.iter().flat_map(|w| w.to_ne_bytes()).collect(),
            };
            let tile = DenseTile { format, weights: &bytes };
            let mut expected = vec![[0.0; TILE]; rows];
            portable().dense_dot(&tile, &floats, 0, &mut expected);
            for kernels in others() {
                let (mut found, mut alone) = (vec![[0.0; TILE]; rows], [[0.0; TILE]]);
                kernels.dense_dot(&tile, &floats, 0, &mut found);
                for t in 0..rows {
                    kernels.dense_dot(&tile, &floats, t, &mut alone);
                    assert_eq!(alone[0], found[t], "the number of rows changed a result");
                    for n in 0..TILE {
                        let products = (0..width)
                            .map(|k| (f64::from(weights[k * TILE + n]) * f64::from(x[t * width + k])).abs());
                        assert_close(found[t][n], expected[t][n], products.sum(), "dense");
                    }
                }
            }
        }
    });
}

#[test]
fn elementwise_kernels_agree() {
    check(|random, size, _| {
        let len = 13 * size + random.next() as usize % 16;
        let (mut x, y) = (random.floats(len), random.floats(len));
        x[0] = -200.0;
        x[1] = 200.0;
        let mean_square = x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / len as f64;
        for kernels in others().chain([portable()]) {
            let mut out = vec![0.0; len];
            kernels.rms_norm(&x, &y, 1e-6, &mut out);
            for i in 0..len {
                let expected = f64::from(x[i]) / (mean_square + 1e-6).sqrt() * f64::from(y[i]);
                assert_close(out[i], expected as f32, expected.abs(), "rms_norm");
            }
            kernels.silu_mul(&x, &y, &mut out);
            for i in 0..len {
                let gate = f64::from(x[i]);
                let expected = gate / (1.0 + (-gate).exp()) * f64::from(y[i]);
                // Below exp's range the true value is smaller than any that matters; it becomes about 1e-36.
                assert_close(out[i], expected as f32, expected.abs() + 1e-24, "silu_mul");
            }
        }
    });
}
