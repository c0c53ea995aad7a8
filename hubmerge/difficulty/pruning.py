"""Training rows without the hardest (arXiv 2506.14126, fig. 3 right)."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property

from hubmerge.difficulty.bins import hardest_rows
from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.errors import DataError

_HINT = "Measure it with `hubmerge difficulty ... --task {} --split train --out FILE`."


@dataclass(frozen=True)
class PrunedRows:
    """The remaining rows of a train split of `total` rows, ascending, and the digest of scores."""

    rows: tuple[int, ...]
    total: int
    scores_digest: str

    @cached_property
    def digest(self) -> str:
        """64 hex digits over the rows, independent of the scores that selected them."""
        return hashlib.sha256(json.dumps([self.total, self.rows]).encode()).hexdigest()

    def to_json(self) -> dict[str, object]:
        """The entries of a manifest; the difficulty file is identified by its scores."""
        return {
            "difficulty": self.scores_digest,
            "dropped": self.total - len(self.rows),
            "of_rows": self.total,
        }


def prune(difficulty: Difficulty, share: float, task: str) -> PrunedRows:
    """Remove the hardest share of a task's train split.

    Raises DataError if the scores are of another task or split, or if no row is left.
    """
    name = task.partition("@")[0]
    if difficulty.task != task or difficulty.split != "train":
        raise DataError(
            f"The difficulty is of {difficulty.split} of {difficulty.task}, but the run trains on "
            f"train of {task}.",
            _HINT.format(name),
        )
    dropped = set(hardest_rows(difficulty.el2n, share).tolist())
    if len(dropped) == difficulty.count:
        raise DataError(
            f"Without its hardest {len(dropped)} rows task {name} has no rows.",
            "Drop a smaller share.",
        )
    rows = tuple(row for row in range(difficulty.count) if row not in dropped)
    return PrunedRows(rows, difficulty.count, difficulty.digest)


def check_row_count(pruned: PrunedRows, count: int, task: str) -> None:
    """Raise DataError if the train split has another number of rows than was scored."""
    if count != pruned.total:
        name = task.partition("@")[0]
        raise DataError(
            f"The difficulty is of {pruned.total} rows, but train of {name} has {count}.",
            _HINT.format(name),
        )
