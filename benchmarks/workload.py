"""Merge workloads made from a seed: a Llama-shaped base and experts, the same bytes everywhere.

An expert is base + delta with heavy tails; the spread differs from tensor to tensor, half of each
delta is shared by all experts, and 30 % of the embedding rows did not move: so a ranking over the
whole model selects other entries than one per tensor, and exact ties occur.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

# With no architecture that mergekit knows, it takes the tensors from the files.
CONFIG = {"model_type": "llama", "architectures": ["Benchmark"]}
Shape = tuple[int, ...]
Array = np.ndarray


@dataclass(frozen=True)
class Preset:
    """The sizes of a Llama-shaped model."""

    hidden: int
    inner: int
    layers: int
    vocabulary: int
    dtype: str = "float32"


PRESETS = {
    "tiny": Preset(16, 32, 2, 48),
    "tiny-bf16": Preset(16, 32, 2, 48, "bfloat16"),
    "97m": Preset(768, 2048, 12, 8192),
    "0.5b": Preset(1024, 4096, 24, 32_000, "bfloat16"),  # 469 million
}


def tensor_shapes(preset: Preset) -> Iterator[tuple[str, Shape]]:
    """Names and shapes of all tensors."""
    hidden, inner = preset.hidden, preset.inner
    yield "model.embed_tokens.weight", (preset.vocabulary, hidden)
    for layer in range(preset.layers):
        prefix = f"model.layers.{layer}."
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}mlp.down_proj.weight", (hidden, inner)
        yield f"{prefix}mlp.gate_proj.weight", (inner, hidden)
        yield f"{prefix}mlp.up_proj.weight", (inner, hidden)
        for name in ("k", "o", "q", "v"):
            yield f"{prefix}self_attn.{name}_proj.weight", (hidden, hidden)
    yield "model.norm.weight", (hidden,)
    yield "lm_head.weight", (preset.vocabulary, hidden)


def make_workload(folder: Path, preset: Preset, experts: int, seed: int = 20240601) -> list[Path]:
    """Write base and experts below `folder`, once; the folders, base first."""
    names = ["base", *(f"expert{number}" for number in range(experts))]
    for number, name in enumerate(names):
        path = folder / name
        if not (path / "model.safetensors").is_file():
            path.mkdir(parents=True, exist_ok=True)
            (path / "config.json").write_text(json.dumps(CONFIG))
            dtype = ml_dtypes.bfloat16 if preset.dtype == "bfloat16" else np.float32
            values = {
                tensor: _values(seed, number, tensor, shape).astype(dtype)
                for tensor, shape in tensor_shapes(preset)
            }
            save_file(values, path / "model.safetensors", metadata={"format": "pt"})
    return [folder / name for name in names]


def _values(seed: int, number: int, name: str, shape: Shape) -> Array:
    draw = _source(seed, name)
    base = draw(0).standard_normal(shape, np.float32) * np.float32(0.02)
    if number == 0:
        return base
    spread = 1e-3 * float(np.exp(draw(1).uniform(np.log(0.5), np.log(2))))
    delta = _heavy(draw(100 + number), shape) * 0.75 + _heavy(draw(2), shape) * 0.5
    if "embed" in name:
        delta[draw(1000 + number).random(shape[0]) < 0.3] = 0
    return base + (spread * delta).astype(np.float32)


def _heavy(draw: np.random.Generator, shape: Shape) -> Array:
    return draw.standard_normal(shape, np.float32) * np.exp(
        0.8 * draw.standard_normal(shape, np.float32)
    )


def _source(seed: int, name: str) -> Callable[[int], np.random.Generator]:
    address = [seed, *name.encode()]
    return lambda stream: np.random.Generator(np.random.SFC64([*address, stream]))
