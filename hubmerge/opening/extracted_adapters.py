"""Full experts as adapters: what their training changed, at a rank that a mixture can hold."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from transformers.pytorch_utils import Conv1D

from hubmerge.errors import Busy, UsageError
from hubmerge.models.layers import linear_layers
from hubmerge.models.loading import Model, open_model
from hubmerge.opening.expert_heads import copy_heads, heads_of
from hubmerge.opening.opened_model import Opened
from hubmerge.specs import Kind
from hubmerge.weights.atomic_folder import whole_folder
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.extraction import Extraction, extract, module_of, write_adapter
from hubmerge.weights.task_vector import TaskVector

# Of a fused attention, which counts as one layer, there are two matrices.
_ENDS = ("weight", "in_proj_weight", "out_proj.weight")


def as_adapters(
    experts: Sequence[Opened], base: Opened, rank: int, beside: Path
) -> tuple[tuple[Opened, ...], tuple[str, ...]]:
    """The experts with every full one as a LoRA of that rank, and a note on what each loses.

    Each is kept in a folder of `beside` named by its digest and the base's. Raises UsageError where
    all are adapters already, CheckpointError for what does not fit the base.
    """
    whole = [one for one in experts if one.checkpoint.kind == "full"]
    if not whole:
        raise UsageError(
            "--extract-rank is for full experts, and all of these are adapters.", "Leave it out."
        )
    kind = whole[0].manifest.task_kind if whole[0].manifest else "image"
    model = open_model(base.folder, cast(Kind, kind))
    notes, made = [], []
    for one in experts:
        if one.checkpoint.kind == "full":
            folder, note = _adapter(one, base, model, rank, beside)
            notes.append(note)
            one = dataclasses.replace(one, checkpoint=open_checkpoint(folder))
        made.append(one)
    return tuple(made), tuple(notes)


def _adapter(
    expert: Opened, base: Opened, model: Model, rank: int, beside: Path
) -> tuple[Path, str]:
    layers = linear_layers(model)
    vector = TaskVector(base.checkpoint, expert.checkpoint)
    turned = isinstance(model.module.get_submodule(layers[0]), Conv1D)
    found = _as_opened(extract(vector, _matrices(model, layers), rank, turned), model)
    folder = beside / f"{base.digest[:16]}-{expert.digest[:16]}-rank{rank}"
    while not folder.exists():
        try:
            with whole_folder(folder) as partial:
                name = base.revision.ref.repo_id or str(base.folder)
                write_adapter(partial, found, name, base.revision.sha or None)
                copy_heads(heads_of([expert]), partial)
        except Busy:
            time.sleep(0.1)  # another process of this run is at it
    return folder, (
        f"{expert.revision.label} as a LoRA of rank {rank} keeps {100 * found.kept:.1f} % of its "
        f"squared change; without a limit on the rank it were {100 * found.reached:.1f} %."
    )


def _as_opened(extraction: Extraction, model: Model) -> Extraction:
    """The same under the names that layers have in the opened model, by which peft finds them."""
    renames = {module_of(theirs): module_of(ours) for theirs, ours in model.names.inside.items()}
    factors = {renames[path]: pair for path, pair in extraction.factors.items()}
    return dataclasses.replace(extraction, factors=factors)


def _matrices(model: Model, layers: Sequence[str]) -> list[str]:
    """The matrices of these layers, as the base's files call them."""
    files = {ours: theirs for theirs, ours in model.names.inside.items()}
    wanted = [f"{layer}.{end}" for layer in layers for end in _ENDS]
    return [files[name] for name in wanted if name in files]
