//! AWQ GEMM int4 weights: `W[k][n] = (q[k][n] - z[k / group][n]) * s[k / group][n]`.
//!
//! Three tensors per linear layer with `in` rows and `out` columns (note: the transpose of a plain
//! weight): `qweight` int32 `[in, out / 8]`, `qzeros` int32 `[in / group, out / 8]`, `scales` fp16
//! `[in / group, out]`. A word holds eight columns, four bits each, in the order 0 2 4 6 1 3 5 7 from
//! the lowest nibble up. This is the one place that knows this packing; repackers go through
//! [`q8`](AwqLinear::q8), [`q8x8`](AwqLinear::q8x8), [`z8`](AwqLinear::z8) and [`scale_bits`](AwqLinear::scale_bits).

use half::f16;
use safetensors::tensor::Dtype;

use crate::checkpoint::{Checkpoint, CheckpointError};

/// Columns in one packed word.
pub const COLUMNS_PER_WORD: usize = 8;

/// Where column `j` of a word's eight lies, in bits from the lowest.
const SHIFT: [u32; COLUMNS_PER_WORD] = [0, 16, 4, 20, 8, 24, 12, 28];

/// One quantized linear layer inside a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct AwqLinear<'a> {
    /// Width of the input: rows of `qweight`.
    pub input: usize,
    /// Width of the output.
    pub output: usize,
    /// Input rows that share a scale and a zero point.
    pub group_size: usize,
    qweight: &'a [u8],
    qzeros: &'a [u8],
    scales: &'a [u8],
}

impl<'a> AwqLinear<'a> {
    /// Finds and checks the three tensors of `prefix`.
    ///
    /// # Errors
    /// When one is missing, has another shape or type, or a scale is NaN or infinite.
    pub fn find(
        checkpoint: &'a Checkpoint,
        prefix: &str,
        input: usize,
        output: usize,
    ) -> Result<Self, CheckpointError> {
        let bad =
            |detail: String| CheckpointError::BadQuantization { tensor: format!("{prefix}.qweight"), detail };
        let group_size = checkpoint
            .config()
            .awq_group_size
            .ok_or_else(|| bad("quantized, but config.json has no quantization_config".into()))?;
        if !input.is_multiple_of(group_size) || !output.is_multiple_of(COLUMNS_PER_WORD) {
            return Err(bad(format!(
                "a layer of {input} inputs and {output} outputs cannot be packed in groups of {group_size} and words of 8"
            )));
        }
        let (groups, words) = (input / group_size, output / COLUMNS_PER_WORD);
        let qweight = checkpoint.tensor(&format!("{prefix}.qweight"), &[input, words])?;
        let qzeros = checkpoint.tensor(&format!("{prefix}.qzeros"), &[groups, words])?;
        let scales = checkpoint.tensor(&format!("{prefix}.scales"), &[groups, output])?;
        qweight.expect_dtype(Dtype::I32, "I32")?;
        qzeros.expect_dtype(Dtype::I32, "I32")?;
        scales.expect_dtype(Dtype::F16, "F16")?;
        // Only for its refusal of NaN and infinity.
        scales.to_f32()?;
        Ok(Self {
            input,
            output,
            group_size,
            qweight: qweight.bytes,
            qzeros: qzeros.bytes,
            scales: scales.bytes,
        })
    }

    /// Number of groups along the input.
    pub fn groups(&self) -> usize {
        self.input / self.group_size
    }

    /// Quantized weights of input `k` for outputs `8 * word .. 8 * word + 8`, each 0..=15.
    pub fn q8(&self, k: usize, word: usize) -> [u8; COLUMNS_PER_WORD] {
        unpack(self.qweight, k * (self.output / COLUMNS_PER_WORD) + word)
    }

    /// Quantized weights of inputs `k .. k + 8` for outputs `8 * word .. 8 * word + 8`: byte `j` of an output's
    /// word holds that of input `k + j` in its low nibble and that of input `k + 4 + j` in its high one.
    pub fn q8x8(&self, k: usize, word: usize) -> [[u8; 4]; COLUMNS_PER_WORD] {
        const LOW_NIBBLES: u32 = 0x0f0f_0f0f;
        let input = |k: usize| self.packed_word(k, word);
        let mut out = [[0; 4]; COLUMNS_PER_WORD];
        for (j, k) in (k..k + 4).enumerate() {
            let (first, second) = (input(k), input(k + 4));
            // Bytes of columns 0 2 4 6 of `SHIFT`'s order, then of the other four.
            let even = (first & LOW_NIBBLES) | (second & LOW_NIBBLES) << 4;
            let odd = (first >> 4 & LOW_NIBBLES) | (second & !LOW_NIBBLES);
            for (column, byte) in [0, 4, 1, 5].into_iter().zip(even.to_le_bytes()) {
                out[column][j] = byte;
            }
            for (column, byte) in [2, 6, 3, 7].into_iter().zip(odd.to_le_bytes()) {
                out[column][j] = byte;
            }
        }
        out
    }

