//! Damaged and unsuitable model files: each is refused with a message that names what is wrong.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions};
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};
use tempfile::TempDir;

const HIDDEN: usize = 64;
const INNER: usize = 96;
const VOCABULARY: usize = 40;

fn config() -> Value {
    json!({
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN,
        "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": INNER, "vocab_size": VOCABULARY, "tie_word_embeddings": true,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 128, "eos_token_id": 2,
        "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": true}
    })
}

#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

fn halves(shape: &[usize]) -> Stored {
    let count: usize = shape.iter().product();
    let bytes = (0..count).flat_map(|i| f16::from_f32((i % 7) as f32 * 0.01).to_le_bytes()).collect();
    Stored { dtype: Dtype::F16, shape: shape.into(), bytes }
}

fn words(shape: &[usize]) -> Stored {
    Stored { dtype: Dtype::I32, shape: shape.into(), bytes: vec![0x5a; 4 * shape.iter().product::<usize>()] }
}

/// A small model with quantized layers, except a plain `o_proj`.
fn tensors() -> Tensors {
    let mut tensors = Tensors::new();
    let mut add = |name: &str, tensor| tensors.insert(name.to_owned(), tensor);
    add("model.embed_tokens.weight", halves(&[VOCABULARY, HIDDEN]));
    add("model.norm.weight", halves(&[HIDDEN]));
    add("model.layers.0.input_layernorm.weight", halves(&[HIDDEN]));
    add("model.layers.0.post_attention_layernorm.weight", halves(&[HIDDEN]));
    add("model.layers.0.self_attn.o_proj.weight", halves(&[HIDDEN, HIDDEN]));
    for (name, input, output) in [
        ("self_attn.q_proj", HIDDEN, HIDDEN),
        ("self_attn.k_proj", HIDDEN, 32),
        ("self_attn.v_proj", HIDDEN, 32),
        ("mlp.gate_proj", HIDDEN, INNER),
        ("mlp.up_proj", HIDDEN, INNER),
        ("mlp.down_proj", INNER, HIDDEN),
    ] {
        let prefix = format!("model.layers.0.{name}");
        add(&format!("{prefix}.qweight"), words(&[input, output / 8]));
        add(&format!("{prefix}.qzeros"), words(&[input / 32, output / 8]));
        add(&format!("{prefix}.scales"), halves(&[input / 32, output]));
        if name.starts_with("self_attn") {
            add(&format!("{prefix}.bias"), halves(&[output]));
        }
    }
    tensors
}

fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let views =
        tensors.iter().map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
    serialize(views, None).unwrap()
}

fn directory(weights: &[u8]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("config.json"), config().to_string()).unwrap();
    std::fs::write(directory.path().join("model.safetensors"), weights).unwrap();
    directory
}

/// Opens and loads; the message of whatever went wrong.
fn load(directory: &Path) -> Result<(), String> {
    let checkpoint = Checkpoint::open(directory).map_err(|error| error.to_string())?;
    let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
    CpuBackend::new(&checkpoint, options).map(drop).map_err(|error| error.to_string())
}

