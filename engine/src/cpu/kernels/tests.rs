//! Every instruction set's kernels against the portable ones, on random and extreme inputs.
//!
//! Integers must be equal. Floats may differ by rounding: [`TOLERANCE`] relative to the sum of the
//! magnitudes that went in, which is what rounding errors scale with. Weights are packed and digits are read here
//! by the words of the layout, apart from the kernels.

use half::{bf16, f16};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use super::*;

/// Some hundred additions in `f32` in another order: a few units of 2^-24 each way, with room.
const TOLERANCE: f64 = 2e-6;

fn all() -> impl Iterator<Item = Kernels> {
    Isa::ALL.into_iter().filter_map(Kernels::new)
}

fn others() -> impl Iterator<Item = Kernels> {
    all().filter(|kernels| kernels.isa() != Isa::Portable)
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

    fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.next() as usize % choices.len()]
    }

    /// Activations in groups: most of them random, the others what a kernel may get wrong.
    fn activations(&mut self, groups: usize, group_size: usize) -> Vec<f32> {
        let group = |_| {
            let mut group = self.floats(group_size);
            let amax = group.iter().fold(1.0f32, |max, x| max.max(x.abs()));
            match self.next() % 12 {
                0 => group.fill(amax),
                1 => group.fill(-amax),
                2 => group.iter_mut().for_each(|x| *x = amax.copysign(*x)),
                3 => group.fill(self.one_of(&[0.0, -0.0, 1e-38, 1e-45, SMALLEST_AMAX, -0.9 * SMALLEST_AMAX])),
                4 => group.iter_mut().for_each(|x| *x *= 1e25),
                // Halves of a step: ties.
                5 => group.iter_mut().enumerate().for_each(|(i, x)| *x = (i % 255) as f32 / 2.0 - 63.5),
                _ => {}
            }
            group
        };
        (0..groups).flat_map(group).collect()
    }
}

/// Runs `test` on many seeds and small shapes.
fn check(test: impl Fn(&mut Random, usize, usize)) {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 40, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    runner
        .run(&(any::<u64>(), 1usize..5, 1usize..=30), |(seed, size, rows)| {
            test(&mut Random(seed), size, rows);
            Ok(())
        })
        .unwrap();
}

fn assert_close(found: f32, expected: f32, magnitude: f64, what: &str) {
    let error = (f64::from(found) - f64::from(expected)).abs();
    assert!(error <= TOLERANCE * magnitude + 1e-37, "{what}: {found} for {expected}, magnitude {magnitude}");
}

const BITS: [WeightBits; 2] = [WeightBits::Four, WeightBits::Eight];
const DIGITS: [Digits; 2] = [Digits::One, Digits::Two];
const GROUP_SIZES: [usize; 3] = [32, 64, 128];

/// A [`QuantTile`] and what is in it.
struct Weights {
    bits: WeightBits,
    group_size: usize,
    /// `[inputs][PAIR]`.
    q: Vec<[u8; PAIR]>,
    /// `[groups][PAIR]`.
    scales: Vec<[f16; PAIR]>,
    /// `[groups][PAIR]`.
    zeros: Vec<[u8; PAIR]>,
    lines: Vec<Line>,
}

