"""Trained heads of experts, and notes on experts that are merged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.weights.header import safe_name
from hubmerge.weights.layout import regular_file


def find_heads(experts: Sequence[OpenedModel]) -> dict[str, Path]:
    """The trained heads of all experts, file name -> file; a merge contains the heads of all.

    Raises CheckpointError if two experts have different heads for one task.
    """
    heads: dict[str, Path] = {}
    for expert in experts:
        for path in sorted(expert.folder.glob("head-*.safetensors")):
            file = regular_file(expert.folder, path.name)
            first = heads.setdefault(path.name, file)
            if hash_file(first) != hash_file(file):
                task = path.name.removeprefix("head-").removesuffix(".safetensors")
                raise CheckpointError(
                    f"Two experts have different trained heads for task {safe_name(task)}.",
                    "Merge one expert of each task, or train with `head: label`.",
                )
    return heads


def copy_heads(heads: Mapping[str, Path], folder: Path) -> None:
    """Copy heads into the folder of a merged encoder."""
    for name, file in heads.items():
        shutil.copyfile(file, folder / name)


def common_task_kind(experts: Sequence[OpenedModel]) -> str:
    """The kind of the experts' tasks, or "several" if they differ."""
    kinds = {m.manifest.task_kind if m.manifest else "image" for m in experts}
    return kinds.pop() if len(kinds) == 1 else "several"


def expert_notes(experts: Sequence[OpenedModel]) -> Iterator[str]:
    """Notes on experts that were trained in different ways; part of a merge's manifest."""
    anneals = [m.manifest.training.get("anneal") if m.manifest else None for m in experts]
    annealed = [
        f"{model.revision.label} ({safe_name(str(anneal))})"
        for model, anneal in zip(experts, anneals, strict=True)
        if anneal is not None
    ]
    if len({str(anneal) for anneal in anneals if anneal is not None}) > 1:
        yield f"The experts were annealed in different ways: {', '.join(annealed)}."
    adapters = [model.revision.label for model in experts if model.checkpoint.kind == "lora"]
    full = [model.revision.label for model in experts if model.checkpoint.kind == "full"]
    if adapters and full:
        yield (
            f"Adapters ({', '.join(adapters)}) are merged with experts of which every weight was "
            f"trained ({', '.join(full)})."
        )
