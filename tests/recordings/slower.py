#!/usr/bin/env python3
"""Writes a model that says the same as another and takes several times as long.

    python3 tests/recordings/slower.py models/nano DIR 30
    redstart bench typing --compare --model DIR

What joining, working ahead and pacing are worth shows only with a model that is slower than a key, and models that
are have weights of gigabytes. Here each layer is followed by copies whose last projections are zero: they compute
as much as the original and add nothing. For Qwen2 checkpoints quantized by AWQ, in one file."""

import argparse
import json
import re
import shutil
import struct
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
    parser = argparse.ArgumentParser(description="Writes a model that says the same and takes several times as long.")
    parser.add_argument("source", type=Path, help="a model directory, such as models/nano")
    parser.add_argument("target", type=Path, help="the directory to write")
    parser.add_argument("times", type=int, help="how many times the layers, at least 1")
    args = parser.parse_args()
    weights = args.source / "model.safetensors"
    if args.times < 1:
        parser.error("times is at least 1")
    if args.target.resolve() == args.source.resolve():
        parser.error("the target is the source")
    if not weights.is_file():
        parser.error(f"there is no {weights}; a checkpoint in several files is not supported")
    config = json.loads((args.source / "config.json").read_text())
    if config.get("quantization_config", {}).get("quant_method") != "awq":
        parser.error(f"{args.source} is not quantized by AWQ")
    args.target.mkdir(parents=True, exist_ok=True)
    for file in args.source.glob("*.json"):
        shutil.copy(file, args.target)
    config["num_hidden_layers"] *= args.times
    (args.target / "config.json").write_text(json.dumps(config))
    write(args.target / "model.safetensors", slower(read(weights), args.times))


if __name__ == "__main__":
    main()