impl Weights {
    fn new(
        bits: WeightBits,
        group_size: usize,
        q: Vec<[u8; PAIR]>,
        scales: Vec<[f16; PAIR]>,
        zeros: Vec<[u8; PAIR]>,
    ) -> Self {
        let mut lines = Vec::new();
        for (g, q) in q.chunks_exact(group_size).enumerate() {
            let words = |word: &dyn Fn(usize) -> u16| {
                let mut line = Line([0; LINE_BYTES]);
                for (n, bytes) in line.0.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                    *bytes = word(n).to_le_bytes();
                }
                line
            };
            lines.push(words(&|n| scales[g][n].to_bits()));
            lines.push(words(&|n| (-i16::from(zeros[g][n])) as u16));
            for step in q.chunks_exact(bits.line_inputs()) {
                for half in 0..2 {
                    let byte = |i: usize| {
                        let (n, j) = (half * TILE + i / LANE_INPUTS, i % LANE_INPUTS);
                        match bits {
                            WeightBits::Four => step[j][n] | step[LANE_INPUTS + j][n] << 4,
                            WeightBits::Eight => step[j][n],
                        }
                    };
                    lines.push(Line(std::array::from_fn(byte)));
                }
            }
        }
        Self { bits, group_size, q, scales, zeros, lines }
    }

    fn random(random: &mut Random, bits: WeightBits, groups: usize, group_size: usize) -> Self {
        let largest = largest_weight(bits);
        let mut weight = || match random.next() % 4 {
            // The largest products often.
            0 => largest,
            _ => (random.next() % (u64::from(largest) + 1)) as u8,
        };
        let q = (0..groups * group_size).map(|_| std::array::from_fn(|_| weight())).collect();
        let zeros = (0..groups).map(|_| std::array::from_fn(|_| weight())).collect();
        let mut scale = || f16::from_f32(random.float() * 0.01);
        let scales = (0..groups).map(|_| std::array::from_fn(|_| scale())).collect();
        Self::new(bits, group_size, q, scales, zeros)
    }

    fn tile(&self) -> QuantTile<'_> {
        QuantTile { bits: self.bits, group_size: self.group_size, lines: &self.lines }
    }

    fn weight(&self, k: usize, n: usize) -> f64 {
        let g = k / self.group_size;
        self.scales[g][n].to_f64() * (f64::from(self.q[k][n]) - f64::from(self.zeros[g][n]))
    }

    /// `(product, sum of magnitudes)` of one output with the inputs `x(k)`, as the definition has it.
    fn dot(&self, n: usize, x: impl Fn(usize) -> f64) -> (f64, f64) {
        (0..self.q.len()).fold((0.0, 0.0), |(sum, magnitude), k| {
            let product = self.weight(k, n) * x(k);
            (sum + product, magnitude + product.abs())
        })
    }
}

fn largest_weight(bits: WeightBits) -> u8 {
    match bits {
        WeightBits::Four => 15,
        WeightBits::Eight => 255,
    }
}

/// Owned [`QuantizedRows`].
struct Rounded {
    rows: usize,
    width: usize,
    group_size: usize,
    digits: Digits,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Rounded {
    /// Rounds rows of `width`, block by block.
    fn new(kernels: Kernels, x: &[f32], width: usize, group_size: usize, digits: Digits) -> Self {
        let (rows, groups, count) = (x.len() / width, width / group_size, digits.count());
        // Not zeros: everything has to be written.
        let values = vec![99; x.len() * count];
        let (scales, sums) = (vec![9.0; rows * groups], vec![9; rows * groups * count]);
        let mut rounded = Self { rows, width, group_size, digits, values, scales, sums };
        for block in (0..rows).step_by(digits.block_rows()) {
            let block_rows = digits.block_rows().min(rows - block);
            for g in 0..groups {
                let at = block * groups + g * block_rows;
                let mut to = QuantizedGroup {
                    digits,
                    values: &mut rounded.values[at * group_size * count..][..block_rows * group_size * count],
                    scales: &mut rounded.scales[at..][..block_rows],
                    sums: &mut rounded.sums[at * count..][..block_rows * count],
                };
                kernels.quantize_group(&x[block * width + g * group_size..], width, &mut to);
            }
        }
        rounded
    }

    fn as_rows(&self) -> QuantizedRows<'_> {
        QuantizedRows {
            rows: self.rows,
            width: self.width,
            group_size: self.group_size,
            digits: self.digits,
            values: &self.values,
            scales: &self.scales,
            sums: &self.sums,
        }
    }

    /// `(start of the row's block, rows of the block, row in the block)`.
    fn block(&self, row: usize) -> (usize, usize, usize) {
        let whole = self.digits.block_rows();
        let start = row / whole * whole;
        (start, whole.min(self.rows - start), row - start)
    }

    fn scale(&self, row: usize, g: usize) -> f32 {
        let (start, rows, t) = self.block(row);
        self.scales[start * (self.width / self.group_size) + g * rows + t]
    }

    fn sum(&self, row: usize, g: usize, d: usize) -> i32 {
        let (start, rows, t) = self.block(row);
        let count = self.digits.count();
        self.sums[(start * (self.width / self.group_size) + g * rows) * count + d * rows + t]
    }

    fn digit(&self, row: usize, k: usize, d: usize) -> i32 {
        let (start, rows, t) = self.block(row);
        let (count, lane) = (self.digits.count(), k / LANE_INPUTS);
        let at = start * self.width * count + ((lane * count + d) * rows + t) * LANE_INPUTS;
        i32::from(self.values[at + k % LANE_INPUTS])
    }

    /// The integer that was rounded to.
    fn number(&self, row: usize, k: usize) -> i32 {
        match self.digits {
            Digits::One => self.digit(row, k, 0),
            Digits::Two => 128 * self.digit(row, k, 0) + self.digit(row, k, 1),
        }
    }

