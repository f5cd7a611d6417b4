"""Makes `qwen3-bf16/`: a small random Qwen3 checkpoint and what Hugging Face's implementation says of it in
float64.

    pip install torch transformers safetensors
    python make_qwen3.py qwen3-bf16

What it covers that the other checkpoints do not: query and key norms, heads that together are wider than the
residual stream, plain bf16 weights, two shards with an index. The weights come from a seed, but another
version of torch may draw other numbers; the engine is measured against the committed files, so make them again
only to change them on purpose.
"""

import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file

CONFIG = dict(
    hidden_size=128,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    intermediate_size=256,
    vocab_size=512,
    max_position_embeddings=4096,
    tie_word_embeddings=True,
    rms_norm_eps=1e-6,
    attention_bias=False,
    hidden_act="silu",
    bos_token_id=1,
    eos_token_id=2,
)
ROPE_THETA = 1_000_000.0
PROMPT_LENGTHS = [1, 16, 17, 47, 150]
GREEDY_STEPS = 16


def draw(name, shape, generator):
    """A tensor for activations of a trained model's size, and attention that is neither flat nor a point."""
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if name.endswith(("q_norm.weight", "k_norm.weight")):
        return 1.4 + 0.3 * noise
    if name == "model.norm.weight":
        return 2.0 + 0.4 * noise
    if name.endswith("norm.weight"):
        return 1.0 + 0.2 * noise
    if name == "model.embed_tokens.weight":
        return 0.15 * noise
    return noise / shape[-1] ** 0.5


def write_checkpoint(folder):
    generator = torch.Generator().manual_seed(20)
    config = transformers.Qwen3Config(**CONFIG, rope_theta=ROPE_THETA)
    model = transformers.Qwen3ForCausalLM(config)
    tensors = {
        name: draw(name, tuple(value.shape), generator).to(torch.bfloat16)
        for name, value in model.state_dict().items()
        if name != "lm_head.weight"
    }
    shards = [{}, {}]
    for name, tensor in tensors.items():
        shards[".layers.1." in name or name == "model.norm.weight"][name] = tensor
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, shard in zip(names, shards):
        save_file(shard, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)
    weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
    fields = dict(architectures=["Qwen3ForCausalLM"], model_type="qwen3", rope_theta=ROPE_THETA)
    fields |= CONFIG | dict(torch_dtype="bfloat16", use_sliding_window=False, sliding_window=None)
    (folder / "config.json").write_text(json.dumps(fields, indent=1) + "\n")


def load_in_float64(folder):
    """The model as its files describe it, computed in float64."""
    config = transformers.Qwen3Config(**CONFIG, rope_theta=ROPE_THETA)
    config._attn_implementation = "eager"
    torch.set_default_dtype(torch.float64)
    model = transformers.Qwen3ForCausalLM(config).to(torch.float64).eval()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    tensors = {}
    for shard in sorted(set(index["weight_map"].values())):
        tensors |= load_file(folder / shard)
    missing, unexpected = model.load_state_dict({k: v.double() for k, v in tensors.items()}, strict=False)
    assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


def exact_logits(model, tokens):
    """Logits after each token. (The library takes norms' means and rotary angles in float32 in any case.)"""
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0].double()


def describe(model, prompt):
    logits = exact_logits(model, prompt)
    log_probabilities = torch.log_softmax(logits, dim=-1)
    top = torch.topk(log_probabilities[-1], 8)
    nll = [-log_probabilities[i, token].item() for i, token in enumerate(prompt[1:])]
    tokens, greedy, margins = list(prompt), [], []
    for _ in range(GREEDY_STEPS):
        best = torch.topk(exact_logits(model, tokens)[-1], 2)
        greedy.append(int(best.indices[0]))
        margins.append(round(float(best.values[0] - best.values[1]), 5))
        tokens.append(greedy[-1])
    return {
        "prompt": prompt,
        "next_top8": [[int(id), round(float(value), 6)] for id, value in zip(top.indices, top.values)],
        "prompt_nll": sum(nll) / len(nll) if nll else None,
        "greedy": greedy,
        "greedy_margin": margins,
    }


def random_prompt(length, generator):
    return torch.randint(3, CONFIG["vocab_size"], (length,), generator=generator).tolist()


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(exist_ok=True)
    write_checkpoint(folder)
    model = load_in_float64(folder)
    generator = torch.Generator().manual_seed(21)
    prompts = [random_prompt(length, generator) for length in PROMPT_LENGTHS]
    expected = {
        "source": f"transformers {transformers.__version__}, float64, made by make_qwen3.py",
        "next_top8": "[token, log-probability] of the next token after the prompt",
        "prompt_nll": "mean negative log-likelihood (nats) of prompt[1:]",
        "greedy_margin": "logit gap between best and second at each greedy step: a step with a small gap may "
        "rightly differ in float16",
        "cases": [describe(model, prompt) for prompt in prompts],
    }
    (folder / "expected.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
