"""Whether the modules of experts and base are the same, and what a merge takes from which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from hubmerge.weights.adapter_config_fields import Problem
from hubmerge.weights.checkpoint import Checkpoint, read_tensor
from hubmerge.weights.embedding_modules import (
    EmbeddingStack,
    find_unknown_modules,
    read_stack,
)
from hubmerge.weights.header import read_header

_HINT = "Merge models with the same modules: they make the same kind of embedding."
_DENSE_HINT = (
    "Give the base the same module with `--base`, saved by sentence-transformers before training."
)


def find_stack_problems(base: Path, expert: Path, label: str) -> Iterator[Problem]:
    """Why the modules of an expert and its base cannot be merged; they may both have none.

    Raises CheckpointError for files that cannot be read.
    """
    ours, theirs = read_stack(base), read_stack(expert)
    unknown = [
        problem for stack in (ours, theirs) if stack for problem in find_unknown_modules(stack)
    ]
    if unknown:
        yield from unknown
    elif theirs is None:
        return
    elif ours is None:
        if theirs.weight_files:
            names = ", ".join(theirs.weight_files)
            yield f"{label} has {names}, which the base does not have.", _DENSE_HINT
    elif difference := _describe_difference(ours, theirs):
        yield f"{label} has {difference}.", _HINT


def find_adapter_stack_problems(base: Path, adapter: Path, label: str) -> Iterator[Problem]:
    """As `find_stack_problems`, for an adapter: the weights of its modules must be the base's."""
    problems = list(find_stack_problems(base, adapter, label))
    yield from problems
    ours, theirs = read_stack(base), read_stack(adapter)
    if problems or ours is None or theirs is None:
        return
    changed = [name for name in theirs.weight_files if not _same_tensors(base, adapter, name)]
    if changed:
        yield (
            f"{label} has other weights than the base in {', '.join(changed)}.",
            "An adapter changes the transformer alone: merge a model of which every weight is "
            "saved.",
        )


def stack_notes(base: Path, expert: Path, label: str) -> Iterator[str]:
    """What a merge takes from the base although an expert has it otherwise, in sentences."""
    ours, theirs = read_stack(base), read_stack(expert)
    if ours is None or theirs is None:
        return
    settings = {
        "prompts": (ours.prompts, theirs.prompts),
        "a default prompt": (ours.default_prompt, theirs.default_prompt),
        "a similarity": (ours.similarity, theirs.similarity),
        "a max_seq_length": (ours.max_tokens, theirs.max_tokens),
    }
    different = [name for name, (own, other) in settings.items() if own != other]
    if different:
        yield f"{label} has {', '.join(different)} unlike the base: a merge has the base's."


def find_module_files(base: Checkpoint, experts: Sequence[Checkpoint]) -> Mapping[str, bytes]:
    """The files of the experts' modules by path, for a base that has none.

    Empty if the base has modules, or no expert has any. Experts with different modules are found by
    `find_disagreement`.
    """
    if read_stack(base.folder) is not None:
        return {}
    stacks = [stack for expert in experts if (stack := read_stack(expert.folder))]
    if not stacks:
        return {}
    return {name: (stacks[0].folder / name).read_bytes() for name in stacks[0].files()}


def find_disagreement(
    base: Checkpoint, experts: Sequence[Checkpoint], labels: Sequence[str]
) -> Iterator[Problem]:
    """Experts whose modules differ from each other's, where the base has none to compare with."""
    if read_stack(base.folder) is not None:
        return
    stacks = [
        (label, stack)
        for label, expert in zip(labels, experts, strict=True)
        if (stack := read_stack(expert.folder))
    ]
    for label, stack in stacks[1:]:
        first, reference = stacks[0]
        if difference := _describe_difference(reference, stack, first):
            yield f"{label} has {difference}.", _HINT


def _describe_difference(
    ours: EmbeddingStack, theirs: EmbeddingStack, name: str = "the base"
) -> str:
    """The first module in which two stacks differ, empty if there is none."""
    kinds = [[module.kind for module in stack.modules] for stack in (ours, theirs)]
    if kinds[0] != kinds[1]:
        mine, other = (" ".join(words) for words in kinds)
        return f"the modules {other}, and {name} has {mine}"
    for own, other_module in zip(ours.modules, theirs.modules, strict=True):
        if dict(own.settings) != dict(other_module.settings):
            return f"the module {other_module}, and {name} has {own}"
    if ours.weight_files != theirs.weight_files:
        return f"weights in other modules than {name}"
    return ""


def _same_tensors(first: Path, second: Path, name: str) -> bool:
    ours, theirs = read_header(first / name), read_header(second / name)
    return ours.keys() == theirs.keys() and all(
        np.array_equal(read_tensor(ours[key], key), read_tensor(theirs[key], key)) for key in ours
    )
