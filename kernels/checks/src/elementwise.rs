//! Norms, rotation and the append against float64.

use crate::scope::{Scope, half_value, normal, relative_error, worse};
use crate::{Case, CheckError, Measured};
use redstart_kernels::attention::{AttentionShape, BLOCK_TOKENS, KvFormat, kv_block_bytes};
use redstart_kernels::device::Device;
use redstart_kernels::elementwise::{QkNormRopeAppend, RmsNorm, qk_norm_rope_append, rms_norm};
use redstart_kernels::float8;

/// Rounding to a half is 2^-11 at most, 3e-4 in the norm; the arithmetic before it is fp32.
const HALF_TOLERANCE: f64 = 4e-4;

/// Against the rounded reference: an eight-bit number differs only where fp32 and float64 fall on different
/// sides of a tie, less than one in a thousand, by at most an eighth of its size. Wrong rounding makes 2e-2.
const F8_TOLERANCE: f64 = 5e-3;

const EPS: f32 = 1e-6;

fn check_rms_norm(
    rows: usize,
    hidden: usize,
    gathered: bool,
    device: &mut dyn Device,
    seed: u64,
) -> Result<Measured, CheckError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let sources = if gathered { 2 * rows + 1 } else { rows };
    let residual: Vec<f32> = (0..sources)
        .flat_map(|row| {
            // From tiny rows to large ones.
            let deviation = [1e-3, 1.0, 40.0][row % 3];
            (0..hidden).map(|_| normal(&mut random, deviation)).collect::<Vec<_>>()
        })
        .collect();
    let weight: Vec<f32> = (0..hidden).map(|_| 1.0 + normal(&mut random, 0.5)).collect();
    // Every third row of a gathered step is an empty slot.
    let list: Vec<u32> =
        (0..rows).map(|row| if row % 3 == 1 { u32::MAX } else { random.u32(0..sources as u32) }).collect();

    let mut scope = Scope::new(device);
    let norm = RmsNorm {
        residual: scope.upload(&residual)?,
        weight: scope.upload(&weight)?,
        eps: EPS,
        gather: if gathered { Some(scope.upload(&list)?) } else { None },
        rows: rows as u32,
        hidden: hidden as u32,
        out: scope.poisoned(rows * hidden * 2)?,
    };
    rms_norm(scope.device, &norm)?;
    let out: Vec<u16> = scope.download(norm.out)?;
    let mut error = 0.0;
    for (row, out) in out.chunks(hidden).enumerate() {
        let source = if gathered { list[row] } else { row as u32 };
        if source == u32::MAX {
            if out.iter().any(|&bits| half_value(bits) != 0.0) {
                return Err(CheckError::Wrong(format!("row {row} is an empty slot and not zero")));
            }
            continue;
        }
        let numbers = &residual[source as usize * hidden..][..hidden];
        let reference = normalised(numbers, Some(&weight));
        error = worse(error, relative_error(out.iter().map(|&bits| half_value(bits)), &reference));
    }
    Ok(Measured { error, tolerance: HALF_TOLERANCE })
}

fn normalised(numbers: &[f32], weight: Option<&[f32]>) -> Vec<f64> {
    let Some(weight) = weight else {
        return numbers.iter().map(|&x| x.into()).collect();
    };
    let squares: f64 = numbers.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
    let factor = 1.0 / (squares / numbers.len() as f64 + f64::from(EPS)).sqrt();
    numbers.iter().zip(weight).map(|(&x, &weight)| f64::from(x) * factor * f64::from(weight)).collect()
}

fn rotated(numbers: &[f64], turns: &[f32]) -> Vec<f64> {
    let half = numbers.len() / 2;
    let mut rotated = vec![0.0; numbers.len()];
    for i in 0..half {
        let (cosine, sine) = (f64::from(turns[2 * i]), f64::from(turns[2 * i + 1]));
        rotated[i] = numbers[i] * cosine - numbers[half + i] * sine;
        rotated[half + i] = numbers[half + i] * cosine + numbers[i] * sine;
    }
    rotated
}

