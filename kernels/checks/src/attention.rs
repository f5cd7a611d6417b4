//! Paged attention against a plain float64 attention that walks the block tables.

use crate::scope::{Scope, half_value, halves, normal, relative_error, worse};
use crate::{Case, CheckError, Measured};
use redstart_kernels::attention::{
    Attention, AttentionItem, AttentionShape, BLOCK_TOKENS, KvFormat, SequenceRows, Variant, choose_splits,
    kv_block_bytes, plan_items, run, scratch_bytes,
};
use redstart_kernels::device::Device;
use redstart_kernels::elementwise::{QkNormRopeAppend, qk_norm_rope_append};
use redstart_kernels::float8;

/// The largest relative error of a head of a row. Weights and the output are rounded to halves, 2^-11 at most
/// and about 2^-12 on average each, which makes 3e-4 to 4e-4 together (the most seen is 3.8e-4); scores and
/// sums are fp32 and add next to nothing. An eight-bit cache makes no difference: the reference reads the
/// rounded numbers.
const TOLERANCE: f64 = 6e-4;

/// One launch.
#[derive(Clone)]
struct Spec {
    shape: AttentionShape,
    variant: Variant,
    splits: u32,
    /// For each sequence: tokens before the step, tokens in it.
    sequences: Vec<(u32, u32)>,
    /// The deviation of queries: 1 gives scores of about 1; with 30 one key takes nearly all.
    sharpness: f32,
}

impl Spec {
    fn name(&self) -> String {
        let AttentionShape { heads, kv_heads, head_dim, kv } = self.shape;
        let Self { variant, splits, sharpness, .. } = self;
        let lengths: Vec<String> =
            self.sequences.iter().map(|(cached, rows)| format!("{rows}@{cached}")).collect();
        let sharp = if *sharpness == 1.0 { String::new() } else { format!(" sharp {sharpness}") };
        format!(
            "attention {variant:?} {kv:?} {heads}/{kv_heads}x{head_dim} splits {splits}{sharp}: {}",
            lengths.join(" ")
        )
        .to_lowercase()
    }

    fn case(self, heavy: bool) -> Case {
        Case { name: self.name(), heavy, run: Box::new(move |device, seed| check(&self, device, seed)) }
    }
}

/// Where a step's sequences are.
struct Placement {
    sequences: Vec<SequenceRows>,
    /// Rows of the step, with one that belongs to no sequence behind each.
    rows: usize,
    tables: Vec<u32>,
    /// Blocks of the cache. The last one belongs to no sequence.
    blocks: usize,
}

impl Placement {
    /// Blocks in random order. Table entries that belong to nobody name the last block, whose contents are
    /// never written, so that reading them shows.
    fn new(lengths: &[(u32, u32)], random: &mut fastrand::Rng) -> Self {
        let of_sequence =
            |&(cached, rows): &(u32, u32)| (cached + rows).div_ceil(BLOCK_TOKENS as u32) as usize;
        let mut free: Vec<u32> = (0..lengths.iter().map(of_sequence).sum::<usize>() as u32).collect();
        random.shuffle(&mut free);
        let blocks = free.len() + 1;
        let mut placement = Self { sequences: Vec::new(), rows: 0, tables: Vec::new(), blocks };
        for length in lengths {
            let nobody = random.usize(1..4);
            placement.tables.extend(std::iter::repeat_n(blocks as u32 - 1, nobody));
            placement.sequences.push(SequenceRows {
                first_row: placement.rows as u32,
                rows: length.1,
                first_position: length.0,
                table_offset: placement.tables.len() as u32,
            });
            placement.rows += length.1 as usize + 1;
            placement.tables.extend(free.split_off(free.len() - of_sequence(length)));
        }
        placement.tables.extend([blocks as u32 - 1; 4]);
        placement
    }