    fn value(&self, row: usize, k: usize) -> f64 {
        f64::from(self.number(row, k)) * f64::from(self.scale(row, k / self.group_size))
    }
}

#[test]
fn rounding_is_the_same_everywhere_and_close() {
    check(|random, groups, rows| {
        let (group_size, digits) = (random.one_of(&GROUP_SIZES), random.one_of(&DIGITS));
        let width = groups * group_size;
        let x = random.activations(rows * groups, group_size);
        let expected = Rounded::new(portable(), &x, width, group_size, digits);
        for (row, x) in x.chunks_exact(width).enumerate() {
            for (k, x) in x.iter().enumerate() {
                let error = (expected.value(row, k) - f64::from(*x)).abs();
                let step = f64::from(expected.scale(row, k / group_size));
                assert!(error <= step * 0.51 + f64::from(SMALLEST_AMAX), "{x} rounded by {error}");
            }
            for g in 0..groups {
                for d in 0..digits.count() {
                    let inputs = g * group_size..(g + 1) * group_size;
                    assert_eq!(
                        expected.sum(row, g, d),
                        inputs.map(|k| expected.digit(row, k, d)).sum::<i32>()
                    );
                }
            }
        }
        for kernels in others() {
            let found = Rounded::new(kernels, &x, width, group_size, digits);
            assert_eq!(found.values, expected.values, "{:?}", kernels.isa());
            assert_eq!(found.scales, expected.scales, "{:?}", kernels.isa());
            assert_eq!(found.sums, expected.sums, "{:?}", kernels.isa());
        }
    });
}

#[test]
fn activations_that_are_not_finite_give_nan_and_not_a_number() {
    let (rows, groups, group_size) = (14, 2, 32);
    for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (kernels, digits) in all().flat_map(|kernels| DIGITS.map(|digits| (kernels, digits))) {
            // One in a whole block of rows, one in what remains.
            let bad_rows = [3, 13];
            let mut x = vec![1.0; rows * groups * group_size];
            for row in bad_rows {
                x[(row * groups + 1) * group_size + 5] = bad;
            }
            let rounded = Rounded::new(kernels, &x, groups * group_size, group_size, digits);
            for row in 0..rows {
                assert_eq!(rounded.scale(row, 0), 1.0 / digits.largest());
                assert_eq!(rounded.number(row, 7), digits.largest() as i32);
                assert_eq!(rounded.scale(row, 1).is_nan(), bad_rows.contains(&row));
                if bad_rows.contains(&row) {
                    assert!((0..digits.count()).all(|d| rounded.sum(row, 1, d) == 0));
                    assert!((group_size..2 * group_size).all(|k| rounded.number(row, k) == 0));
                }
            }
            for bits in BITS {
                let weights = Weights::random(&mut Random(7), bits, groups, group_size);
                let mut out = vec![[0.0; PAIR]; rows];
                kernels.quant_dot(&weights.tile(), &rounded.as_rows(), 0, &mut out);
                for (row, out) in out.iter().enumerate() {
                    assert!(out.iter().all(|out| out.is_nan() == bad_rows.contains(&row)));
                }
            }
        }
    }
}

/// Each table against the formula in `f64`; with one group there is no float addition, and it is bits that agree.
fn check_quant_dot(weights: &Weights, rounded: &Rounded) {
    let run = |kernels: Kernels| {
        let mut out = vec![[9.0; PAIR]; rounded.rows];
        kernels.quant_dot(&weights.tile(), &rounded.as_rows(), 0, &mut out);
        out
    };
    let expected = run(portable());
    let results: Vec<_> = others().map(|kernels| (kernels.isa(), run(kernels))).collect();
    for row in 0..rounded.rows {
        for n in 0..PAIR {
            let (sum, magnitude) = weights.dot(n, |k| rounded.value(row, k));
            assert_close(expected[row][n], sum as f32, magnitude, "portable");
            for (isa, found) in &results {
                assert_close(found[row][n], sum as f32, magnitude, isa.name());
                if rounded.width == rounded.group_size {
                    assert_eq!(found[row][n].to_bits(), expected[row][n].to_bits(), "{isa:?}");
                }
            }
        }
    }
}

#[test]
fn integer_dots_agree() {
    check(|random, groups, rows| {
        let group_size = random.one_of(&GROUP_SIZES);
        let width = groups * group_size;
        let x = random.activations(rows * groups, group_size);
        for digits in DIGITS {
            let rounded = Rounded::new(portable(), &x, width, group_size, digits);
            for bits in BITS {
                check_quant_dot(&Weights::random(random, bits, groups, group_size), &rounded);
            }
        }
    });
}

