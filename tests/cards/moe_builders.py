"""Builders of a mixture of two experts with four layers, its routing and its scores."""

from __future__ import annotations

from typing import Any

from hubmerge.manifest import Manifest, files_digest, recipe_of_last_steps
from hubmerge.merging.registry import METHODS
from hubmerge.recipe_ids import recipe_id
from hubmerge.routing import Flops, MoeCost, Parameters, Routing
from hubmerge.scores import Score
from hubmerge.training_curve import ValidationPoint
from tests.cards.builders import BASE, TASKS, files, score, source

EXPERTS = (source("cats@1", 4), source("dogs@1", 2))
CURVE = (
    ValidationPoint(0, None, 0.5, 400, 0.0, {"cats": 0.6, "dogs": 0.4}),
    ValidationPoint(300, 0.25, 0.75, 400, 2e-4, {"cats": 0.8, "dogs": 0.7}),
)
PARAMS = {
    "top_k": 2, "router": "arrow", "signed": False, "temperature": 1.0, "train_steps": 300,
    "lr": 2e-4, "schedule": "cosine", "warmup_steps": 30, "batch": 24, "sampling": "uniform",
    "balance": 0.0, "weight_decay": 0.1, "seed": 0, "tasks": list(TASKS),
}  # fmt: skip
FILES = {
    "moe_config.json": "2" * 64,
    "router.safetensors": "3" * 64,
    "experts/cats/adapter_config.json": "4" * 64,
    "experts/cats/adapter_model.safetensors": "5" * 64,
}


def moe_manifest(**changes: Any) -> Manifest:
    labels = " ".join(expert.label for expert in EXPERTS)
    fields = {
        "kind": "moe", "method": "moe", "base": BASE, "experts": EXPERTS, "params": PARAMS,
        "step": 300, "last_step": 300, "validation": CURVE, "run": "7" * 64,
        "training": {"base_layout": "transformers", "data_revisions": {"cats": "c" * 40}},
        "layout": "hubmerge-moe", "command": f"hubmerge moerge {labels} --train-steps 300",
        "versions": {"hubmerge": "0.4.0"}, "files": FILES,
    }  # fmt: skip
    return Manifest(**{**fields, **changes})


def routing(**changes: Any) -> Routing:
    """The own expert gets 60, 70, 80 and 90 % for cats, and 55, 50, 50 and 45 % for dogs."""
    fields: dict[str, Any] = {
        "split": "validation",
        "tasks": TASKS,
        "experts": ("cats", "dogs"),
        "layers": ("blocks.0.attn", "blocks.0.mlp", "blocks.1.attn", "blocks.1.mlp"),
        "share": (
            ((0.6, 0.4), (0.7, 0.3), (0.8, 0.2), (0.9, 0.1)),
            ((0.45, 0.55), (0.5, 0.5), (0.5, 0.5), (0.55, 0.45)),
        ),
        "cost": MoeCost(Parameters(1000, 1000, 1250, 250), Flops(800, 800, 880)),
    }
    return Routing(**{**fields, **changes})


def plain_recipe(method: str, **params: float) -> str:
    defaults = METHODS[method].params().model_dump()
    return recipe_id(BASE, EXPERTS, method, {**defaults, **params})


def moe_scores() -> list[Score]:
    """Means: the mixture 85, that from last steps 80, two TIES merges 70 and 72, the base 45."""
    models = {
        files_digest(FILES): (moe_manifest().recipe, 0.90, 0.80),
        files_digest(files("last")): (recipe_of_last_steps(moe_manifest()), 0.85, 0.75),
        files_digest(files("ties")): (plain_recipe("ties"), 0.72, 0.68),
        files_digest(files("tuned")): (plain_recipe("ties", scale=0.6, density=0.1), 0.74, 0.70),
        BASE.digest: (None, 0.50, 0.40),
    }
    upcycled = [
        score(digest, task, value, recipe)
        for digest, (recipe, *values) in models.items()
        for task, value in zip(TASKS, values, strict=True)
    ]
    alone = zip(EXPERTS, TASKS, (0.92, 0.84), strict=True)
    return upcycled + [score(expert.digest, task, value) for expert, task, value in alone]
