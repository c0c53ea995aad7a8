"""Multi-task training data: the rows of several tasks, and how many of each an epoch has.

The order in which tasks are given changes only their numbers. Adding a task keeps the order of the
rows of every other task; only how many of them an epoch has, and at which steps, changes.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from hubmerge.errors import UsageError, raise_together
from hubmerge.tasks.data import Split
from hubmerge.tasks.examples import Example


@dataclass(frozen=True)
class MultiTaskData:
    """The rows of several tasks, numbered consecutively from the first task to the last.

    An epoch has as many rows as all tasks together, `rows_per_epoch[t]` of them from task number t.
    That may be more than the task has, and then rows repeat within an epoch; or fewer, and then
    using each row once takes several epochs.
    """

    splits: tuple[Split, ...]
    rows_per_epoch: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    @cached_property
    def offsets(self) -> tuple[int, ...]:
        """The number of each task's first row."""
        return (0, *accumulate(map(len, self.splits[:-1])))

    def locate(self, row: int) -> tuple[int, int]:
        """The task number of a row, and its row number within that task."""
        task = bisect_right(self.offsets, row) - 1
        return task, row - self.offsets[task]

    def example(self, row: int) -> tuple[int, Example]:
        """The task number of a row, and its example; raises DataError if it is broken."""
        task, task_row = self.locate(row)
        return task, self.splits[task].example(task_row)


def make_multitask_data(splits: Sequence[Split], power: float = 0.0) -> MultiTaskData:
    """Combine splits, with the shares of `allocate_rows`; raises UsageError for duplicate names."""
    names = [split.task.name for split in splits]
    duplicates = sorted({name for name in names if names.count(name) > 1})
    problems = [f"Two tasks are named {name}." for name in duplicates]
    raise_together(UsageError, problems, "Give each task once, with a name of its own.")
    counts = allocate_rows({split.task.id: len(split) for split in splits}, power)
    return MultiTaskData(tuple(splits), tuple(counts[split.task.id] for split in splits))


def allocate_rows(rows: Mapping[str, int], power: float = 0.0) -> dict[str, int]:
    """Task -> how many rows of an epoch it gets; an epoch has as many rows as all tasks together.

    Shares are proportional to rows ** power: 0 is uniform over tasks, 1 proportional to rows, and
    1 / T is sampling at temperature T (arXiv 1907.05019, section 4.2). Rounding uses the largest
    remainders; every task gets at least one row.
    """
    total, largest = sum(rows.values()), max(rows.values())
    weights = {task: (count / largest) ** power for task, count in rows.items()}
    weight_sum = math.fsum(weights.values())
    exact = {task: total * weight / weight_sum for task, weight in weights.items()}
    counts = {task: max(1, int(share)) for task, share in exact.items()}

    def remainder(task: str) -> tuple[float, str]:
        return exact[task] - counts[task], task  # ties are decided by name, not by order

    for _ in range(total - sum(counts.values())):
        counts[max(counts, key=remainder)] += 1
    for _ in range(sum(counts.values()) - total):
        counts[min((task for task in counts if counts[task] > 1), key=remainder)] -= 1
    return counts
