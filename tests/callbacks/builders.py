"""Tiny trainers, copies of the weights that they had at each step, and what a Hub has of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from huggingface_hub import HfApi
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from hubmerge.manifest import Manifest, parse_manifest

STEPS = (1, 2, 4, 8, 16)
ROWS = 32
QUIET: dict[str, Any] = {
    "use_cpu": True, "report_to": [], "disable_tqdm": True, "save_strategy": "no",
    "logging_steps": 4, "learning_rate": 5e-3,
}  # fmt: skip


class KeepCopies(TrainerCallback):
    """Keeps the bytes of the weights of every step, as the model's library saves them."""

    def __init__(self) -> None:
        self.weights: dict[int, dict[str, str]] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, **objects: Any) -> None:
        self.weights[state.global_step] = saved_weights(objects["model"])


def saved_weights(model: Any) -> dict[str, str]:
    """The SHA-256 of each file of weights that a model saves."""
    with TemporaryDirectory() as name:
        model.save_pretrained(name)
        return {
            path.relative_to(name).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in Path(name).rglob("*.safetensors")
        }


def load(base: Path) -> Any:
    """The model in a folder, ready to be trained."""
    return AutoModelForCausalLM.from_pretrained(base)


def token_rows(count: int = ROWS, vocabulary: int = 64) -> list[dict[str, Any]]:
    """Rows of 8 tokens, the same ones every time."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(5, vocabulary, (count, 8), generator=generator)
    return [{"input_ids": row, "labels": row} for row in rows]


def accuracy_of(predictions: Any) -> dict[str, float]:
    logits, labels = predictions
    return {"accuracy": float(np.mean(np.argmax(logits, -1)[:, :-1] == labels[:, 1:]))}


def make_trainer(
    model: Any, out: Path, callbacks: Sequence[TrainerCallback], **options: Any
) -> Trainer:
    """A Trainer of 16 steps; `options` are training arguments, or `tokenizer`."""
    tokenizer = options.pop("tokenizer", None)
    arguments = QUIET | {"max_steps": 16, "per_device_train_batch_size": 2} | options
    return Trainer(
        model,
        TrainingArguments(str(out), **arguments),
        train_dataset=token_rows(),
        eval_dataset=token_rows(4),
        data_collator=default_data_collator,
        compute_metrics=accuracy_of,
        processing_class=AutoTokenizer.from_pretrained(tokenizer) if tokenizer else None,
        callbacks=list(callbacks),
    )


def tags(api: HfApi, repo: str) -> dict[str, str]:
    """The tags of a repository and their commits."""
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}


def published_weights(api: HfApi, repo: str) -> dict[int, dict[str, str]]:
    """The SHA-256 of each file of weights of each tagged step."""
    weights: dict[int, dict[str, str]] = {}
    for tag in tags(api, repo):
        files = api.list_repo_tree(repo, revision=tag, recursive=True)
        found = {f.path: f.lfs.sha256 for f in files if f.path.endswith(".safetensors")}  # type: ignore[union-attr]
        weights[int(tag.removeprefix("step"))] = found
    return dict(sorted(weights.items()))


def published_manifest(api: HfApi, repo: str, step: int, folder: Path) -> Manifest:
    """The manifest of a tagged step."""
    path = api.hf_hub_download(repo, "hubmerge.json", revision=f"step{step}", local_dir=folder)
    return parse_manifest(Path(path).read_bytes(), repo)
