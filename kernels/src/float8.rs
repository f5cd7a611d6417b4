//! Eight-bit floats (e4m3), bit for bit as the kernels convert them (`cuda/float8.cuh`).

/// The largest number.
pub const MAX: f32 = 448.0;

/// The nearest e4m3, ties to the even one; what is too large becomes [`MAX`], NaN stays NaN.
pub fn from_f32(value: f32) -> u8 {
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    let magnitude = value.abs().to_bits();
    let code = if magnitude > f32::INFINITY.to_bits() {
        0x7f
    } else if magnitude >= MAX.to_bits() {
        0x7e
    } else if magnitude < 0x3c80_0000 {
        // Below 2^-6, a multiple of 2^-9: in a sum with 2^14 the last bit is worth just that.
        (f32::from_bits(magnitude) + 16384.0).to_bits() - 16384f32.to_bits()
    } else {
        let rounded = magnitude + 0x7_ffff + ((magnitude >> 20) & 1);
        (rounded >> 20) - ((127 - 7) << 3)
    };
    sign | code as u8
}

/// The number a code stands for, by the format's definition.
pub fn to_f32(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 0xf), f32::from(code & 7));
    let magnitude = match (exponent, code & 7) {
        (15, 7) => f32::NAN,
        (0, _) => mantissa * (-9f32).exp2(),
        _ => (8.0 + mantissa) * ((exponent - 10) as f32).exp2(),
    };
    if code & 0x80 == 0 { magnitude } else { -magnitude }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The nearest of all codes by trying each, ties to the even code.
    fn nearest(value: f32) -> u8 {
        let magnitude = f64::from(value.abs()).min(448.0);
        let distance = |code: u8| (f64::from(to_f32(code)) - magnitude).abs();
        let best = (0..0x7fu8)
            .min_by(|&a, &b| distance(a).total_cmp(&distance(b)).then((a & 1).cmp(&(b & 1))))
            .expect("codes");
        if value.is_sign_negative() { best | 0x80 } else { best }
    }

    #[test]
    fn every_code_survives() {
        for code in 0..=u8::MAX {
            assert_eq!(from_f32(to_f32(code)), code, "{code:#x} = {}", to_f32(code));
        }
    }

    #[test]
    fn known_values() {
        let values = [(0x08, 0.015625), (0x01, 0.001_953_125), (0x38, 1.0), (0x7e, 448.0), (0xb8, -1.0)];
        for (code, value) in values {
            assert_eq!(to_f32(code).to_bits(), f32::to_bits(value), "{code:#x}");
        }
        assert_eq!(from_f32(f32::INFINITY), 0x7e);
        assert_eq!(from_f32(-1e30), 0xfe);
        assert_eq!(from_f32(f32::from_bits(1)), 0);
    }

    #[test]
    fn rounds_to_the_nearest_even() {
        // Every tie between neighbours and the floats next to it, both signs, and many others.
        for code in 0..0x7e {
            let middle = ((f64::from(to_f32(code)) + f64::from(to_f32(code + 1))) / 2.0) as f32;
            for value in [middle, middle.next_up(), middle.next_down(), -middle] {
                assert_eq!(from_f32(value), nearest(value), "{value:e}");
            }
        }
        let mut bits = 1u32;
        for _ in 0..20_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // Exponents from 2^-15 to 2^16.
            let value = f32::from_bits(bits & 0x807f_ffff | (112 + (bits >> 8 & 31)) << 23);
            assert_eq!(from_f32(value), nearest(value), "{value:e}");
        }
    }
}
