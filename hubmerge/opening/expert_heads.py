"""Trained heads of experts, and notes on experts that are merged."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from hubmerge.errors import CheckpointError, UsageError, raise_together
from hubmerge.file_digests import file_digest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.refs import check_label
from hubmerge.weights.header import safe_name
from hubmerge.weights.kept_heads import KeptHead, kept_head, kept_head_over
from hubmerge.weights.layout import regular_file
from hubmerge.weights.task_vector import TaskVector
from hubmerge.weights.token_rows import AlignedTokens


def find_heads(experts: Sequence[OpenedModel]) -> dict[str, Path]:
    """The trained heads of all experts, file name -> file; a merge contains the heads of all.

    Raises CheckpointError for every task for which two experts have different heads.
    """
    heads: dict[str, Path] = {}
    different: set[str] = set()
    for expert in experts:
        for path in sorted(expert.folder.glob("head-*.safetensors")):
            file = regular_file(expert.folder, path.name)
            first = heads.setdefault(path.name, file)
            if first != file and file_digest(first) != file_digest(file):
                different.add(path.name.removeprefix("head-").removesuffix(".safetensors"))
    raise_together(
        CheckpointError,
        [
            f"Two experts have different trained heads for task {safe_name(task)}."
            for task in sorted(different)
        ],
        "Merge one expert of each task, or train with `head: label`.",
    )
    return heads


def find_kept_heads(
    experts: Sequence[OpenedModel], vectors: Sequence[TaskVector], tokens: AlignedTokens
) -> dict[str, KeptHead]:
    """The heads of experts that are not merged, by the name of their file.

    The name is that of the expert's task, or of its repository or folder if no task is known.
    `tokens` are those of the merge. Raises UsageError if two experts would have the same name.
    """
    heads: dict[str, KeptHead] = {}
    problems = []
    for model, vector in zip(experts, vectors, strict=True):
        if tokens.rows is None:
            head = kept_head(vector)
        else:
            head = kept_head_over(vector, tokens.rows, tokens.size)
        if not head.tensors:
            continue
        file = f"head-{_head_name(model)}.safetensors"
        if file in heads:
            problems.append(f"Two experts would have the head {file}.")
        heads[file] = head
    raise_together(UsageError, problems, "Rename a folder, or merge one expert of each task.")
    return heads


def _head_name(model: OpenedModel) -> str:
    ref = model.revision.ref
    if model.manifest and model.manifest.task_name:
        name = model.manifest.task_name
    elif ref.path is not None:
        name = ref.path.resolve().name
    else:
        name = str(ref.repo_id).rpartition("/")[2]
    return check_label(name, "task")


def write_heads(heads: Mapping[str, Path] | Mapping[str, Path | KeptHead], folder: Path) -> None:
    """Write heads into the folder of a merged encoder."""
    for name, head in heads.items():
        if isinstance(head, KeptHead):
            head.write(folder / name)
        else:
            shutil.copyfile(head, folder / name)


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
