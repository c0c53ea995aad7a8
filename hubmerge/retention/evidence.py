"""What the trial log says for keeping a revision, and the regret of dropping it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.trials import ALONE, CHOSEN_ON, Trial

_CONFIDENCE = 1.96  # standard errors: 95 % of a normal distribution

Groups = Mapping[tuple[str, ...], Sequence[Trial]]


@dataclass(frozen=True)
class Regret:
    """What dropping costs a target: its best measured merge, and the best of what stays.

    Both are mean validation accuracies over `tasks`. `band` is the half width of the 95 % interval
    of their difference, paired over the rows. None where nothing was measured.
    """

    target: str
    tasks: tuple[str, ...] = ()
    trials: int = 0
    best: float | None = None
    kept: float | None = None
    band: float | None = None

    @property
    def value(self) -> float | None:
        return None if self.best is None or self.kept is None else self.best - self.kept

    @property
    def is_noise(self) -> bool:
        """Whether the loss is within what luck does."""
        return self.value is not None and self.band is not None and self.value <= self.band


def comparable(trials: Iterable[Trial], shas: Collection[str], targets: Collection[str]) -> Groups:
    """Whole merges of one method, base and set of rows, best first, the method leading.

    Mixtures are compared with those that were trained as long. What was measured on another split
    than choices are made on has no say.

    Only groups to which one of these commits belongs, and of methods that are `targets` if there
    are any.
    """
    found: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if _is_measured(trial) and (not targets or trial.method in targets):
            rows = (f"{task} {rows.of}" for task, rows in sorted(trial.rows.items()))
            trained = str(trial.params.get("train_steps", ""))
            found.setdefault((trial.method, trial.base, trained, *rows), []).append(trial)
    ours = {k: t for k, t in found.items() if any(p.sha in shas for one in t for p in one.parts)}
    return {k: sorted(ours[k], key=lambda t: (-t.accuracy, t.recipe)) for k in sorted(ours)}


def distances(groups: Groups) -> dict[str, float]:
    """Commit -> how far the best merge with it is behind the best of all, where it is closest."""
    behind: dict[str, float] = {}
    for trials in groups.values():
        for trial in trials:
            loss = trials[0].accuracy - trial.accuracy
            for part in trial.parts:
                behind[part.sha] = min(loss, behind.get(part.sha, math.inf))
    return behind


def regrets(groups: Groups, dropped: Collection[str], targets: Collection[str]) -> list[Regret]:
    """For each target the best merge that was measured, against the best of what stays.

    A commit that is not dropped counts as staying: it may be another repository's.
    """
    found = []
    for (method, *_), trials in groups.items():
        left = (one for one in trials if not any(part.sha in dropped for part in one.parts))
        best, second = trials[0], next(left, None)
        found.append(
            Regret(
                target=method,
                tasks=tuple(sorted(best.rows)),
                trials=len(trials),
                best=best.accuracy,
                kept=second.accuracy if second else None,
                band=_CONFIDENCE * paired_stderr(best, second) if second else None,
            )
        )
    silent = sorted(set(targets) - {one.target for one in found})
    return [*found, *(Regret(target) for target in silent)]


def paired_stderr(one: Trial, other: Trial) -> float:
    """Standard error of the difference of two means over tasks, over rows that both measured."""
    spread = []
    for task, rows in one.rows.items():
        apart = [a - b for a, b in zip(rows.right, other.rows[task].right, strict=True)]
        mean = sum(apart) / len(apart)
        spread.append((sum(d * d for d in apart) / len(apart) - mean**2) / len(apart))
    return math.sqrt(math.fsum(spread)) / len(spread)


def _is_measured(trial: Trial) -> bool:
    is_merge = trial.split == CHOSEN_ON and trial.method != ALONE
    rows = trial.rows.values()
    return is_merge and bool(rows) and trial.is_whole and all(one.of > 0 for one in rows)
