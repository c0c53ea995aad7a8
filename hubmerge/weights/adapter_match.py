"""An adapter held against its base, from configuration and headers: its changes, or why not."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from hubmerge.errors import CheckpointError, raise_together
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_changes import (
    AGAIN,
    ANEW,
    FITTING,
    SHAPE,
    Facts,
    Kind,
    MisfitError,
    changes_of,
    gather,
)
from hubmerge.weights.adapter_config import AdapterConfig, read_config
from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.adapter_names import Names, Rename, find_renames, missing, sort_names
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.header import listed
from hubmerge.weights.lora import Change

_UNKNOWN: Kind = "has {} that the base does not have", FITTING
_STRANGE: Kind = "has {} that peft does not name so", ANEW


class Matched(NamedTuple):
    """What an adapter does to its base, and every reason why it cannot be merged."""

    adapter: Adapter
    problems: list[Problem]


def open_adapter(base: Checkpoint, checkpoint: Checkpoint) -> Adapter:
    """Match an adapter with its base, without reading a value.

    Raises CheckpointError with everything that keeps it from being merged.
    """
    adapter, problems = match(base, checkpoint, f"Adapter {checkpoint.folder}")
    hints = dict.fromkeys(hint for _, hint in problems)
    raise_together(CheckpointError, [problem for problem, _ in problems], " ".join(hints))
    return adapter


def match(base: Checkpoint, checkpoint: Checkpoint, who: str) -> Matched:
    """The adapter, and what is wrong with it, in sentences about `who`; no value is read."""
    nothing = Adapter(base, checkpoint, {}, {})
    try:
        config, problems = read_config(checkpoint.folder, who)
    except CheckpointError as error:
        return Matched(nothing, [(error.message, error.hint or ANEW)])
    if config is None:
        return Matched(nothing, problems)
    names = sort_names(checkpoint.index)
    ways = find_renames(names.wanted(), base.index)
    if len(ways) > 1:
        prefixes = " or ".join(repr(str(way)) for way in ways[:3])
        return Matched(nothing, [(f"{who} fits several parts of the base: {prefixes}.", FITTING)])
    return _matched(base, checkpoint, config, names, ways[0], who)


def _matched(
    base: Checkpoint,
    checkpoint: Checkpoint,
    config: AdapterConfig,
    names: Names,
    rename: Rename,
    who: str,
) -> Matched:
    facts = gather(base.index, checkpoint.index, config, rename, names.modules)
    lacking = missing(names.wanted(), rename, base.index)
    changes, misfits = _changes(facts, names, set(lacking))
    saved = {rename(name): tensor for name, tensor in names.saved.items() if name not in lacking}
    misfits[_STRANGE] += names.strange
    misfits[_UNKNOWN] += lacking
    misfits[SHAPE] += [
        name
        for name, tensor in saved.items()
        if not checkpoint.index[tensor].fits(base.index[name])
    ]
    problems = [
        (f"{who} {kind.format(listed(found))}.", hint)
        for (kind, hint), found in misfits.items()
        if found
    ]
    return Matched(Adapter(base, checkpoint, changes, saved), problems)


def _changes(
    facts: Facts, names: Names, lacking: set[str]
) -> tuple[dict[str, Change], dict[Kind, list[str]]]:
    changes: dict[str, Change] = {}
    misfits: dict[Kind, list[str]] = defaultdict(list)
    for module in names.modules:
        if module.wanted() & lacking:
            continue  # told once
        try:
            found = changes_of(facts, module)
        except MisfitError as misfit:
            misfits[misfit.kind].append(facts.rename(module.target))
            continue
        misfits[AGAIN] += changes.keys() & found.keys()
        changes |= found
    return changes, misfits
