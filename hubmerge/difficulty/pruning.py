"""Training rows without the hardest (arXiv 2506.14126, fig. 3 right)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from hubmerge.difficulty.bins import hardest
from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.errors import DataError

_WAY_OUT = "Measure it with `hubmerge difficulty ... --task {} --split train --out FILE`."


@dataclass(frozen=True)
class Pruned:
    """Rows of a train split of `of` rows that are left, ascending, and the scores that said so."""

    rows: tuple[int, ...]
    of: int
    scores: str

    @cached_property
    def digest(self) -> str:
        """64 hex digits over the rows, whatever file named them."""
        return hashlib.sha256(json.dumps([self.of, self.rows]).encode()).hexdigest()

    @property
    def said(self) -> dict[str, object]:
        """What a manifest says of it; the file that named the rows is known by its scores."""
        return {"difficulty": self.scores, "dropped": self.of - len(self.rows), "of_rows": self.of}


def prune(difficulty: Difficulty, share: float, task: str) -> Pruned:
    """Leave the hardest share of a task's train split out.

    Raises DataError if the scores are of another task or split, or if no row is left.
    """
    name = task.partition("@")[0]
    if difficulty.task != task or difficulty.split != "train":
        raise DataError(
            f"The difficulty is that of {difficulty.split} of {difficulty.task}, and what is "
            f"trained on is train of {task}.",
            _WAY_OUT.format(name),
        )
    dropped = set(hardest(difficulty.el2n, share).tolist())
    if len(dropped) == difficulty.count:
        raise DataError(
            f"Without its hardest {len(dropped)} rows task {name} has none.",
            "Drop a smaller share.",
        )
    rows = tuple(row for row in range(difficulty.count) if row not in dropped)
    return Pruned(rows, difficulty.count, difficulty.digest)


def check_rows(pruned: Pruned, count: int, task: str) -> None:
    """Raise DataError if the train split has another number of rows than was scored."""
    if count != pruned.of:
        name = task.partition("@")[0]
        raise DataError(
            f"The difficulty is of {pruned.of} rows, and train of {name} has {count}.",
            _WAY_OUT.format(name),
        )
