//! The command's parts on the host shim: they run to their end and count what they should. How fast the shim is
//! is nobody's business.

use redstart_engine::config::ModelConfig;
use redstart_gpu::{engine, kernels};
use redstart_kernels::device::Device;
use redstart_kernels::machine::{self, Effort};
use redstart_kernels_shim::{HostDevice, Options};

fn config() -> ModelConfig {
    let json =
        br#"{"model_type": "qwen2", "hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 64, "intermediate_size": 256, "vocab_size": 300,
        "rms_norm_eps": 1e-6, "max_position_embeddings": 8192}"#;
    ModelConfig::parse(json, None).expect("a good configuration")
}

#[test]
fn a_card_s_rates_are_measured() {
    let mut device = HostDevice::new(Options::default());
    let rates = machine::measure(&mut device, Effort { bytes: 256 << 10, rounds: 1 }).expect("rates");
    assert!(rates.read > 0.0 && rates.copy > 0.0 && rates.matrix > 0.0, "{rates:?}");
}

#[test]
fn every_kernel_has_a_row_of_the_table() {
    let mut device = HostDevice::new(Options::default());
    let rows = kernels::measure(&mut device, &config(), &[1, 18], 64).expect("a table");
    // Four products, attention and two heads, twice.
    assert_eq!(rows.len(), 14);
    let rates = machine::Rates { read: 2e12, copy: 1e12, matrix: 1e14 };
    let table = kernels::table(&rows, &rates);
    assert!(table.contains("reads 2000 GB/s, copies 1000 GB/s"), "{table}");
    for row in &rows {
        assert!(row.us > 0.0 && row.bytes > 0 && row.operations > 0, "{row:?}");
        assert!(row.floor_us(&rates) > 0.0 && table.contains(&row.name), "{table}");
    }
    // One row is a matter of bytes, and those are held against the copy.
    let (floor, copied) = (rows[0].floor_us(&rates), rows[0].bytes as f64 / 1e6);
    assert!((floor / copied - 1.0).abs() < 1e-9, "{floor} {copied}");
    // int4 in groups of 128: half a byte, and two and a half a group, to a weight.
    let gate = &rows[2];
    let weights = 128 * 512;
    assert!(gate.bytes as usize >= weights / 2 && (gate.bytes as usize) < weights, "{gate:?}");
}

#[test]
fn a_reference_model_is_checked() {
    let mut out = Vec::new();
    let oracle = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../oracle/tied-hd64");
    let mut open = || Ok(Box::new(HostDevice::new(Options::default())) as Box<dyn Device>);
    let right = engine::check_reference(&mut open, &oracle, true, &mut out).expect("checked");
    let text = String::from_utf8(out).expect("text");
    assert!(right, "{text}");
    // Whole, in chunks and in two formats; alone and together.
    assert!(text.lines().count() == 8 && text.contains("tied-hd64, 8-bit head"), "{text}");
}
