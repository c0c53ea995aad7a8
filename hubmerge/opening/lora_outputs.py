"""Plan a merge that is written as an adapter: what it may change, its rank, and what peft reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from hubmerge.errors import UsageError, join_with_or, raise_together
from hubmerge.manifest import Manifest
from hubmerge.merging.lora_writer import LoraOutput
from hubmerge.merging.merged_factors import largest_rank
from hubmerge.merging.plan import MergePlan
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config import read_config_bytes
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.header import parse_json_object
from hubmerge.weights.kept_shares import KeptShares
from hubmerge.weights.lora_file import AdapterFields
from hubmerge.weights.lora_modules import LoraModule, common_modules
from hubmerge.weights.match_options import MatchOptions

_DTYPES = ("F32", "BF16", "F16")
# Other types make peft add and expect a head of its own.
_TASK_TYPES = ("CAUSAL_LM", "SEQ_2_SEQ_LM", "FEATURE_EXTRACTION")


def check_lora_options(
    rank: int, option: str, options: MatchOptions, dtype: str | None = None
) -> None:
    """Raise UsageError for everything that an adapter cannot be; `option` is that of the rank."""
    problems = list(_find_problems(rank, option, options, dtype))
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(UsageError, [problem for problem, _ in problems], " ".join(hints))


def _find_problems(
    rank: int, option: str, options: MatchOptions, dtype: str | None
) -> Iterator[tuple[str, str]]:
    if rank < 1:
        yield f"{option} {rank}: the rank of an adapter is at least 1.", f"Write {option} 16."
    if dtype is not None and float_dtype_name(dtype) not in _DTYPES:
        yield (
            f"--dtype {dtype}: peft does not read adapters in this format.",
            f"Write --dtype {join_with_or(_DTYPES)}.",
        )
    if options.tied == "untie":
        yield (
            "--tied untie: an adapter cannot separate a head from the embedding of its base.",
            "Give --tied base, or merge whole weights.",
        )
    if options.vocabulary == "union":
        yield (
            "--vocabulary union: an adapter cannot add tokens to its base.",
            "Give --vocabulary base, or merge whole weights.",
        )


def plan_lora(
    plan: MergePlan, base: OpenedModel, rank: int, dtype: str | None
) -> tuple[LoraOutput, tuple[str, ...]]:
    """The adapter that a merge is written as, with notes; headers and configurations are read.

    If all experts are adapters that name their modules in the same way, these are its modules;
    otherwise all linear layers of the base's class. Raises CheckpointError if that is not known.
    """
    name = base.revision.ref.repo_id or str(base.folder)
    revision = base.revision.sha or None
    adapters = [vector.adapter for vector in plan.vectors]
    known = [adapter for adapter in adapters if adapter is not None]
    modules = common_modules(known) if len(known) == len(adapters) else None
    if modules is not None:
        task_type, mapping = _common_class(known)
    else:
        modules, task_type, mapping = _modules_of_base(base)
    fields = AdapterFields(name, revision, task_type, mapping)
    enough = largest_rank(plan, modules)
    notes = (
        (f"No module of the result needs more than rank {enough}: that is the adapter's rank.",)
        if enough < rank
        else ()
    )
    return LoraOutput(min(rank, enough), modules, fields, dtype or "F32"), notes


def with_shares(manifest: Manifest, shares: KeptShares | None) -> Manifest:
    """The manifest of an adapter with how much of the change it keeps; unchanged without shares."""
    if shares is None:
        return manifest
    training = {**manifest.training, "lora": shares.to_json()}
    return dataclasses.replace(manifest, training=training)


def _modules_of_base(
    base: OpenedModel,
) -> tuple[tuple[LoraModule, ...], str | None, Any]:
    # Only here are the libraries needed: a merge of adapters does without torch.
    from hubmerge.models.structure import read_structure

    structure = read_structure(base.folder, base.checkpoint.index)
    return structure.modules, structure.task_type, structure.auto_mapping


def _common_class(adapters: Sequence[Adapter]) -> tuple[str | None, Any]:
    """The task type and class that all adapters record, each None if they differ."""
    configs = [_read_config(adapter) for adapter in adapters]
    task_types = {str(config.get("task_type")) for config in configs}
    task_type = task_types.pop() if len(task_types) == 1 else ""
    mappings = [config.get("auto_mapping") for config in configs]
    mapping = mappings[0] if all(mapping == mappings[0] for mapping in mappings) else None
    is_plain = isinstance(mapping, dict) and all(isinstance(v, str) for v in mapping.values())
    return task_type if task_type in _TASK_TYPES else None, mapping if is_plain else None


def _read_config(adapter: Adapter) -> dict[str, Any]:
    folder = adapter.checkpoint.folder
    return parse_json_object(read_config_bytes(folder), str(folder / ADAPTER_CONFIG))
