//! Rotary position embedding, half-split as in Hugging Face: element `i` turns with `i + head_dim / 2`.

use crate::turns;

/// Cosines and sines of a step's rows, shared by all heads and layers.
pub(super) struct Rotary {
    /// Turn per position of each pair, `[head_dim / 2]`.
    frequencies: Vec<f64>,
    /// `[rows][head_dim / 2]`.
    cosines: Vec<f32>,
    /// As `cosines`.
    sines: Vec<f32>,
}

impl Rotary {
    pub(super) fn new(head_dim: usize, theta: f64) -> Self {
        let frequencies = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        Self { frequencies, cosines: Vec::new(), sines: Vec::new() }
    }

    /// Prepares the angles of a step's rows. In between others are let run when it is time: those of a long prompt's step take half a
    /// millisecond.
    pub(super) fn prepare(&mut self, positions: &[u32]) {
        self.cosines.clear();
        self.sines.clear();
        for position in positions {
            for frequency in &self.frequencies {
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                self.cosines.push(cos as f32);
                self.sines.push(sin as f32);
            }
            turns::end_if_over();
        }
    }

    /// Cosines and sines at the position of `row`.
    pub(super) fn angles(&self, row: usize) -> (&[f32], &[f32]) {
        let pairs = self.frequencies.len();
        (&self.cosines[row * pairs..][..pairs], &self.sines[row * pairs..][..pairs])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_by_position_times_frequency() {
        let mut rotary = Rotary::new(4, 100.0);
        rotary.prepare(&[0, 3]);
        assert_eq!(rotary.angles(0), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        let (cos, sin) = rotary.angles(1);
        for (i, angle) in [3.0f32, 0.3].into_iter().enumerate() {
            assert!((cos[i] - angle.cos()).abs() < 1e-6 && (sin[i] - angle.sin()).abs() < 1e-6);
        }
    }
}