    /// Index in a layer's keys or values of the first number of a token's head.
    fn index(
        &self,
        shape: &AttentionShape,
        sequence: &SequenceRows,
        position: usize,
        kv_head: usize,
    ) -> usize {
        let block = self.tables[sequence.table_offset as usize + position / BLOCK_TOKENS] as usize;
        let slot = (block * shape.kv_heads as usize + kv_head) * BLOCK_TOKENS + position % BLOCK_TOKENS;
        slot * shape.head_dim as usize
    }

    /// Where the cache's slot of a token is, as the append counts them.
    fn slot(&self, sequence: &SequenceRows, position: usize) -> u32 {
        let block = self.tables[sequence.table_offset as usize + position / BLOCK_TOKENS];
        block * BLOCK_TOKENS as u32 + (position % BLOCK_TOKENS) as u32
    }

    /// A cache with random numbers in the sequences' tokens, positions up to `end` of each, and poison
    /// everywhere else.
    fn random_cache(
        &self,
        shape: &AttentionShape,
        end: impl Fn(&SequenceRows) -> u32,
        random: &mut fastrand::Rng,
    ) -> Vec<u8> {
        let block_bytes = kv_block_bytes(shape.kv, shape.kv_heads as usize, shape.head_dim as usize);
        let mut cache = vec![0xff; self.blocks * block_bytes];
        for sequence in &self.sequences {
            for position in 0..end(sequence) as usize {
                for kv_head in 0..shape.kv_heads as usize {
                    let first = self.index(shape, sequence, position, kv_head);
                    for index in first..first + shape.head_dim as usize {
                        let number = normal(random, 1.0);
                        match shape.kv {
                            KvFormat::F8 => cache[index] = float8::from_f32(number),
                            KvFormat::F16 => cache[2 * index..2 * index + 2]
                                .copy_from_slice(&half::f16::from_f32(number).to_le_bytes()),
                        }
                    }
                }
            }
        }
        cache
    }

    /// Items for the variant, with empty slots between sequences, their other fields anything. `before` and
    /// `after`: at the ends, too.
    fn items(
        &self,
        shape: &AttentionShape,
        variant: Variant,
        before: bool,
        after: bool,
    ) -> Vec<AttentionItem> {
        let empty =
            AttentionItem { rows: 0, first_position: u32::MAX, first_row: u32::MAX, ..Default::default() };
        let mut items = vec![empty; before.into()];
        for (i, sequence) in self.sequences.iter().enumerate() {
            plan_items(&[*sequence], shape.group(), variant, &mut items);
            if after || i + 1 < self.sequences.len() {
                items.push(empty);
            }
        }
        items
    }
}

/// Number `index` of a cache.
fn cached(cache: &[u8], kv: KvFormat, index: usize) -> f64 {
    match kv {
        KvFormat::F8 => float8::to_f32(cache[index]).into(),
        KvFormat::F16 => half_value(u16::from_le_bytes([cache[2 * index], cache[2 * index + 1]])),
    }
}

/// Output of one head of one row in double precision.
fn reference(
    shape: &AttentionShape,
    placement: &Placement,
    sequence: &SequenceRows,
    row: u32,
    head: usize,
    (q, keys, values): (&[u16], &[u8], &[u8]),
) -> Vec<f64> {
    let head_dim = shape.head_dim as usize;
    let kv_head = head / shape.group() as usize;
    let q_index = ((sequence.first_row + row) as usize * shape.heads as usize + head) * head_dim;
    let q: Vec<f64> = q[q_index..q_index + head_dim].iter().map(|&bits| half_value(bits)).collect();
    let places: Vec<usize> = (0..=(sequence.first_position + row) as usize)
        .map(|position| placement.index(shape, sequence, position, kv_head))
        .collect();
    let score = |place: &usize| -> f64 {
        let product: f64 = q.iter().enumerate().map(|(i, q)| q * cached(keys, shape.kv, place + i)).sum();
        product / (head_dim as f64).sqrt()
    };
    let scores: Vec<f64> = places.iter().map(score).collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
    let sum: f64 = weights.iter().sum();
    (0..head_dim)
        .map(|i| {
            let weighted = places
                .iter()
                .zip(&weights)
                .map(|(place, weight)| weight * cached(values, shape.kv, place + i));
            weighted.sum::<f64>() / sum
        })
        .collect()
}

