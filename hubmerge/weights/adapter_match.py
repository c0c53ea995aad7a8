"""Match an adapter with its base by configuration and headers: its changes, or its problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.adapter import Adapter, is_embedding
from hubmerge.weights.adapter_changes import module_changes
from hubmerge.weights.adapter_config import AdapterConfig, read_adapter_config
from hubmerge.weights.adapter_config_fields import MERGE_WITH_PEFT_HINT, Problem
from hubmerge.weights.adapter_misfits import (
    CHANGED_TWICE,
    FETCH_AGAIN_HINT,
    MATCHING_BASE_HINT,
    WRONG_SHAPE,
    MisfitError,
    MisfitKind,
)
from hubmerge.weights.adapter_names import (
    LORA_A,
    LORA_B,
    AdaptedModule,
    AdapterTensors,
    Rename,
    classify_tensors,
    find_missing,
    find_renames,
)
from hubmerge.weights.adapter_orientation import MatchContext, build_context
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.class_heads import is_class_head
from hubmerge.weights.conversions import conversions_of, stacks_of
from hubmerge.weights.embedding_match import find_adapter_stack_problems
from hubmerge.weights.expert_lora import is_parameter_module, stack_changes
from hubmerge.weights.expert_stacks import find_stacks
from hubmerge.weights.full_names import part_of_class
from hubmerge.weights.header import TensorInfo, summarize_names
from hubmerge.weights.lora import Change, TokenRows
from hubmerge.weights.match_options import (
    DEFAULT_OPTIONS,
    HEADS_HINT,
    VOCABULARY_HINT,
    MatchOptions,
)
from hubmerge.weights.model_config import CONFIG_JSON, read_model_config
from hubmerge.weights.ties import find_tie

_NOT_IN_BASE: MisfitKind = "has {} that the base does not have", MATCHING_BASE_HINT
_OTHER_VOCABULARY: MisfitKind = "has another number of tokens in {}", VOCABULARY_HINT
_OWN_HEAD: MisfitKind = "has {} that the base does not have", HEADS_HINT
_OTHER_HEAD: MisfitKind = "does not fit the base in {}", HEADS_HINT
_UNCLEAR: MisfitKind = (
    "adapts the parameters {}, and their shapes do not show which is which",
    MERGE_WITH_PEFT_HINT,
)
_NOT_PEFT_NAMES: MisfitKind = "has {} whose names are not peft's", FETCH_AGAIN_HINT


class MatchResult(NamedTuple):
    """What an adapter does to its base, and every reason why it cannot be merged."""

    adapter: Adapter
    problems: list[Problem]


def open_adapter(
    base: Checkpoint, checkpoint: Checkpoint, options: MatchOptions = DEFAULT_OPTIONS
) -> Adapter:
    """Match an adapter with its base, without reading a value.

    Raises CheckpointError with everything that keeps it from being merged.
    """
    adapter, problems = match_adapter(base, checkpoint, f"Adapter {checkpoint.folder}", options)
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))
    return adapter


def match_adapter(
    base: Checkpoint,
    checkpoint: Checkpoint,
    label: str,
    options: MatchOptions = DEFAULT_OPTIONS,
) -> MatchResult:
    """The adapter and its problems, in sentences that begin with `label`; no value is read."""
    empty = Adapter(base, checkpoint, {}, {})
    try:
        config, problems = read_adapter_config(checkpoint.folder, label)
    except CheckpointError as error:
        return MatchResult(empty, [(error.message, error.hint or FETCH_AGAIN_HINT)])
    if config is None:
        return MatchResult(empty, problems)
    tensors, head = _split_head(classify_tensors(checkpoint.index), options)
    stacked = [module for module in tensors.modules if is_parameter_module(module, config)]
    layers = tuple(module for module in tensors.modules if module not in stacked)
    tensors = replace(tensors, modules=layers)
    model_config = read_model_config(base.folder)
    conversions = conversions_of(model_config)
    renames = find_renames(tensors.base_tensors(), base.index, conversions)
    if len(renames) > 1:
        renames = _choose_part(renames, base, checkpoint, tensors, config)
    if len(renames) > 1:
        prefixes = " or ".join(repr(str(rename)) for rename in renames[:3])
        return MatchResult(
            empty, [(f"{label} fits several parts of the base: {prefixes}.", MATCHING_BASE_HINT)]
        )
    adapter, problems = _match_tensors(base, checkpoint, config, tensors, renames[0], label)
    stacks = find_stacks(base.index, conversions, stacks_of(model_config)) if stacked else {}
    changes, unclear = stack_changes(stacked, config, checkpoint.index, stacks)
    if unclear:
        problems.append((f"{label} {_UNCLEAR[0].format(summarize_names(unclear))}.", _UNCLEAR[1]))
    changes = {**adapter.changes, **changes}
    problems += find_adapter_stack_problems(base.folder, checkpoint.folder, label)
    return MatchResult(replace(adapter, head=head, changes=changes), problems)


def _split_head(
    tensors: AdapterTensors, options: MatchOptions
) -> tuple[AdapterTensors, Mapping[str, str]]:
    """The tensors without the head of a task if it is not merged, and that head."""
    if options.heads not in ("keep", "drop"):
        return tensors, {}
    head = {name: own for name, own in tensors.replacements.items() if is_class_head(name)}
    others = {name: own for name, own in tensors.replacements.items() if name not in head}
    return replace(tensors, replacements=others), head


def _choose_part(
    renames: list[Rename],
    base: Checkpoint,
    checkpoint: Checkpoint,
    tensors: AdapterTensors,
    config: AdapterConfig,
) -> list[Rename]:
    """The renames to a part of the base whose shapes fit, or that has the adapter's class."""
    fitting = [
        rename
        for rename in renames
        if all(_fits(rename, module, base, checkpoint) for module in tensors.modules)
    ]
    named = [rename for rename in fitting if part_of_class(config.base_class) in str(rename)]
    return named if len(named) == 1 else fitting or renames