fn assert_refused(directory: &Path, expected: &[&str]) {
    let message = load(directory).expect_err("must be refused");
    for words in expected {
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

/// The model with one tensor changed, or removed where `change` says so.
fn assert_refused_with(tensor: &str, change: impl Fn(&mut Stored) -> bool, expected: &[&str]) {
    let mut tensors = tensors();
    let keep = change(tensors.get_mut(tensor).unwrap());
    if !keep {
        tensors.remove(tensor);
    }
    assert_refused(directory(&safetensors(&tensors)).path(), expected);
}

#[test]
fn the_sound_model_loads() {
    let directory = directory(&safetensors(&tensors()));
    load(directory.path()).unwrap();
    std::fs::write(directory.path().join("tokenizer.json"), "{}").unwrap();
    let checkpoint = Checkpoint::open(directory.path()).unwrap();
    assert_eq!(checkpoint.read_file("tokenizer.json").unwrap(), b"{}");
    assert!(checkpoint.read_file("tokenizer_config.json").is_none());
}

#[test]
fn embedded_bytes_load_like_a_directory() {
    let weights: &'static [u8] = safetensors(&tensors()).leak();
    let checkpoint = Checkpoint::from_static("small", config().to_string().as_bytes(), weights).unwrap();
    assert_eq!(checkpoint.name(), "small");
    CpuBackend::new(&checkpoint, CpuOptions::default()).unwrap();
    let message = Checkpoint::from_static("small", b"{}", weights).unwrap_err().to_string();
    assert!(message.contains("small") && message.contains("model_type"), "{message}");
}

#[test]
fn missing_files_are_named() {
    assert_refused(Path::new("/no/such/model"), &["/no/such/model"]);
    let directory = tempfile::tempdir().unwrap();
    assert_refused(directory.path(), &["config.json"]);
    std::fs::write(directory.path().join("config.json"), config().to_string()).unwrap();
    assert_refused(directory.path(), &["model.safetensors", "only safetensors are supported"]);
}

#[test]
fn damaged_files_are_refused() {
    let sound = safetensors(&tensors());
    let header_length = u64::from_le_bytes(*sound.first_chunk().unwrap()) as usize;
    assert_refused(directory(&sound[..sound.len() - 10]).path(), &["model.safetensors", "truncated"]);
    assert_refused(directory(&sound[..5]).path(), &["model.safetensors", "5 bytes"]);
    assert_refused(directory(&sound[..100]).path(), &["header claims", "has 100"]);

    let mut bytes = sound.clone();
    bytes[..8].copy_from_slice(&(1u64 << 40).to_le_bytes());
    assert_refused(directory(&bytes).path(), &["header claims 1099511627776 bytes"]);

    let mut bytes = sound.clone();
    bytes[8] = b'[';
    assert_refused(directory(&bytes).path(), &["header is not JSON"]);

    // A range that leaves the file, in a header that is otherwise sound.
    let header: Value = serde_json::from_slice(&sound[8..8 + header_length]).unwrap();
    let mut header = header.as_object().unwrap().clone();
    let last = header
        .values_mut()
        .filter(|tensor| tensor.get("data_offsets").is_some())
        .max_by_key(|tensor| tensor["data_offsets"][1].as_u64())
        .unwrap();
    let rows = last["shape"][0].as_u64().unwrap();
    let (from, to) = (last["data_offsets"][0].as_u64().unwrap(), last["data_offsets"][1].as_u64().unwrap());
    last["shape"][0] = json!(2 * rows);
    last["data_offsets"][1] = json!(to + (to - from));
    let header = Value::from(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(&sound[8 + header_length..]);
    assert_refused(directory(&bytes).path(), &["model.safetensors", "not what its tensors need"]);
}

#[test]
fn unsuitable_tensors_are_named() {
    let q = "model.layers.0.self_attn.q_proj";
    assert_refused_with("model.norm.weight", |_| false, &["no tensor model.norm.weight"]);
    assert_refused_with(
        &format!("{q}.qweight"),
        |_| false,
        &[&format!("{q}.weight"), &format!("{q}.qweight")],
    );
    assert_refused_with(&format!("{q}.qzeros"), |_| false, &[&format!("{q}.qzeros")]);
    assert_refused_with(&format!("{q}.bias"), |_| false, &[&format!("{q}.bias")]);
    let expected = ["model.norm.weight", "[63]", "[64]"];
    assert_refused_with(
        "model.norm.weight",
        |t| {
            *t = halves(&[HIDDEN - 1]);
            true
        },
        &expected,
    );
    let narrow = |t: &mut Stored| {
        *t = words(&[HIDDEN, 7]);
        true
    };
    assert_refused_with(&format!("{q}.qweight"), narrow, &[&format!("{q}.qweight"), "[64, 7]", "[64, 8]"]);
    let words_as_norm = |t: &mut Stored| {
        *t = words(&[HIDDEN]);
        true
    };
    assert_refused_with("model.norm.weight", words_as_norm, &["model.norm.weight", "I32", "F16"]);
    let float_scales = |t: &mut Stored| {
        t.dtype = Dtype::BF16;
        true
    };
    assert_refused_with(&format!("{q}.scales"), float_scales, &[&format!("{q}.scales"), "BF16", "F16"]);
    let words_as_embedding = |t: &mut Stored| {
        *t = words(&[VOCABULARY, HIDDEN]);
        true
    };
    assert_refused_with(
        "model.embed_tokens.weight",
        words_as_embedding,
        &["model.embed_tokens.weight", "I32"],
    );
}

#[test]
fn values_that_are_not_finite_are_found() {
    for name in [
        "model.layers.0.mlp.down_proj.scales",
        "model.layers.0.self_attn.o_proj.weight",
        "model.layers.0.self_attn.k_proj.bias",
        "model.norm.weight",
        "model.embed_tokens.weight",
    ] {
        for (bad, word) in [(f16::NAN, "NaN"), (f16::INFINITY, "inf")] {
            let set = |t: &mut Stored| {
                t.bytes[20..22].copy_from_slice(&bad.to_le_bytes());
                true
            };
            assert_refused_with(name, set, &[name, word, "element 10"]);
        }
    }
}

#[test]
fn shards_are_followed_and_missing_ones_named() {
    let all = tensors();
    let names: Vec<&String> = all.keys().collect();
    let (first, second) = names.split_at(names.len() / 2);
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let mut weight_map = BTreeMap::new();
    for (shard, names) in [("model-1.safetensors", first), ("model-2.safetensors", second)] {
        let part: Tensors = names.iter().map(|name| ((*name).clone(), all[*name].clone())).collect();
        std::fs::write(path(shard), safetensors(&part)).unwrap();
        weight_map.extend(names.iter().map(|name| ((*name).clone(), shard.to_owned())));
    }
    std::fs::write(path("config.json"), config().to_string()).unwrap();
    let write_index = |map: &BTreeMap<String, String>| {
        std::fs::write(path("model.safetensors.index.json"), json!({"weight_map": map}).to_string()).unwrap();
    };
    write_index(&weight_map);
    load(directory.path()).unwrap();

    let mut wrong = weight_map.clone();
    wrong.insert("model.extra".into(), "model-1.safetensors".into());
    write_index(&wrong);
    assert_refused(directory.path(), &["model.extra", "index lists it"]);
    wrong.insert("model.extra".into(), "../model-3.safetensors".into());
    write_index(&wrong);
    assert_refused(directory.path(), &["not a plain file name"]);
    std::fs::write(path("model.safetensors.index.json"), "[]").unwrap();
    assert_refused(directory.path(), &["model.safetensors.index.json"]);
    write_index(&weight_map);
    std::fs::remove_file(path("model-2.safetensors")).unwrap();
    assert_refused(directory.path(), &["model-2.safetensors", "missing"]);
}
