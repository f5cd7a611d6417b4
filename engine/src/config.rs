//! `config.json`: the shape of a model, checked before any weight is read.
//!
//! Supported: `Qwen2ForCausalLM` (Qwen2, Qwen2.5, Qwen2.5-Coder) and `Qwen3ForCausalLM` (dense Qwen3), with
//! plain or AWQ GEMM int4 weights. Everything else is refused with what was found and what is supported,
//! because a model that runs with a field misread is worse than one that does not run.

use serde_json::{Map, Value};

/// Which family of models; they differ in a few details of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Biases on the query, key and value layers.
    Qwen2,
    /// No biases; every query and key head is normed before the rotary embedding.
    Qwen3,
}

/// Shape and constants of a model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Its family.
    pub architecture: Architecture,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Number of transformer layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key/value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Width of the feed-forward layer.
    pub intermediate_size: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// Added to the mean square in RMSNorm.
    pub rms_norm_eps: f32,
    /// Positions the model was made for.
    pub max_position_embeddings: usize,
    /// Tokens that end a text: those of `config.json` and of `generation_config.json`, ascending.
    pub eos_token_ids: Vec<u32>,
    /// Rows of a linear's input that share one AWQ scale; `None` when no weight is quantized.
    pub awq_group_size: Option<usize>,
}

/// Why a configuration was refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not a JSON object.
    #[error("{file} is not a JSON object: {detail}")]
    NotJson {
        /// Which file.
        file: &'static str,
        /// What the parser said.
        detail: String,
    },
    /// A field that must be there is not.
    #[error("config.json has no field `{field}`")]
    Missing {
        /// Path of the field.
        field: String,
    },
    /// A field has the wrong type.
    #[error("{file}: `{field}` is {found}, expected {expected}")]
    WrongType {
        /// Which file.
        file: &'static str,
        /// Path of the field.
        field: String,
        /// The value there.
        found: String,
        /// What it should have been.
        expected: &'static str,
    },
    /// A value that no model of this kind can have.
    #[error("config.json: {0}")]
    Impossible(String),
    /// A model this engine does not run.
    #[error("config.json: {what} is {found}; supported: {supported}")]
    Unsupported {
        /// What is not supported.
        what: &'static str,
        /// The value found.
        found: String,
        /// What would have been accepted.
        supported: &'static str,
    },
}

/// Sizes beyond these are a damaged file, not a model.
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
const MAX_VOCABULARY: usize = 1 << 22;
const MAX_POSITIONS: usize = 1 << 24;

impl ModelConfig {
    /// Reads `config.json` and, where there is one, `generation_config.json`.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn parse(config_json: &[u8], generation_config_json: Option<&[u8]>) -> Result<Self, ConfigError> {
        let fields = Fields::parse("config.json", config_json)?;
        let architecture = architecture(&fields)?;
        check_attention(&fields, architecture)?;

        let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
        let num_heads = fields.size("num_attention_heads", MAX_WIDTH)?;
        let num_kv_heads = match fields.get("num_key_value_heads") {
            None => num_heads,
            Some(_) => fields.size("num_key_value_heads", MAX_WIDTH)?,
        };
        if !num_heads.is_multiple_of(num_kv_heads) {
            return Err(ConfigError::Impossible(format!(
                "{num_heads} attention heads cannot share {num_kv_heads} key/value heads evenly"
            )));
        }
        let head_dim = match fields.get("head_dim") {
            Some(_) => fields.size("head_dim", MAX_WIDTH)?,
            // Here it is not implied by the other widths.
            None if architecture == Architecture::Qwen3 => {
                return Err(ConfigError::Missing { field: "head_dim".into() });
            }
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                return Err(ConfigError::Impossible(format!(
                    "hidden_size {hidden_size} is not a multiple of num_attention_heads {num_heads}, and there is no head_dim"
                )));
            }
        };
        if !head_dim.is_multiple_of(2) {
            return Err(ConfigError::Impossible(format!(
                "head_dim {head_dim} is odd; rotary positions need pairs"
            )));
        }
        if num_heads * head_dim > MAX_WIDTH {
            return Err(ConfigError::Impossible(format!(
                "{num_heads} heads of {head_dim} are wider than the limit of {MAX_WIDTH}"
            )));
        }
        let rms_norm_eps = fields.float("rms_norm_eps")?;
        if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
            return Err(ConfigError::Impossible(format!(
                "rms_norm_eps is {rms_norm_eps}, expected a small positive number"
            )));
        }
        Ok(Self {
            architecture,
            hidden_size,
            num_layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            vocab_size: fields.size("vocab_size", MAX_VOCABULARY)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            rope_theta: rope_theta(&fields)?,
            rms_norm_eps: rms_norm_eps as f32,
            max_position_embeddings: fields.size("max_position_embeddings", MAX_POSITIONS)?,
            eos_token_ids: eos_token_ids(&fields, generation_config_json)?,
            awq_group_size: awq_group_size(&fields)?,
        })
    }

    /// Query heads per key/value head.
    pub fn heads_per_kv_head(&self) -> usize {
        self.num_heads / self.num_kv_heads
    }

    /// Width of all query heads together; not `hidden_size` in every model.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together, and of all value heads.
    pub fn kv_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Whether the query, key and value layers have biases.
    pub fn qkv_bias(&self) -> bool {
        self.architecture == Architecture::Qwen2
    }

    /// Whether query and key heads are normed (`self_attn.q_norm`, `self_attn.k_norm`) before they are
    /// turned.
    pub fn qk_norm(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }
}