/// The worst head of the output; an error when a row that belongs to nobody was written. With very much to
/// compare, only some of the heads and rows are looked at.
fn compare(
    shape: &AttentionShape,
    placement: &Placement,
    out: &[u16],
    inputs: (&[u16], &[u8], &[u8]),
    random: &mut fastrand::Rng,
) -> Result<f64, CheckError> {
    let row_numbers = shape.heads as usize * shape.head_dim as usize;
    let seen: u64 =
        placement.sequences.iter().map(|s| u64::from(s.rows) * u64::from(s.first_position + s.rows)).sum();
    let work = seen * u64::from(shape.heads);
    let share = (2_000_000.0 / work as f64).min(1.0);
    let mut error = 0.0;
    for sequence in &placement.sequences {
        for row in 0..sequence.rows {
            for head in 0..shape.heads as usize {
                let last = row + 1 == sequence.rows && head + 1 == shape.heads as usize;
                if random.f64() > share && !last {
                    continue;
                }
                let reference = reference(shape, placement, sequence, row, head, inputs);
                let first =
                    (sequence.first_row + row) as usize * row_numbers + head * shape.head_dim as usize;
                let got = out[first..first + shape.head_dim as usize].iter().map(|&bits| half_value(bits));
                error = worse(error, relative_error(got, &reference));
            }
        }
        let padding = (sequence.first_row + sequence.rows) as usize * row_numbers;
        if out[padding..padding + row_numbers].iter().any(|&bits| bits != 0xffff) {
            return Err(CheckError::Wrong(format!(
                "row {} has no item and was written",
                padding / row_numbers
            )));
        }
    }
    Ok(error)
}

fn check(spec: &Spec, device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let shape = spec.shape;
    let placement = Placement::new(&spec.sequences, &mut random);
    let keys = placement.random_cache(&shape, |s| s.first_position + s.rows, &mut random);
    let values = placement.random_cache(&shape, |s| s.first_position + s.rows, &mut random);
    let row_numbers = (shape.heads * shape.head_dim) as usize;
    let mut q = vec![0xffff; placement.rows * row_numbers];
    for sequence in &placement.sequences {
        let first = sequence.first_row as usize * row_numbers;
        let numbers = sequence.rows as usize * row_numbers;
        let row: Vec<f32> = (0..numbers).map(|_| normal(&mut random, spec.sharpness)).collect();
        q[first..first + numbers].copy_from_slice(&halves(&row));
    }

    let items = placement.items(&shape, spec.variant, random.bool(), random.bool());
    let mut scope = Scope::new(device);
    let mut launch = Attention {
        items: scope.upload(&items)?,
        item_capacity: items.len() as u32,
        variant: spec.variant,
        splits: spec.splits,
        q: scope.upload(&q)?,
        keys: scope.upload(&keys)?,
        values: scope.upload(&values)?,
        block_tables: scope.upload(&placement.tables)?,
        out: scope.poisoned(q.len() * 2)?,
        scratch: scope.poisoned(scratch_bytes(&shape, spec.variant, items.len() as u32, spec.splits))?,
    };
    run(scope.device, &shape, &launch)?;
    let out: Vec<u16> = scope.download(launch.out)?;
    launch.out = scope.poisoned(q.len() * 2)?;
    run(scope.device, &shape, &launch)?;
    if out != scope.download::<u16>(launch.out)? {
        return Err(CheckError::Wrong("two runs differ".to_owned()));
    }
    let error = compare(&shape, &placement, &out, (&q, &keys, &values), &mut random)?;
    Ok(Measured { error, tolerance: TOLERANCE })
}

