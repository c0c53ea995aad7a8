"""Write a small mixture of experts: two experts of one linear layer [3, 2], and a router."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from hubmerge.weights.moe_config import (
    EXPERTS_FOLDER,
    MOE_CONFIG,
    ROUTER_WEIGHTS,
    MoeConfig,
    MoeExpert,
)
from tests.weights.adapters import save_adapter

EXPERT_NAMES = ("mnist", "hebrew")


def write_moe(
    folder: Path,
    names: Sequence[str] = EXPERT_NAMES,
    base: str = "demo/base",
    seed: int = 0,
    digest: str = "0" * 64,
) -> Path:
    """Write a mixture of these experts; `seed` determines its values, `digest` its base_digest."""
    rng = np.random.default_rng(seed)
    for name in names:
        save_adapter(
            folder / EXPERTS_FOLDER / name,
            {
                "fc.lora_A.weight": rng.normal(size=(1, 2)).astype(np.float32),
                "fc.lora_B.weight": rng.normal(size=(3, 1)).astype(np.float32),
            },
            base_model_name_or_path=base,
        )
    rows = rng.normal(size=(len(names), 2)).astype(np.float32)
    save_file({"fc.router.weight": rows}, folder / ROUTER_WEIGHTS)
    config = MoeConfig(
        base_model=base,
        base_revision=None,
        base_digest=digest,
        layout="transformers",
        experts=tuple(MoeExpert(name) for name in names),
        top_k=1,
        modules=("fc",),
    )
    (folder / MOE_CONFIG).write_bytes(config.to_bytes())
    return folder
