//! How fast integer weights are multiplied, one thread, in every instruction set that the machine has:
//! `cargo bench -p redstart-engine --bench kernels`.
//!
//! One row reads a matrix that no cache holds and is counted in bytes of weights: decoding. More rows share a matrix
//! that the second-level cache holds and are counted in elements, products of a weight and an activation, whatever
//! the digits: prefill.

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use memmap2::MmapMut;
use redstart_engine::cpu::Isa;
use redstart_engine::cpu::kernels::{
    Digits, Kernels, LINE_BYTES, Line, PAIR, QuantTile, QuantizedRows, WeightBits, group_lines,
};

/// Inputs of the matrices: the hidden size of a model of half a billion parameters.
const WIDTH: usize = 896;
const GROUP_SIZE: usize = 128;

/// More than the last-level cache of a server.
const STREAMED_BYTES: usize = 512 << 20;
const CACHED_BYTES: usize = 1 << 20;

const ROWS: [usize; 4] = [1, 4, 16, 96];

/// Token rows of arbitrary digits.
struct Rows {
    rows: usize,
    digits: Digits,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Rows {
    fn new(rows: usize, digits: Digits) -> Self {
        let groups = rows * WIDTH / GROUP_SIZE;
        Self {
            rows,
            digits,
            values: vec![21; rows * WIDTH * digits.count()],
            scales: vec![0.5; groups],
            sums: vec![21 * GROUP_SIZE as i32; groups * digits.count()],
        }
    }

    fn quantized(&self) -> QuantizedRows<'_> {
        QuantizedRows {
            rows: self.rows,
            width: WIDTH,
            group_size: GROUP_SIZE,
            digits: self.digits,
            values: &self.values,
            scales: &self.scales,
            sums: &self.sums,
        }
    }
}

/// Multiplies `rows` by every tile of `lines`.
fn bench_matrix(
    group: &mut BenchmarkGroup<'_, WallTime>,
    kernels: Kernels,
    bits: WeightBits,
    rows: &Rows,
    lines: &[Line],
) {
    let tile_lines = WIDTH / GROUP_SIZE * group_lines(bits, GROUP_SIZE);
    let tiles = lines.chunks_exact(tile_lines);
    group.throughput(if rows.rows == 1 {
        Throughput::Bytes((tiles.len() * tile_lines * LINE_BYTES) as u64)
    } else {
        Throughput::Elements((tiles.len() * PAIR * WIDTH * rows.rows) as u64)
    });
    let name = format!("rows={},digits={:?},bits={bits:?}", rows.rows, rows.digits);
    let mut out = vec![[0.0; PAIR]; rows.rows];
    group.bench_function(BenchmarkId::new(name, kernels.isa().name()), |bencher| {
        bencher.iter(|| {
            for lines in tiles.clone() {
                let tile = QuantTile { bits, group_size: GROUP_SIZE, lines };
                kernels.quant_dot(&tile, &rows.quantized(), 0, &mut out);
            }
            out[0][0]
        });
    });
}

/// A matrix of arbitrary weights, on large pages as the engine's own.
fn weights() -> MmapMut {
    let mut map = MmapMut::map_anon(STREAMED_BYTES).expect("memory for the matrix");
    #[cfg(target_os = "linux")]
    map.advise(memmap2::Advice::HugePage).expect("advice on memory of our own");
    // Any bytes are weights; these are no strange scales either.
    map.fill(0x11);
    map
}

fn quant_dot(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quant_dot");
    group.sample_size(10);
    group.warm_up_time(std::time::Duration::from_millis(200));
    group.measurement_time(std::time::Duration::from_secs(1));
    let map = weights();
    // SAFETY: any bytes are a line.
    let (_, lines, _) = unsafe { map.align_to::<Line>() };
    for rows in ROWS {
        let lines = if rows == 1 { lines } else { &lines[..CACHED_BYTES / LINE_BYTES] };
        for digits in [Digits::One, Digits::Two] {
            let rows = Rows::new(rows, digits);
            for bits in [WeightBits::Four, WeightBits::Eight] {
                for kernels in Isa::ALL.into_iter().filter_map(Kernels::new) {
                    bench_matrix(&mut group, kernels, bits, &rows, lines);
                }
            }
        }
    }
    group.finish();
}

criterion_group!(benches, quant_dot);
criterion_main!(benches);
