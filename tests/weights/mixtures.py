"""A small mixture as a folder: two experts of one linear layer [3, 2], and a router over them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, MoeConfig, MoeExpert
from tests.weights.adapters import put_adapter

EXPERTS_OF = ("mnist", "hebrew")


def put_mixture(
    folder: Path,
    names: Sequence[str] = EXPERTS_OF,
    base: str = "demo/base",
    seed: int = 0,
    digest: str = "0" * 64,
) -> Path:
    """The folder of a mixture of these experts; `seed` decides every number in it, and
    `digest` is said to be the base's.
    """
    rng = np.random.default_rng(seed)
    for name in names:
        put_adapter(
            folder / EXPERTS / name,
            {
                "fc.lora_A.weight": rng.normal(size=(1, 2)).astype(np.float32),
                "fc.lora_B.weight": rng.normal(size=(3, 1)).astype(np.float32),
            },
            base_model_name_or_path=base,
        )
    rows = rng.normal(size=(len(names), 2)).astype(np.float32)
    save_file({"fc.router.weight": rows}, folder / ROUTER)
    config = MoeConfig(
        base_model=base,
        base_revision=None,
        base_digest=digest,
        layout="transformers",
        experts=tuple(MoeExpert(name) for name in names),
        top_k=1,
        modules=("fc",),
    )
    (folder / CONFIG).write_bytes(config.to_bytes())
    return folder
