"""The starts of a mixture of experts: a step of each expert, by the rules people use."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.selection.candidate import Candidate
from hubmerge.selection.pool import Pool

Indices = tuple[int, ...]
EARLY_STOP, LAST, BEST_EXPERT = "early-stop", "last", "best-expert"
_NULL_SHARE = 8  # the paper's mixtures start best from step 256 of 2048 (arXiv 2506.14126)


@dataclass(frozen=True)
class MoeStarts:
    """The starts by name, earliest first: for each task the index of its candidate.

    `null` is the null hypothesis: the undertrained start that the paper found best. `last` is the
    start from the last steps; it is the null itself if early stopping chose the last steps.
    `names` maps every name of a start, aliases included, to its main name.
    """

    indices: Mapping[str, Indices]
    null: str
    last: str
    names: Mapping[str, str]

    @property
    def challengers(self) -> tuple[str, ...]:
        """The names of the starts that compete, earliest first."""
        return tuple(name for name in self.indices if name not in (self.null, self.last))


def find_starts(pool: Pool) -> MoeStarts:
    """Find the start of every rule, each start once.

    Without early-stopped runs the null is the common step nearest to an eighth of the last step,
    on a log2 scale.
    """
    name_by_indices: dict[Indices, str] = {}
    names = {
        name: name_by_indices.setdefault(indices, name) for name, indices in _starts_by_rule(pool)
    }
    log2_steps = {indices: _mean_log2_step(pool, indices) for indices in name_by_indices}
    ordered = sorted(name_by_indices, key=lambda indices: (log2_steps[indices], indices))
    last = _last_indices(pool)
    null = _early_stop_indices(pool) or _undertrained_indices(pool, log2_steps[last])
    return MoeStarts(
        {name_by_indices[indices]: indices for indices in ordered},
        name_by_indices[null],
        name_by_indices[last],
        names,
    )


def _starts_by_rule(pool: Pool) -> Iterator[tuple[str, Indices]]:
    """Yield a name and its start; the first name of a start is its main name."""
    if early_stop := _early_stop_indices(pool):
        yield EARLY_STOP, early_stop
    yield LAST, _last_indices(pool)
    for step, indices in _common_steps(pool).items():
        yield f"step{step}", indices
    if best_expert := _best_expert_indices(pool):
        yield BEST_EXPERT, best_expert


def _common_steps(pool: Pool) -> dict[int, Indices]:
    """Map every step to each expert's candidate at that step or, if missing, just before it."""
    runs = [_not_stopped(candidates) for candidates in pool.candidates]
    indices_by_step = {}
    for step in sorted({candidate.step for run in runs for _, candidate in run}):
        up_to = [[index for index, candidate in run if candidate.step <= step] for run in runs]
        if all(up_to):
            indices_by_step[step] = tuple(indices[-1] for indices in up_to)
    return indices_by_step


def _not_stopped(candidates: Sequence[Candidate]) -> list[tuple[int, Candidate]]:
    """Return the candidates, with their indices, at which the run was not stopped early.

    If there are none, return all.
    """
    indexed = list(enumerate(candidates))
    return [(index, c) for index, c in indexed if not c.stopped_early] or indexed


def _last_indices(pool: Pool) -> Indices:
    return tuple(len(steps) - 1 for steps in pool.candidates)


def _early_stop_indices(pool: Pool) -> Indices | None:
    """Return where early stopping ended each run, None if a run was not stopped early."""
    stopped = [[n for n, c in enumerate(steps) if c.stopped_early] for steps in pool.candidates]
    return tuple(indices[0] for indices in stopped) if all(stopped) else None


def _best_expert_indices(pool: Pool) -> Indices | None:
    """Return the best step of each expert on its own task, None if an accuracy is missing."""
    accuracies = [[candidate.own_accuracy for candidate in steps] for steps in pool.candidates]
    recorded = [[value for value in values if value is not None] for values in accuracies]
    if list(map(len, recorded)) != list(map(len, accuracies)):
        return None
    return tuple(values.index(max(values)) for values in recorded)


def _undertrained_indices(pool: Pool, last: float) -> Indices:
    target = last - math.log2(_NULL_SHARE)
    common = _common_steps(pool).values()
    return min(common, key=lambda indices: abs(_mean_log2_step(pool, indices) - target))


def _mean_log2_step(pool: Pool, indices: Indices) -> float:
    """Return the mean log2 of the chosen steps."""
    pairs = zip(pool.candidates, indices, strict=True)
    steps = [candidates[index].step for candidates, index in pairs]
    return math.fsum(math.log2(max(step, 1)) for step in steps) / len(steps)