fn architecture(fields: &Fields) -> Result<Architecture, ConfigError> {
    const SUPPORTED: &str = "Qwen2ForCausalLM (model_type qwen2: Qwen2, Qwen2.5, Qwen2.5-Coder), \
         Qwen3ForCausalLM (model_type qwen3: dense Qwen3)";
    let unsupported = |what, found| ConfigError::Unsupported { what, found, supported: SUPPORTED };
    let (architecture, class) = match fields.get("model_type") {
        Some(Value::String(model_type)) if model_type == "qwen2" => (Architecture::Qwen2, "Qwen2ForCausalLM"),
        Some(Value::String(model_type)) if model_type == "qwen3" => (Architecture::Qwen3, "Qwen3ForCausalLM"),
        Some(other) => return Err(unsupported("model_type", other.to_string())),
        None => return Err(ConfigError::Missing { field: "model_type".into() }),
    };
    match fields.get("architectures") {
        None => {}
        Some(Value::Array(names)) if names.iter().any(|name| name == class) => {}
        Some(other) => return Err(unsupported("architectures", other.to_string())),
    }
    match fields.get("hidden_act") {
        None => Ok(architecture),
        Some(Value::String(name)) if name == "silu" => Ok(architecture),
        Some(other) => {
            Err(ConfigError::Unsupported { what: "hidden_act", found: other.to_string(), supported: "silu" })
        }
    }
}

/// Sliding windows are refused only where a layer would really use one; so are Qwen3's optional biases,
/// which no published model has.
fn check_attention(fields: &Fields, architecture: Architecture) -> Result<(), ConfigError> {
    if architecture == Architecture::Qwen3 && fields.flag("attention_bias")?.unwrap_or(false) {
        return Err(ConfigError::Unsupported {
            what: "attention_bias",
            found: "true".into(),
            supported: "false (for model_type qwen3)",
        });
    }
    let sliding = fields.flag("use_sliding_window")?.unwrap_or(false)
        || matches!(fields.get("layer_types"), Some(Value::Array(types))
            if types.iter().any(|kind| kind == "sliding_attention"));
    if sliding {
        return Err(ConfigError::Unsupported {
            what: "use_sliding_window",
            found: "true".into(),
            supported: "full attention in every layer",
        });
    }
    Ok(())
}

/// The rotary base, from `rope_theta` or from the newer `rope_parameters`; no scaling of either.
fn rope_theta(fields: &Fields) -> Result<f64, ConfigError> {
    for name in ["rope_scaling", "rope_parameters"] {
        let Some(rope) = fields.get(name) else { continue };
        let Value::Object(rope) = rope else {
            return Err(wrong_type(fields.file, name, rope, "an object"));
        };
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        if kind.is_some_and(|kind| kind != "default") || (kind.is_none() && rope.contains_key("factor")) {
            return Err(ConfigError::Unsupported {
                what: "rope scaling",
                found: Value::Object(rope.clone()).to_string(),
                supported: "none (rope_type default)",
            });
        }
    }
    let nested = fields.get("rope_parameters").and_then(|rope| rope.get("rope_theta"));
    let theta = match (nested, fields.get("rope_theta")) {
        (Some(value), _) | (None, Some(value)) => {
            value.as_f64().ok_or_else(|| wrong_type(fields.file, "rope_theta", value, "a number"))?
        }
        // The value every implementation takes when the field is absent.
        (None, None) => 10_000.0,
    };
    if !(theta.is_finite() && theta > 1.0) {
        return Err(ConfigError::Impossible(format!("rope_theta is {theta}, expected a number above 1")));
    }
    Ok(theta)
}