    /// The packed weights of inputs `k .. k + 8` for outputs `8 * word .. 8 * word + 8`, a word an input, as the
    /// checkpoint has them.
    pub fn packed8(&self, k: usize, word: usize) -> [u32; COLUMNS_PER_WORD] {
        std::array::from_fn(|i| self.packed_word(k + i, word))
    }

    fn packed_word(&self, k: usize, word: usize) -> u32 {
        let at = 4 * (k * (self.output / COLUMNS_PER_WORD) + word);
        u32::from_le_bytes([
            self.qweight[at],
            self.qweight[at + 1],
            self.qweight[at + 2],
            self.qweight[at + 3],
        ])
    }

    /// Zero points of group `g` for outputs `8 * word .. 8 * word + 8`, each 0..=15.
    pub fn z8(&self, g: usize, word: usize) -> [u8; COLUMNS_PER_WORD] {
        unpack(self.qzeros, g * (self.output / COLUMNS_PER_WORD) + word)
    }

    /// Scale of group `g` for output `n`, as fp16 bits.
    pub fn scale_bits(&self, g: usize, n: usize) -> u16 {
        let at = 2 * (g * self.output + n);
        u16::from_le_bytes([self.scales[at], self.scales[at + 1]])
    }

    /// The weight from input `k` to output `n`.
    pub fn weight(&self, k: usize, n: usize) -> f32 {
        let (g, word, column) = (k / self.group_size, n / COLUMNS_PER_WORD, n % COLUMNS_PER_WORD);
        let (q, z) = (self.q8(k, word)[column], self.z8(g, word)[column]);
        (f32::from(q) - f32::from(z)) * f16::from_bits(self.scale_bits(g, n)).to_f32()
    }
}

fn unpack(words: &[u8], index: usize) -> [u8; COLUMNS_PER_WORD] {
    let at = 4 * index;
    let word = u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    SHIFT.map(|shift| ((word >> shift) & 15) as u8)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_come_out_in_column_order() {
        // Nibble i of a word holds column ORDER[i].
        const ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];
        let mut word = 0u32;
        for (nibble, column) in ORDER.iter().enumerate() {
            word |= (*column as u32 + 3) << (4 * nibble);
        }
        assert_eq!(unpack(&word.to_le_bytes(), 0), [3, 4, 5, 6, 7, 8, 9, 10]);
    }

    #[test]
    fn eight_inputs_at_once_are_the_same_weights() {
        let qweight: Vec<u8> = (0..8 * 2 * 4u32).map(|i| (i * 37 + 11) as u8).collect();
        let linear =
            AwqLinear { input: 8, output: 16, group_size: 8, qweight: &qweight, qzeros: &[], scales: &[] };
        for word in 0..2 {
            for (n, bytes) in linear.q8x8(0, word).into_iter().enumerate() {
                for (j, byte) in bytes.into_iter().enumerate() {
                    assert_eq!(byte & 15, linear.q8(j, word)[n]);
                    assert_eq!(byte >> 4, linear.q8(j + 4, word)[n]);
                }
            }
        }
    }

    #[test]
    fn weight_is_q_minus_z_times_s() {
        let scales: Vec<u8> = (0..16).flat_map(|n| f16::from_f32(0.5 + n as f32).to_le_bytes()).collect();
        let qweight: Vec<u8> =
            (0..64u32).flat_map(|k| 0x7654_3210u32.rotate_left(4 * (k % 8)).to_le_bytes()).collect();
        let qzeros: Vec<u8> =
            [0x1111_1111u32, 0x2222_2222].iter().flat_map(|word| word.to_le_bytes()).collect();
        let linear = AwqLinear {
            input: 64,
            output: 8,
            group_size: 32,
            qweight: &qweight,
            qzeros: &qzeros,
            scales: &scales,
        };
        // Row 0: column 1 sits in nibble 4, whose value there is 4; zero 1; scale 1.5.
        assert_eq!(linear.weight(0, 1), (4.0 - 1.0) * 1.5);
        // Row 33 (rotated by one nibble): column 0 holds 7; second group: zero 2, scale 8.5.
        assert_eq!(linear.weight(33, 0), (7.0 - 2.0) * 8.5);
    }
}