/// Appends the step's tokens and attends, one launch after the other, as in a layer: what the append writes
/// must be seen. The reference reads the queries and the cache as the append left them. There is work in the
/// first and in the last slot, whose blocks are the ones that a device may start too early.
fn check_after_append(spec: &Spec, device: &mut dyn Device, seed: u64) -> Result<Measured, CheckError> {
    let mut random = fastrand::Rng::with_seed(seed);
    let shape = spec.shape;
    let placement = Placement::new(&spec.sequences, &mut random);
    let keys = placement.random_cache(&shape, |s| s.first_position, &mut random);
    let values = placement.random_cache(&shape, |s| s.first_position, &mut random);
    let rows = placement.rows;
    let (mut positions, mut slots) = (vec![0; rows], vec![u32::MAX; rows]);
    for sequence in &placement.sequences {
        for row in 0..sequence.rows {
            let position = sequence.first_position + row;
            positions[(sequence.first_row + row) as usize] = position;
            slots[(sequence.first_row + row) as usize] = placement.slot(sequence, position as usize);
        }
    }
    let longest = positions.iter().max().copied().unwrap_or(0) as usize + 1;
    let turn = |index: usize| [(index as f32 * 0.37).cos(), (index as f32 * 0.37).sin()];
    let rotary: Vec<f32> = (0..longest * shape.head_dim as usize / 2).flat_map(turn).collect();
    let qkv_numbers = rows * ((shape.heads + 2 * shape.kv_heads) * shape.head_dim) as usize;
    let qkv: Vec<f32> = (0..qkv_numbers).map(|_| normal(&mut random, 1.0)).collect();

    let items = placement.items(&shape, spec.variant, false, false);
    let mut scope = Scope::new(device);
    let q = scope.poisoned(rows * (shape.heads * shape.head_dim) as usize * 2)?;
    let append = QkNormRopeAppend {
        qkv: scope.upload(&qkv)?,
        norms: None,
        eps: 1e-6,
        rows: rows as u32,
        positions: scope.upload(&positions)?,
        slots: scope.upload(&slots)?,
        rotary: scope.upload(&rotary)?,
        q,
        keys: scope.upload(&keys)?,
        values: scope.upload(&values)?,
    };
    let launch = Attention {
        items: scope.upload(&items)?,
        item_capacity: items.len() as u32,
        variant: spec.variant,
        splits: spec.splits,
        q,
        keys: append.keys,
        values: append.values,
        block_tables: scope.upload(&placement.tables)?,
        out: scope.poisoned(q.bytes())?,
        scratch: scope.poisoned(scratch_bytes(&shape, spec.variant, items.len() as u32, spec.splits))?,
    };
    qk_norm_rope_append(scope.device, &shape, &append)?;
    run(scope.device, &shape, &launch)?;
    let out: Vec<u16> = scope.download(launch.out)?;
    let (q, keys, values) =
        (scope.download(q)?, scope.download(append.keys)?, scope.download(append.values)?);
    let error = compare(&shape, &placement, &out, (&q, &keys, &values), &mut random)?;
    Ok(Measured { error, tolerance: TOLERANCE })
}

fn shape(heads: u32, kv_heads: u32, head_dim: u32, kv: KvFormat) -> AttentionShape {
    AttentionShape { heads, kv_heads, head_dim, kv }
}