fn eos_token_ids(fields: &Fields, generation_config_json: Option<&[u8]>) -> Result<Vec<u32>, ConfigError> {
    let mut ids = fields.token_ids("eos_token_id")?;
    if let Some(json) = generation_config_json {
        ids.extend(Fields::parse("generation_config.json", json)?.token_ids("eos_token_id")?);
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// The AWQ group size; accepts the newer and the older names of the same keys.
fn awq_group_size(fields: &Fields) -> Result<Option<usize>, ConfigError> {
    let Some(quantization) = fields.get("quantization_config") else { return Ok(None) };
    let Value::Object(map) = quantization else {
        return Err(wrong_type(fields.file, "quantization_config", quantization, "an object"));
    };
    let quantization = Fields { file: fields.file, prefix: "quantization_config.", map: map.clone() };
    let unsupported = |what, found: &Value, supported| {
        Err(ConfigError::Unsupported { what, found: found.to_string(), supported })
    };
    match quantization.get("quant_method") {
        Some(Value::String(method)) if method.eq_ignore_ascii_case("awq") => {}
        Some(other) => {
            return unsupported("quantization_config.quant_method", other, "awq, or no quantization");
        }
        None => return Err(ConfigError::Missing { field: "quantization_config.quant_method".into() }),
    }
    match quantization.get("bits").or_else(|| quantization.get("w_bit")) {
        Some(bits) if bits.as_u64() == Some(4) => {}
        Some(other) => return unsupported("quantization_config.bits", other, "4"),
        None => return Err(ConfigError::Missing { field: "quantization_config.bits".into() }),
    }
    match quantization.get("version") {
        None => {}
        Some(Value::String(version)) if version.eq_ignore_ascii_case("gemm") => {}
        Some(other) => return unsupported("quantization_config.version", other, "gemm"),
    }
    match quantization.get("zero_point") {
        None | Some(Value::Bool(true)) => {}
        Some(other) => return unsupported("quantization_config.zero_point", other, "true"),
    }
    match quantization.get("group_size").or_else(|| quantization.get("q_group_size")) {
        Some(size) if matches!(size.as_u64(), Some(32 | 64 | 128)) => {
            Ok(size.as_u64().map(|size| size as usize))
        }
        Some(other) => unsupported("quantization_config.group_size", other, "32, 64 or 128"),
        None => Err(ConfigError::Missing { field: "quantization_config.group_size".into() }),
    }
}

/// A JSON object whose fields are read by name, with errors that name them.
struct Fields {
    file: &'static str,
    prefix: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    fn parse(file: &'static str, json: &[u8]) -> Result<Self, ConfigError> {
        let map = serde_json::from_slice(json)
            .map_err(|error| ConfigError::NotJson { file, detail: error.to_string() })?;
        Ok(Self { file, prefix: "", map })
    }

    /// The field's value; `null` counts as absent, as in Hugging Face configurations.
    fn get(&self, name: &str) -> Option<&Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn required(&self, name: &str) -> Result<&Value, ConfigError> {
        self.get(name).ok_or_else(|| ConfigError::Missing { field: format!("{}{name}", self.prefix) })
    }

    /// A count of at least one and at most `limit`.
    fn size(&self, name: &str, limit: usize) -> Result<usize, ConfigError> {
        let value = self.required(name)?;
        let size = value
            .as_u64()
            .ok_or_else(|| wrong_type(self.file, name, value, "a whole number, not negative"))?;
        match usize::try_from(size) {
            Ok(size) if (1..=limit).contains(&size) => Ok(size),
            _ => Err(ConfigError::Impossible(format!("{name} is {size}, expected 1 to {limit}"))),
        }
    }

    fn float(&self, name: &str) -> Result<f64, ConfigError> {
        let value = self.required(name)?;
        value.as_f64().ok_or_else(|| wrong_type(self.file, name, value, "a number"))
    }

    fn flag(&self, name: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(wrong_type(self.file, name, other, "true or false")),
        }
    }

    /// One token id or a list of them; none when absent.
    fn token_ids(&self, name: &str) -> Result<Vec<u32>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let single = std::slice::from_ref(value);
        let items = value.as_array().map_or(single, Vec::as_slice);
        items
            .iter()
            .map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()))
            .collect::<Option<Vec<u32>>>()
            .ok_or_else(|| wrong_type(self.file, name, value, "a token id or a list of token ids"))
    }
}

