"""What else experts bring into a merge: their trained heads, and what one should know of them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError
from hubmerge.opening.opened_model import Opened
from hubmerge.weights.header import shown
from hubmerge.weights.layout import plain_file


def heads_of(experts: Sequence[Opened]) -> dict[str, Path]:
    """The trained heads of all experts, file name -> file: tasks share an encoder and no head.

    Raises CheckpointError where two experts bring different heads for one task.
    """
    heads: dict[str, Path] = {}
    for expert in experts:
        for found in sorted(expert.folder.glob("head-*.safetensors")):
            file = plain_file(expert.folder, found.name)
            other = heads.setdefault(found.name, file)
            if hash_file(other) != hash_file(file):
                task = found.name.removeprefix("head-").removesuffix(".safetensors")
                raise CheckpointError(
                    f"Two experts bring different trained heads for task {shown(task)}.",
                    "Merge one expert of each task, or train with `head: label`.",
                )
    return heads


def copy_heads(heads: Mapping[str, Path], folder: Path) -> None:
    """Put heads beside the merged encoder."""
    for name, file in heads.items():
        shutil.copyfile(file, folder / name)


def kind_of_tasks(experts: Sequence[Opened]) -> str:
    """The kind of the experts' tasks, where they have one in common."""
    kinds = {one.manifest.task_kind if one.manifest else "image" for one in experts}
    return kinds.pop() if len(kinds) == 1 else "several"


def notes_on(experts: Sequence[Opened]) -> Iterator[str]:
    """What one should know of experts that are merged all the same."""
    said = [one.manifest.training.get("anneal") if one.manifest else None for one in experts]
    told = [
        f"{one.revision.label} ({shown(str(anneal))})"
        for one, anneal in zip(experts, said, strict=True)
        if anneal is not None
    ]
    if len({str(anneal) for anneal in said if anneal is not None}) > 1:
        yield f"The experts were annealed in different ways: {', '.join(told)}."
    adapters = [one.revision.label for one in experts if one.checkpoint.kind == "lora"]
    whole = [one.revision.label for one in experts if one.checkpoint.kind == "full"]
    if adapters and whole:
        yield (
            f"Adapters ({', '.join(adapters)}) are merged with experts of which every weight was "
            f"trained ({', '.join(whole)})."
        )
