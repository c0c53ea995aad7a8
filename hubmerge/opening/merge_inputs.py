"""The opened inputs of a merge, by name or from a lock, and the checks on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pydantic import BaseModel

from hubmerge.cards.licence import licence_conflicts
from hubmerge.errors import (
    HubmergeError,
    IntegrityError,
    UsageError,
    join_with_or,
    raise_together,
)
from hubmerge.merging.registry import Method
from hubmerge.merging.tensor_params import UNIFORM, TensorSettings
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.refs import ModelRef
from hubmerge.source import Source
from hubmerge.weights.header import safe_name
from hubmerge.weights.layer_stack import LayerPieces
from hubmerge.weights.match_options import DEFAULT_OPTIONS, MatchOptions
from hubmerge.weights.moe_config import EXPERTS_FOLDER


@dataclass(frozen=True)
class MergeInputs:
    """Method, parameters, base and experts, opened.

    `base_source` and `sources` describe base and experts for the manifest, with the options of each
    expert. `lock` is the lock that they come from, if any, and `options` what it decides; `notes`
    are sentences for the user. `failures` are those of experts that are left out here, to be raised
    with what is wrong with the others. `settings` are parameters that differ between tensors or
    experts. `layers` are those that base and experts give, if they do not give all, in order.
    """

    method: Method
    params: BaseModel
    base: OpenedModel
    base_source: Source
    experts: tuple[OpenedModel, ...]
    sources: tuple[Source, ...]
    lock: bytes | None = None
    options: MatchOptions = DEFAULT_OPTIONS
    notes: tuple[str, ...] = ()
    failures: tuple[HubmergeError, ...] = ()
    settings: TensorSettings = UNIFORM
    layers: LayerPieces | None = None


def check_no_moe(pinned: Sequence[PinnedModel]) -> None:
    """Raise UsageError for every mixture of experts among the models to merge."""
    problems = [
        f"{model.revision.label} is a mixture of experts, not an expert: name "
        f"{join_with_or(_expert_refs_in(model))}."
        for model in pinned
        if model.is_moe
    ]
    raise_together(UsageError, problems, "The experts in a mixture are LoRA adapters.")


def _expert_refs_in(moe: PinnedModel) -> list[str]:
    """References to the experts in a mixture, as the user would type them."""
    ref, files = moe.revision.ref, moe.manifest.files if moe.manifest else ()
    paths = [name.split("/") for name in files if name.startswith(f"{EXPERTS_FOLDER}/")]
    folders = sorted({f"{EXPERTS_FOLDER}/{path[1]}" for path in paths}) or [
        f"{EXPERTS_FOLDER}/NAME"
    ]
    return [safe_name(str(_subfolder_ref(ref, folder))) for folder in folders]


def _subfolder_ref(ref: ModelRef, folder: str) -> ModelRef:
    if ref.path is not None:
        return dataclasses.replace(ref, path=ref.path / folder)
    return dataclasses.replace(ref, subfolder="/".join(filter(None, (ref.subfolder, folder))))


def check_licences(models: Iterable[OpenedModel], stated: str | None) -> None:
    """Raise UsageError if the licences of base and experts conflict, unless one is stated."""
    if stated is None:
        licences = {model.revision.ref.name: model.licence for model in models}
        hint = "Use experts with compatible licences; if you may, state one with --license."
        raise_together(UsageError, list(licence_conflicts(licences)), hint)


def check_bases(pinned: Sequence[PinnedModel | OpenedModel], base: OpenedModel) -> None:
    """Raise IntegrityError for every expert whose manifest names another base."""
    problems = [
        f"{model.revision.label} was fine-tuned from {model.manifest.base.label} "
        f"({model.manifest.base.sha[:12]}), not from {base.revision.label}."
        for model in pinned
        if model.manifest and model.manifest.base.digest != base.digest
    ]
    raise_together(IntegrityError, problems, "Only experts of one base can be merged.")
