"""The rows of a task of lm_eval in validation and in test, which never share one."""

from __future__ import annotations

import hashlib
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from hubmerge.errors import DataError, UnknownName, UsageError
from hubmerge.tasks.lm_eval_name import LmEvalTask, parse_lm_eval_name
from hubmerge.tasks.lm_eval_task import doc_bytes, lm_eval_errors, load_lm_eval_task
from hubmerge.tasks.task import Task

# What the `lm_eval` command measures of a task with one split.
ALL_ROWS = "all"


@dataclass(frozen=True)
class LmEvalDocs:
    """lm_eval's own task, all rows that it asks, in order, and the indices of those of a split.

    `requests` are the questions by how they are written, and `pairs` their tokens by tokenizer,
    both made on first use.
    """

    name: LmEvalTask
    harness_task: Any
    docs: Sequence[Any] = field(repr=False)
    indices: tuple[int, ...]
    requests: dict[str, list[list[Any]]] = field(default_factory=dict, repr=False)
    pairs: MutableMapping[Any, dict[Any, Any]] = field(
        default_factory=WeakKeyDictionary, repr=False
    )


def load_docs(task: Task, split: str) -> LmEvalDocs:
    """The rows of `validation` or `test`, or all of a task that both are carved from.

    Of a task with one split, validation is the half of its rows with the lower digests, and test
    the others; equal rows are in the same half. Raises UnknownName or UsageError for a split that
    the task does not have, DataError if there is no row for it.
    """
    assert task.lm_eval is not None
    found = task.lm_eval
    _check_split(found, split)
    name = parse_lm_eval_name(found.label)
    apart = split == "validation" and found.only_split is None
    harness_task = load_lm_eval_task(name, found.include_path, "validation" if apart else "test")
    with lm_eval_errors(found.label, "read the rows"):
        docs = list(harness_task.eval_docs)
    indices = list(range(len(docs)))
    if found.only_split is not None and split != ALL_ROWS:
        indices = carve_docs(docs, split == "validation")
    if not indices:
        raise DataError(
            f"Task {found.label} has no {split} rows: it has {len(docs)} in all.",
            "Give it more rows.",
        )
    return LmEvalDocs(found, harness_task, docs, tuple(indices))


def carve_docs(docs: Sequence[Any], lower: bool) -> list[int]:
    """The indices of the rows with the lower digests, a half of the different ones, or the rest."""
    digests = [hashlib.sha256(doc_bytes(doc)).digest() for doc in docs]
    ordered = sorted(set(digests))
    low = set(ordered[: len(ordered) // 2])
    return [index for index, digest in enumerate(digests) if (digest in low) is lower]


def carved_note(task: Task) -> str | None:
    """What to say of a task whose validation and test are carved from one split, else None."""
    if task.lm_eval is None or task.lm_eval.only_split is None:
        return None
    return (
        f"{task.name} has one split, {task.lm_eval.only_split}: a half of its rows is validation, "
        "the other test. `hubmerge eval --split all` measures all of them, as lm_eval does."
    )


def _check_split(found: LmEvalTask, split: str) -> None:
    if split == "train":
        raise UsageError(
            f"Task {found.label} only measures models: it has no rows for training.",
            "Use --split test or validation.",
        )
    if split == ALL_ROWS and found.only_split is None:
        raise UsageError(
            f"Task {found.label} has validation and test apart, so there is no split {ALL_ROWS}.",
            "Use --split test, which is what lm_eval measures, or validation.",
        )
    if split not in ("validation", "test", ALL_ROWS):
        raise UnknownName("split", split, ("validation", "test", ALL_ROWS))