/// The largest products and sums there are, of either sign: where a narrow sum would overflow.
#[test]
fn integer_dots_agree_at_the_extremes() {
    type Sign = fn(usize) -> f32;
    let signs: [Sign; 4] = [|_| 1.0, |_| -1.0, |k| [1.0, -1.0][k % 2], |k| [1.0, 1.0, -1.0, -1.0][k % 4]];
    for (bits, digits, group_size) in BITS
        .into_iter()
        .flat_map(|bits| DIGITS.map(|digits| (bits, digits)))
        .flat_map(|(bits, digits)| GROUP_SIZES.map(|group_size| (bits, digits, group_size)))
    {
        let largest = largest_weight(bits);
        let zeros = [0, largest / 2 + 1, largest];
        for q in [0, 1, largest / 2, largest] {
            for zero in zeros {
                let weights = Weights::new(
                    bits,
                    group_size,
                    vec![[q; PAIR]; group_size],
                    vec![[f16::from_f32(0.01); PAIR]],
                    vec![[zero; PAIR]],
                );
                // Rows of each sign, and of magnitudes whose digits are all largest: 127 and 63, 127 and -64.
                let x: Vec<f32> = [1.0, 16255.0 / 16256.0, 16192.0 / 16256.0, 63.0 / 16256.0]
                    .iter()
                    .flat_map(|size| signs.map(|sign| (*size, sign)))
                    .flat_map(|(size, sign)| {
                        (0..group_size).map(move |k| if k == 0 { 1.0 } else { size * sign(k) })
                    })
                    .collect();
                check_quant_dot(&weights, &Rounded::new(portable(), &x, group_size, group_size, digits));
            }
        }
    }
}

/// What a token gets does not depend, in any bit, on the tokens beside it.
#[test]
fn the_number_of_rows_changes_no_bit() {
    check(|random, groups, rows| {
        let (group_size, bits, digits) =
            (random.one_of(&GROUP_SIZES), random.one_of(&BITS), random.one_of(&DIGITS));
        let width = groups * group_size;
        let weights = Weights::random(random, bits, groups, group_size);
        let x = random.activations(rows * groups, group_size);
        for kernels in all() {
            let run = |x: &[f32]| {
                let rounded = Rounded::new(kernels, x, width, group_size, digits);
                let mut out = vec![[9.0; PAIR]; rounded.rows];
                kernels.quant_dot(&weights.tile(), &rounded.as_rows(), 0, &mut out);
                (rounded, out)
            };
            let (rounded, together) = run(&x);
            for (t, x) in x.chunks_exact(width).enumerate() {
                assert_eq!(run(x).1[0], together[t], "{:?}, row {t} alone", kernels.isa());
            }
            // Fewer rows, so that others fall into the last block.
            for fewer in 1..rows {
                assert_eq!(run(&x[..fewer * width]).1, together[..fewer], "{:?}", kernels.isa());
            }
            // One block of many at a time.
            for first_row in (0..rows).step_by(digits.block_rows()) {
                let mut out = vec![[9.0; PAIR]; digits.block_rows().min(rows - first_row)];
                kernels.quant_dot(&weights.tile(), &rounded.as_rows(), first_row, &mut out);
                assert_eq!(out, together[first_row..][..out.len()], "{:?}", kernels.isa());
            }
        }
    });
}

#[test]
fn four_bit_dots_of_floats_agree() {
    check(|random, groups, rows| {
        let group_size = random.one_of(&GROUP_SIZES);
        let width = groups * group_size;
        let weights = Weights::random(random, WeightBits::Four, groups, group_size);
        let x = random.floats(rows * width);
        let floats = FloatRows { width, values: &x };
        for kernels in all() {
            let (mut together, mut alone) = (vec![[9.0; PAIR]; rows], [[9.0; PAIR]]);
            kernels.int4_dot_f32(&weights.tile(), &floats, 0, &mut together);
            for (t, x) in x.chunks_exact(width).enumerate() {
                kernels.int4_dot_f32(&weights.tile(), &floats, t, &mut alone);
                assert_eq!(alone[0], together[t], "the number of rows changed a result");
                for (n, found) in together[t].iter().enumerate() {
                    let (sum, magnitude) = weights.dot(n, |k| f64::from(x[k]));
                    assert_close(*found, sum as f32, magnitude, kernels.isa().name());
                }
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
        for kernels in all() {
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