def _fits(rename: Rename, module: AdaptedModule, base: Checkpoint, checkpoint: Checkpoint) -> bool:
    if not {LORA_A, LORA_B} <= module.parts.keys():
        return True
    a, b = (checkpoint.index[name].shape for name in module.factors)
    return sorted(base.index[rename(module.target)].shape[:2]) == sorted((a[1], b[0]))


def _match_tensors(
    base: Checkpoint,
    checkpoint: Checkpoint,
    config: AdapterConfig,
    tensors: AdapterTensors,
    rename: Rename,
    label: str,
) -> MatchResult:
    context = build_context(base.index, checkpoint.index, config, rename, tensors.modules)
    missing = find_missing(tensors.base_tensors(), rename, base.index)
    changes, misfits = _collect_changes(context, tensors, set(missing))
    replacements = {
        rename(name): tensor for name, tensor in tensors.replacements.items() if name not in missing
    }
    misfits[_NOT_PEFT_NAMES] += tensors.unrecognized
    for name in missing:
        is_own_head = name in tensors.replacements and is_class_head(name)
        misfits[_OWN_HEAD if is_own_head else _NOT_IN_BASE].append(name)
    for name, tensor in replacements.items():
        ours, theirs = base.index[name], checkpoint.index[tensor]
        if not theirs.fits(ours):
            misfits[_misfit_kind(name, ours, theirs)].append(name)
    problems = [
        (f"{label} {kind.format(summarize_names(names))}.", hint)
        for (kind, hint), names in misfits.items()
        if names
    ]
    knows_tie = (base.folder / CONFIG_JSON).is_file()
    tie = find_tie(base)
    # peft trains the rows of a tied embedding for the head as well.
    if tie and tie.head in base.index and isinstance(changes.get(tie.embedding), TokenRows):
        changes[tie.head] = changes[tie.embedding]
    return MatchResult(Adapter(base, checkpoint, changes, replacements, knows_tie), problems)


def _misfit_kind(name: str, ours: TensorInfo, theirs: TensorInfo) -> MisfitKind:
    """Which problem a saved tensor of another shape is."""
    if is_class_head(name):
        return _OTHER_HEAD
    other_rows = is_embedding(name) and ours.shape[1:] == theirs.shape[1:]
    return _OTHER_VOCABULARY if other_rows else WRONG_SHAPE


def _collect_changes(
    context: MatchContext, tensors: AdapterTensors, missing: set[str]
) -> tuple[dict[str, Change], dict[MisfitKind, list[str]]]:
    changes: dict[str, Change] = {}
    misfits: dict[MisfitKind, list[str]] = defaultdict(list)
    for module in tensors.modules:
        if module.base_tensors() & missing:
            continue  # reported as not in the base
        try:
            new_changes = module_changes(context, module)
        except MisfitError as misfit:
            misfits[misfit.kind].append(context.rename(module.target))
            continue
        misfits[CHANGED_TWICE] += changes.keys() & new_changes.keys()
        changes |= new_changes
    return changes, misfits
