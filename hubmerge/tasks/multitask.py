"""Several tasks to be trained on together: their rows in one numbering, and how often each comes.

Permuting the tasks permutes their numbers and nothing else. One task more leaves the order of every
other task's own rows as it was; how many of them an epoch has, and when they come, is new.
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
class Deck:
    """The rows of several tasks, numbered through from the first task to the last.

    An epoch has as many cards as there are rows, `cards[t]` of them for task number t: a task with
    more cards than rows is gone through more than once an epoch, one with fewer takes several.
    """

    splits: tuple[Split, ...]
    cards: tuple[int, ...]

    def __len__(self) -> int:
        return sum(map(len, self.splits))

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """The number of each task's first row."""
        return (0, *accumulate(map(len, self.splits[:-1])))

    def whose(self, row: int) -> tuple[int, int]:
        """The number of the task that a row is of, and which of that task's rows it is."""
        task = bisect_right(self.starts, row) - 1
        return task, row - self.starts[task]

    def example(self, row: int) -> tuple[int, Example]:
        """The number of the row's task, and the example; raises DataError if it is broken."""
        task, own = self.whose(row)
        return task, self.splits[task].example(own)


def make_deck(splits: Sequence[Split], power: float = 0.0) -> Deck:
    """The deck of these splits, dealt as `deal` says; raises UsageError for a task named twice."""
    names = [split.task.name for split in splits]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems = [f"Two tasks are named {name}." for name in twice]
    raise_together(UsageError, problems, "Give each task once, under a name of its own.")
    cards = deal({split.task.id: len(split) for split in splits}, power)
    return Deck(tuple(splits), tuple(cards[split.task.id] for split in splits))


def deal(rows: Mapping[str, int], power: float = 0.0) -> dict[str, int]:
    """How many of the cards of an epoch each task gets; together there are as many as rows.

    Shares go with rows ** power, where 0 is uniform over tasks, 1 proportional to their rows, and
    1 / T sampling at temperature T (arXiv 1907.05019, section 4.2). What does not come out even
    goes to those who are owed most (largest remainder); every task gets a card at least.
    """
    total, most = sum(rows.values()), max(rows.values())
    weights = {task: (count / most) ** power for task, count in rows.items()}
    whole = math.fsum(weights.values())
    exact = {task: total * weight / whole for task, weight in weights.items()}
    cards = {task: max(1, int(share)) for task, share in exact.items()}

    def owed(task: str) -> tuple[float, str]:
        return exact[task] - cards[task], task  # the task, so that its place decides no tie

    for _ in range(total - sum(cards.values())):
        cards[max(cards, key=owed)] += 1
    for _ in range(sum(cards.values()) - total):
        cards[min((task for task in cards if cards[task] > 1), key=owed)] -= 1
    return cards