/// The cases of this family.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    // Every group size with every variant; head sizes, formats and numbers of splits take turns.
    for (turn, group) in [1, 4, 5, 6, 7, 8, 16].into_iter().enumerate() {
        for variant in [Variant::Narrow, Variant::Wide, Variant::Tall] {
            for other in 0..2 {
                let kv = if (turn + other) % 2 == 0 { KvFormat::F16 } else { KvFormat::F8 };
                let head_dim = if other == 0 { 128 } else { 64 };
                let sequences = match variant {
                    // One token, and one more than, exactly and one less than some blocks and key tiles.
                    Variant::Narrow => {
                        vec![(0, 1), (14, 1), (15, 1), (16, 1), (30, 1), (31, 1), (32, 1), (64, 1), (200, 1)]
                    }
                    // As many tokens as fit in an item and one more, an item's keys ending in a tile, at its end.
                    Variant::Wide => vec![(0, 1), (63, 64 / group + 1), (0, 64 / group)],
                    Variant::Tall => vec![(100, 3), (70, 128 / group + 1)],
                };
                let splits = 1 + (turn as u32 + 3 * other as u32) % 7;
                let shape = shape(group, 1, head_dim, kv);
                cases.push(Spec { shape, variant, splits, sequences, sharpness: 1.0 }.case(false));
            }
        }
    }
    // Every number of splits, several heads of the cache; splits without keys, and in the later splits rows
    // that see none of the keys.
    for splits in (1..=7).chain([64]) {
        let kv = if splits % 2 == 0 { KvFormat::F16 } else { KvFormat::F8 };
        let shape = shape(6, 3, 64, kv);
        let narrow = vec![(60, 8), (3, 2), (300, 1)];
        cases.push(
            Spec { shape, variant: Variant::Narrow, splits, sequences: narrow, sharpness: 1.0 }.case(false),
        );
        let wide = vec![(120, 16), (190, 3)];
        cases.push(
            Spec { shape, variant: Variant::Wide, splits, sequences: wide, sharpness: 1.0 }.case(false),
        );
    }
    // More splits with keys than a warp has lanes.
    let long = Spec {
        shape: shape(2, 1, 64, KvFormat::F16),
        variant: Variant::Narrow,
        splits: 64,
        sequences: vec![(2200, 1)],
        sharpness: 1.0,
    };
    cases.push(long.case(false));
    // Sharp scores, whose maximum moves; a long tail; sequences of nothing but the step.
    for variant in [Variant::Narrow, Variant::Wide, Variant::Tall] {
        for (kv, sharpness) in [(KvFormat::F16, 30.0), (KvFormat::F8, 8.0)] {
            let shape = shape(7, 1, 128, kv);
            let sequences = vec![(100, 40), (0, 20)];
            cases.push(Spec { shape, variant, splits: 2, sequences, sharpness }.case(false));
        }
    }
    for variant in [Variant::Narrow, Variant::Wide, Variant::Tall] {
        for kv in [KvFormat::F16, KvFormat::F8] {
            for splits in [1, 3] {
                let shape = shape(4, 2, 64, kv);
                // The first page, and the first tile of either end, are there in part.
                let sequences = vec![(3, 5), (0, 2), (128, 3), (33, 20)];
                let spec = Spec { shape, variant, splits, sequences, sharpness: 1.0 };
                cases.push(Case {
                    name: format!("{} after its append", spec.name()),
                    heavy: false,
                    run: Box::new(move |device, seed| check_after_append(&spec, device, seed)),
                });
            }
        }
    }
    cases.extend(heavy_cases());
    cases
}

/// Shapes of a 7B and of a 0.5B model: decode, a batch, drafts, tails, a prompt.
fn heavy_cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for kv in [KvFormat::F16, KvFormat::F8] {
        for shape in [shape(28, 4, 128, kv), shape(14, 2, 64, kv)] {
            for sequences in [
                vec![(4095, 1)],
                vec![(4095, 1), (1000, 1), (17, 1), (8000, 1)],
                vec![(4096, 5)],
                vec![(4096, 16)],
                vec![(4096, 128)],
                vec![(0, 2048)],
                vec![(1500, 512), (0, 33)],
            ] {
                let tokens = sequences.iter().map(|&(_, rows)| rows).max().unwrap_or(0);
                let variant = Variant::choose(tokens, shape.group());
                let items: u32 =
                    sequences.iter().map(|&(_, rows)| rows.div_ceil(variant.tokens(shape.group()))).sum();
                let splits = choose_splits(variant, items, shape.kv_heads, 4096, 132);
                cases.push(Spec { shape, variant, splits, sequences, sharpness: 1.0 }.case(true));
            }
        }
    }
    cases
}
