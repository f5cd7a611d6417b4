#!/usr/bin/env python3
"""Writes a model that says the same as another and takes several times as long.

    python3 tests/recordings/slower.py models/nano /tmp/nano-30 30
    redstart bench typing --compare --model /tmp/nano-30

What joining, working ahead and pacing are worth shows only with a model that is slower than a key, and models that
are have weights of gigabytes. Here each layer is followed by copies whose last projections are zero: they compute
as much as the original and add nothing. For Qwen2 checkpoints quantized by AWQ, in one file."""

import json
import re
import shutil
import struct
import sys
from pathlib import Path


def read(path):
    data = path.read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    bodies = data[8 + length :]
    return {name: (info["dtype"], info["shape"], bodies[slice(*info["data_offsets"])]) for name, info in header.items()}


def write(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape, body) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(body)]}
        at += len(body)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.writelines(body for _, _, body in tensors.values())


def slower(tensors, times):
    result = {}
    for name, (dtype, shape, body) in tensors.items():
        layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", name)
        if not layer:
            result[name] = (dtype, shape, body)
            continue
        silent = layer[2] in ("self_attn.o_proj.scales", "mlp.down_proj.scales")
        for copy in range(times):
            number = int(layer[1]) * times + copy
            result[f"model.layers.{number}.{layer[2]}"] = (dtype, shape, bytes(len(body)) if silent and copy else body)
    return result


def main():
    source, target, times = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    target.mkdir(parents=True, exist_ok=True)
    for file in source.glob("*.json"):
        shutil.copy(file, target)
    config = json.loads((source / "config.json").read_text())
    config["num_hidden_layers"] *= times
    (target / "config.json").write_text(json.dumps(config))
    write(target / "model.safetensors", slower(read(source / "model.safetensors"), times))


if __name__ == "__main__":
    main()