fn check_append(
    shape: AttentionShape,
    rows: usize,
    norms: bool,
    device: &mut dyn Device,
    seed: u64,
) -> Result<Measured, CheckError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let (heads, kv_heads, head_dim) =
        (shape.heads as usize, shape.kv_heads as usize, shape.head_dim as usize);
    let positions: Vec<u32> = (0..rows).map(|_| random.u32(0..50)).collect();
    let blocks = rows.div_ceil(4) + 1;
    let mut free: Vec<u32> = (0..(blocks * BLOCK_TOKENS) as u32).collect();
    random.shuffle(&mut free);
    // Every fourth row is padding.
    let slots: Vec<u32> = (0..rows).map(|row| if row % 4 == 2 { u32::MAX } else { free[row] }).collect();
    let rotary: Vec<f32> = (0..50 * head_dim / 2)
        .flat_map(|index| {
            let (position, pair) = (index / (head_dim / 2), index % (head_dim / 2));
            let angle = position as f64 * 1e6f64.powf(-2.0 * pair as f64 / head_dim as f64);
            [angle.cos() as f32, angle.sin() as f32]
        })
        .collect();
    let all = heads + 2 * kv_heads;
    let qkv: Vec<f32> = (0..rows * all * head_dim).map(|_| normal(&mut random, 3.0)).collect();
    let mut weight = || -> Vec<f32> { (0..head_dim).map(|_| 1.0 + normal(&mut random, 0.5)).collect() };
    let (q_weight, k_weight) = (weight(), weight());

    let mut scope = Scope::new(device);
    let cache_bytes = blocks * kv_block_bytes(shape.kv, kv_heads, head_dim);
    let step = QkNormRopeAppend {
        qkv: scope.upload(&qkv)?,
        norms: if norms { Some((scope.upload(&q_weight)?, scope.upload(&k_weight)?)) } else { None },
        eps: EPS,
        rows: rows as u32,
        positions: scope.upload(&positions)?,
        slots: scope.upload(&slots)?,
        rotary: scope.upload(&rotary)?,
        q: scope.poisoned(rows * heads * head_dim * 2)?,
        keys: scope.poisoned(cache_bytes)?,
        values: scope.poisoned(cache_bytes)?,
    };
    qk_norm_rope_append(scope.device, &shape, &step)?;
    let q: Vec<u16> = scope.download(step.q)?;
    let mut caches: [Vec<u8>; 2] = [scope.download(step.keys)?, scope.download(step.values)?];

    let mut error = 0.0;
    for row in 0..rows {
        let turns = &rotary[positions[row] as usize * head_dim..][..head_dim];
        for head in 0..all {
            let numbers = &qkv[(row * all + head) * head_dim..][..head_dim];
            if head < heads {
                let reference = rotated(&normalised(numbers, norms.then_some(&q_weight[..])), turns);
                let got =
                    q[(row * heads + head) * head_dim..][..head_dim].iter().map(|&bits| half_value(bits));
                error = worse(error, relative_error(got, &reference));
                continue;
            }
            if slots[row] == u32::MAX {
                continue;
            }
            let (cache, kv_head) = ((head - heads) / kv_heads, (head - heads) % kv_heads);
            let reference = match cache {
                0 => rotated(&normalised(numbers, norms.then_some(&k_weight[..])), turns),
                _ => normalised(numbers, None),
            };
            let slot = slots[row] as usize;
            let token = (slot / BLOCK_TOKENS * kv_heads + kv_head) * BLOCK_TOKENS + slot % BLOCK_TOKENS;
            let bytes = head_dim * shape.kv.bytes();
            let stored = &mut caches[cache][token * bytes..][..bytes];
            error = worse(error, stored_error(shape.kv, stored, &reference));
            stored.fill(0xff);
        }
    }
    // What was checked is poison again: the rest must still be.
    if caches.iter().flatten().any(|&byte| byte != 0xff) {
        return Err(CheckError::Wrong("a slot was written that no row has".to_owned()));
    }
    let tolerance = if shape.kv == KvFormat::F8 { F8_TOLERANCE } else { HALF_TOLERANCE };
    Ok(Measured { error, tolerance })
}

fn stored_error(kv: KvFormat, stored: &[u8], reference: &[f64]) -> f64 {
    match kv {
        KvFormat::F16 => {
            let got = stored.chunks(2).map(|bytes| half_value(u16::from_le_bytes([bytes[0], bytes[1]])));
            relative_error(got, reference)
        }
        KvFormat::F8 => {
            let rounded: Vec<f64> =
                reference.iter().map(|&x| float8::to_f32(float8::from_f32(x as f32)).into()).collect();
            relative_error(stored.iter().map(|&code| float8::to_f32(code).into()), &rounded)
        }
    }
}

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    let norms = [(1, 4), (1, 896), (3, 1024), (7, 1028), (4, 3584), (2, 8192), (2048, 3584)];
    for (rows, hidden) in norms {
        for gathered in [false, true] {
            cases.push(Case {
                name: format!("rms_norm {rows}x{hidden}{}", if gathered { " gathered" } else { "" }),
                heavy: rows * hidden > 100_000,
                run: Box::new(move |device, seed| check_rms_norm(rows, hidden, gathered, device, seed)),
            });
        }
    }
    let appends =
        [(1, 1, 128, 1), (7, 1, 64, 5), (4, 2, 128, 6), (16, 8, 128, 3), (5, 1, 64, 17), (32, 8, 128, 2048)];
    for (heads, kv_heads, head_dim, rows) in appends {
        for kv in [KvFormat::F16, KvFormat::F8] {
            for norms in [false, true] {
                let shape = AttentionShape { heads, kv_heads, head_dim, kv };
                cases.push(Case {
                    name: format!(
                        "append {kv:?} {heads}/{kv_heads}x{head_dim} rows {rows}{}",
                        if norms { " normalised" } else { "" }
                    )
                    .to_lowercase(),
                    heavy: rows > 100,
                    run: Box::new(move |device, seed| check_append(shape, rows, norms, device, seed)),
                });
            }
        }
    }
    cases
}
