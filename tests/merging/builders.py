"""Write small checkpoints, and build merge plans for them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.array_blocks import BLOCK_SIZE
from hubmerge.weights.checkpoint import open_checkpoint

Tensors = dict[str, np.ndarray]


def draw_large(dtype: np.dtype[np.generic], count: int = 3) -> list[Tensors]:
    """A base and experts: a tensor of several parts, a small one, one that nobody changes."""
    random = np.random.default_rng(0)
    base = {
        "large": random.normal(size=3 * BLOCK_SIZE + 5), "matrix": random.normal(size=(170, 400)),
        "small": random.normal(size=7), "same": random.normal(size=BLOCK_SIZE + 1),
        "empty": np.zeros((0, 4)),
    }  # fmt: skip
    base["large"][BLOCK_SIZE : BLOCK_SIZE + 3] = -0.0
    base["same"][:2] = -0.0
    experts = []
    for _ in range(count):
        expert = {name: values + 0.1 * random.normal(size=values.shape) ** 3
                  for name, values in base.items()}  # fmt: skip
        expert["same"] = base["same"]
        expert["large"][BLOCK_SIZE : 2 * BLOCK_SIZE] = base["large"][BLOCK_SIZE : 2 * BLOCK_SIZE]
        experts.append(expert)
    counter = np.arange(3)
    return [
        {**{name: values.astype(dtype) for name, values in model.items()}, "counter": counter}
        for model in (base, *experts)
    ]


def write_models(root: Path, base: Tensors, *experts: Tensors) -> Callable[..., MergePlan]:
    """Save a base and its experts below root; return a function (method, **options) -> plan."""
    for name, tensors in {"base": base, **{f"e{i}": e for i, e in enumerate(experts)}}.items():
        (root / name).mkdir(parents=True)
        save_file(tensors, root / name / "model.safetensors")
        (root / name / "config.json").write_text(f'{{"of": "{name}"}}')

    def plan(name: str, weights: Any = None, **options: Any) -> MergePlan:
        chosen = method(name)
        fixed = {key: options.pop(key) for key in ("dtype", "allow_nonfinite") if key in options}
        return MergePlan(
            base=open_checkpoint(root / "base"),
            experts=tuple(
                Expert(
                    open_checkpoint(root / f"e{i}"),
                    sha=hashlib.sha1(f"e{i}".encode()).hexdigest(),
                    weight=weights[i] if weights else 1.0,
                    label=f"e{i}",
                )
                for i in range(len(experts))
            ),
            method=chosen,
            params=parse_params(chosen, options),
            **fixed,
        )

    return plan