fn wrong_type(file: &'static str, field: &str, found: &Value, expected: &'static str) -> ConfigError {
    ConfigError::WrongType { file, field: field.into(), found: found.to_string(), expected }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn sample() -> Value {
        json!({
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 320,
            "num_hidden_layers": 2, "num_attention_heads": 5, "num_key_value_heads": 5,
            "intermediate_size": 832, "vocab_size": 777, "tie_word_embeddings": false,
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "max_position_embeddings": 4096,
            "hidden_act": "silu", "eos_token_id": 2, "use_sliding_window": false, "sliding_window": 4096,
            "quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemm", "zero_point": true}
        })
    }

    /// The sample with one field set, or removed where `value` is null.
    fn parse_with(path: &str, value: Value) -> Result<ModelConfig, String> {
        let mut config = sample();
        config.pointer_mut(path.rsplit_once('/').unwrap().0).unwrap()[path.rsplit('/').next().unwrap()] =
            value;
        ModelConfig::parse(config.to_string().as_bytes(), None).map_err(|error| error.to_string())
    }

    #[test]
    fn reads_a_qwen2_configuration() {
        let generation = br#"{"eos_token_id": [7, 2]}"#;
        let config = ModelConfig::parse(sample().to_string().as_bytes(), Some(generation)).unwrap();
        assert_eq!(config.head_dim, 64);
        assert_eq!(config.heads_per_kv_head(), 1);
        assert_eq!(config.eos_token_ids, [2, 7]);
        assert_eq!(config.awq_group_size, Some(64));
        assert_eq!(config.rope_theta, 1e6);
    }

    #[test]
    fn reads_newer_and_optional_fields() {
        let rope = json!({"rope_type": "default", "rope_theta": 5000.0});
        assert_eq!(parse_with("/rope_parameters", rope).unwrap().rope_theta, 5000.0);
        assert_eq!(parse_with("/head_dim", json!(128)).unwrap().head_dim, 128);
        assert_eq!(parse_with("/eos_token_id", json!([5, 3])).unwrap().eos_token_ids, [3, 5]);
        assert_eq!(parse_with("/num_key_value_heads", Value::Null).unwrap().num_kv_heads, 5);
        assert_eq!(parse_with("/quantization_config", Value::Null).unwrap().awq_group_size, None);
    }

    #[test]
    fn reads_a_qwen3_configuration() {
        let mut config = sample();
        for (field, value) in [
            ("architectures", json!(["Qwen3ForCausalLM"])),
            ("model_type", json!("qwen3")),
            ("head_dim", json!(128)),
            ("attention_bias", json!(false)),
        ] {
            config[field] = value;
        }
        let parse = |config: &Value| ModelConfig::parse(config.to_string().as_bytes(), None);
        let parsed = parse(&config).unwrap();
        assert_eq!((parsed.q_width(), parsed.hidden_size), (640, 320));
        assert!(parsed.qk_norm() && !parsed.qkv_bias());
        for (field, value, word) in [
            ("head_dim", Value::Null, "head_dim"),
            ("attention_bias", json!(true), "attention_bias"),
            ("architectures", json!(["Qwen2ForCausalLM"]), "Qwen3ForCausalLM"),
        ] {
            let mut config = config.clone();
            config[field] = value;
            let message = parse(&config).unwrap_err().to_string();
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }

    #[test]
    fn refusals_name_what_was_found_and_what_is_supported() {
        for (path, value, expected) in [
            ("/model_type", json!("llama"), ["\"llama\"", "qwen2"]),
            (
                "/architectures",
                json!(["Qwen2ForSequenceClassification"]),
                ["SequenceClassification", "Qwen2ForCausalLM"],
            ),
            ("/hidden_act", json!("gelu"), ["gelu", "silu"]),
            ("/use_sliding_window", json!(true), ["use_sliding_window", "full attention"]),
            ("/rope_scaling", json!({"type": "yarn", "factor": 4.0}), ["yarn", "default"]),
            ("/quantization_config/quant_method", json!("gptq"), ["gptq", "awq"]),
            ("/quantization_config/bits", json!(8), ["8", "4"]),
            ("/quantization_config/version", json!("gemv"), ["gemv", "gemm"]),
            ("/quantization_config/group_size", json!(256), ["256", "32, 64 or 128"]),
            ("/quantization_config/zero_point", json!(false), ["zero_point", "true"]),
            ("/hidden_size", json!(0), ["hidden_size", "0"]),
            ("/hidden_size", json!("wide"), ["hidden_size", "\"wide\""]),
            ("/hidden_size", Value::Null, ["hidden_size", "no field"]),
            ("/num_hidden_layers", json!(1_000_000), ["num_hidden_layers", "1000000"]),
            ("/num_key_value_heads", json!(2), ["5 attention heads", "2 key/value"]),
            ("/num_key_value_heads", json!(0), ["num_key_value_heads", "0"]),
            ("/rms_norm_eps", json!(-1.0), ["rms_norm_eps", "-1"]),
            ("/rope_theta", json!("big"), ["rope_theta", "big"]),
            ("/eos_token_id", json!(-1), ["eos_token_id", "-1"]),
            ("/head_dim", json!(63), ["head_dim", "odd"]),
        ] {
            let message = parse_with(path, value).expect_err(path);
            for word in expected {
                assert!(message.contains(word), "{path}: {message:?} does not say {word:?}");
            }
        }
        let message = ModelConfig::parse(b"[1]", None).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
    }
}
