//! Rotary position embedding, half-split as in Hugging Face: element `i` turns with `i + head_dim / 2`.

/// Cosines and sines of a step's rows, shared by all heads and layers.
pub(super) struct Rotary {
    /// Turn per position of each pair, `[head_dim / 2]`.
    frequencies: Vec<f64>,
    /// `[rows][head_dim / 2]`.
    angles: Vec<(f32, f32)>,
}

impl Rotary {
    pub(super) fn new(head_dim: usize, theta: f64) -> Self {
        let frequencies = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        Self { frequencies, angles: Vec::new() }
    }

    /// Prepares the angles of a step's rows.
    pub(super) fn prepare(&mut self, positions: &[u32]) {
        self.angles.clear();
        for position in positions {
            self.angles.extend(self.frequencies.iter().map(|frequency| {
                let (sin, cos) = (f64::from(*position) * frequency).sin_cos();
                (cos as f32, sin as f32)
            }));
        }
    }

    /// `to = scale * rotated(head)` at the position of `row`.
    pub(super) fn rotate(&self, row: usize, head: &[f32], scale: f32, to: &mut [f32]) {
        let pairs = self.frequencies.len();
        let (low, high) = head.split_at(pairs);
        let (to_low, to_high) = to.split_at_mut(pairs);
        for (i, (cos, sin)) in self.angles[row * pairs..][..pairs].iter().enumerate() {
            to_low[i] = (low[i] * cos - high[i] * sin) * scale;
            to_high[i] = (high[i] * cos + low[i] * sin) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_pairs_by_position_times_frequency() {
        let mut rotary = Rotary::new(4, 100.0);
        rotary.prepare(&[0, 3]);
        let (head, mut to) = ([1.0, 2.0, 3.0, 4.0], [0.0; 4]);
        rotary.rotate(0, &head, 2.0, &mut to);
        assert_eq!(to, [2.0, 4.0, 6.0, 8.0]);
        rotary.rotate(1, &head, 1.0, &mut to);
        let (fast, slow) = (3.0f32, 0.3f32);
        let expected = [
            fast.cos() - 3.0 * fast.sin(),
            2.0 * slow.cos() - 4.0 * slow.sin(),
            3.0 * fast.cos() + fast.sin(),
            4.0 * slow.cos() + 2.0 * slow.sin(),
        ];
        for (to, expected) in to.iter().zip(expected) {
            assert!((to - expected).abs() < 1e-6);
        }
    }
}
