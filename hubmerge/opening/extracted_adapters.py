"""Turn full experts into LoRA adapters: a low-rank approximation of what training changed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from transformers.pytorch_utils import Conv1D

from hubmerge.errors import Busy, CheckpointError, UsageError, raise_together
from hubmerge.models.layers import linear_layers
from hubmerge.models.loading import Model, default_kind, load_model
from hubmerge.opening.expert_heads import find_heads, write_heads
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.specs import Kind
from hubmerge.weights.atomic_folder import atomic_folder
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.extraction import extract
from hubmerge.weights.full_match import match_full
from hubmerge.weights.lora_file import AdapterFields, write_adapter
from hubmerge.weights.lora_modules import LoraModule, module_path
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.task_vector import TaskVector

_OPTIONS = MatchOptions(heads="drop")
# A fused attention counts as one layer and has two matrices.
_MATRIX_SUFFIXES = ("weight", "in_proj_weight", "out_proj.weight")


def extract_adapters(
    experts: Sequence[OpenedModel], base: OpenedModel, rank: int, extracted: Path
) -> tuple[tuple[OpenedModel, ...], tuple[str, ...]]:
    """Replace every full expert by a LoRA of that rank; returns experts and notes.

    A LoRA is stored in a subfolder of `extracted` named by the digests of base and expert. Raises
    UsageError if all experts are adapters already, CheckpointError for weights that do not fit the
    base. The head of an expert's own task is left out, with a note.
    """
    full = [expert for expert in experts if expert.checkpoint.kind == "full"]
    if not full:
        raise UsageError(
            "--extract-rank is for full experts, and all of these are adapters.", "Leave it out."
        )
    _check_full(full, base)
    kind = full[0].manifest.task_kind if full[0].manifest else default_kind(base.folder)
    model = load_model(base.folder, cast(Kind, kind))
    notes, adapters = [], []
    for expert in experts:
        if expert.checkpoint.kind == "full":
            folder, note = _extract_adapter(expert, base, model, rank, extracted)
            match = _task_vector(expert, base).full
            notes += [*match.notes(expert.revision.label), note]
            expert = dataclasses.replace(expert, checkpoint=open_checkpoint(folder))
        adapters.append(expert)
    return tuple(adapters), tuple(notes)


def _check_full(experts: Sequence[OpenedModel], base: OpenedModel) -> None:
    """Raise CheckpointError for everything in which full experts do not fit the base."""
    problems = [
        problem
        for expert in experts
        for problem in match_full(
            base.checkpoint, expert.checkpoint, f"Expert {expert.revision.label}", _OPTIONS
        ).problems
    ]
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))


def _task_vector(expert: OpenedModel, base: OpenedModel) -> TaskVector:
    return TaskVector(base.checkpoint, expert.checkpoint, _OPTIONS)


def _extract_adapter(
    expert: OpenedModel, base: OpenedModel, model: Model, rank: int, extracted: Path
) -> tuple[Path, str]:
    extraction = extract(_task_vector(expert, base), _lora_modules(model, base), rank)
    folder = extracted / f"{base.digest[:16]}-{expert.digest[:16]}-rank{rank}"
    while not folder.exists():
        try:
            with atomic_folder(folder) as partial:
                fields = AdapterFields(
                    base.revision.ref.repo_id or str(base.folder), base.revision.sha or None
                )
                write_adapter(partial, extraction.factors, rank, fields)
                write_heads(find_heads([expert]), partial)
        except Busy:
            time.sleep(0.1)  # another process of this run is writing it
    # The note is part of the manifest of a mixture of experts.
    kept, attainable = 100 * extraction.shares.kept, 100 * extraction.shares.attainable
    return folder, (
        f"{expert.revision.label} as a LoRA of rank {rank} keeps {kept:.1f} % of its "
        f"squared change; without a limit on the rank it were {attainable:.1f} %."
    )


def _lora_modules(model: Model, base: OpenedModel) -> list[LoraModule]:
    """The matrices of the model's linear layers, by the names by which peft finds the layers."""
    layers = linear_layers(model)
    transposed = isinstance(model.module.get_submodule(layers[0]), Conv1D)
    file_names = {module: file for file, module in model.names.module_names.items()}
    matrices = [f"{layer}.{suffix}" for layer in layers for suffix in _MATRIX_SUFFIXES]
    return [
        LoraModule(
            module_path(name),
            file_names[name],
            base.checkpoint.tensor(file_names[name]).shape,
            inputs_first=transposed,
        )
        for name in matrices
        if name in file_names
    ]
