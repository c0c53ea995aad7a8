"""What the trial log shows about keeping a revision, and the regret of dropping it."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from hubmerge.trials import SELECTION_SPLIT, SINGLE_EXPERT, Trial

_CONFIDENCE = 1.96  # standard errors: 95 % of a normal distribution

Groups = Mapping[tuple[str, ...], Sequence[Trial]]


@dataclass(frozen=True)
class Regret:
    """What dropping costs a target: its `best` measured merge, and the best that is `kept`.

    Both are mean validation accuracies over `tasks`. `band` is half the width of the 95 %
    confidence interval of their difference, paired over the rows. None means not measured.
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
        """Whether the loss is within the confidence interval."""
        return self.value is not None and self.band is not None and self.value <= self.band


def group_comparable(
    trials: Iterable[Trial], shas: Collection[str], targets: Collection[str]
) -> Groups:
    """Group complete trials by method, base, training steps and rows; sort each best first.

    The method is the first element of a group's key. Mixtures are only compared with mixtures
    trained for as many steps. Trials on another split than `validation` are ignored, as are groups
    without any of the commits `shas`, and, unless `targets` is empty, other methods than these.
    """
    groups: dict[tuple[str, ...], list[Trial]] = {}
    for trial in trials:
        if _is_complete_merge(trial) and (not targets or trial.method in targets):
            rows = (f"{task} {rows.of}" for task, rows in sorted(trial.rows.items()))
            trained = str(trial.params.get("train_steps", ""))
            groups.setdefault((trial.method, trial.base, trained, *rows), []).append(trial)
    relevant = {k: t for k, t in groups.items() if any(_uses(trial, shas) for trial in t)}
    return {k: sorted(relevant[k], key=lambda t: (-t.accuracy, t.recipe)) for k in sorted(relevant)}


def accuracy_gaps(groups: Groups) -> dict[str, float]:
    """Return by commit the smallest gap between a merge with it and the best merge of a group."""
    gaps: dict[str, float] = {}
    for trials in groups.values():
        for trial in trials:
            gap = trials[0].accuracy - trial.accuracy
            for part in trial.parts:
                gaps[part.commit] = min(gap, gaps.get(part.commit, math.inf))
    return gaps


def compute_regrets(
    groups: Groups, dropped: Collection[str], targets: Collection[str]
) -> list[Regret]:
    """Compare, for each target, the best measured merge with the best without dropped commits.

    A commit that is not dropped counts as kept: it may be in another repository.
    """
    regrets = []
    for (method, *_), trials in groups.items():
        remaining = (trial for trial in trials if not _uses(trial, dropped))
        best, best_kept = trials[0], next(remaining, None)
        regrets.append(
            Regret(
                target=method,
                tasks=tuple(sorted(best.rows)),
                trials=len(trials),
                best=best.accuracy,
                kept=best_kept.accuracy if best_kept else None,
                band=_CONFIDENCE * paired_stderr(best, best_kept) if best_kept else None,
            )
        )
    unmeasured = sorted(set(targets) - {regret.target for regret in regrets})
    return [*regrets, *(Regret(target) for target in unmeasured)]


def paired_stderr(trial: Trial, baseline: Trial) -> float:
    """Return the standard error of the difference of two mean accuracies over the same rows."""
    variances = []
    for task, rows in trial.rows.items():
        differences = [
            a - b for a, b in zip(rows.numbers, baseline.rows[task].numbers, strict=True)
        ]
        count = len(differences)
        mean = math.fsum(differences) / count
        variances.append(math.fsum((d - mean) ** 2 for d in differences) / count**2)
    return math.sqrt(math.fsum(variances)) / len(variances)


def _uses(trial: Trial, shas: Collection[str]) -> bool:
    return any(part.commit in shas for part in trial.parts)


def _is_complete_merge(trial: Trial) -> bool:
    is_merge = trial.split == SELECTION_SPLIT and trial.method != SINGLE_EXPERT
    counts = [rows.of for rows in trial.rows.values()]
    return is_merge and bool(counts) and trial.is_complete and min(counts) > 0
