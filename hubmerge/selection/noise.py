"""Whether one merge is better than another beyond chance, paired over the rows both measured."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from hubmerge.seed_statistics import student_quantile
from hubmerge.trials import Trial

Floats = NDArray[np.float64]
Values = Sequence[float]
Counts = Sequence[int]
Interval = tuple[float, float, float]  # a gain, and the ends of its confidence interval
RESAMPLES = 4000
LEVEL = 0.95
_SIGNS = (-1.0, 0.0, 1.0)
_ENOUGH_ROWS = 2000  # for Student's t to be within 0.1 % of the normal distribution
_MOST_DRAWS = 4_000_000  # of counts in memory at once


@dataclass(frozen=True)
class Difference:
    """The difference of two mean accuracies, its standard error and its confidence interval."""

    value: float
    stderr: float
    low: float
    high: float


def difference(trial: Trial, baseline: Trial, seed: int, level: float = LEVEL) -> Difference:
    """Return how much better `trial` is, over the rows that both measured, by a paired bootstrap.

    Rows are resampled within each task; every task has the same weight. Resampling n rows is one
    multinomial draw of how often each difference occurs: exact, and where rows are right or wrong
    there are only three, +1, 0 and -1, so it is as fast for a million rows. Source: Efron and
    Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    generator = np.random.Generator(np.random.Philox(_bootstrap_seed(seed, trial, baseline)))
    means, spread = np.zeros(RESAMPLES), 0.0
    differences = _paired_differences(trial, baseline)
    for values, counts in differences.values():
        means += _resampled_means(values, counts, generator)
        spread += _variance(values, counts) / sum(counts)
    tail, value = (1 - level) / 2, _mean(differences)
    low, high = np.quantile(means / len(differences), [tail, 1 - tail])
    widening = _few_rows_factor([sum(counts) for _, counts in differences.values()], tail)
    return Difference(
        value,
        math.sqrt(spread) / len(differences),
        value - widening * (value - float(low)),
        value + widening * (float(high) - value),
    )


def _few_rows_factor(rows: Sequence[int], tail: float) -> float:
    """Return by how much a bootstrap of so few rows of each task is too narrow.

    It draws with the variance of the sample, which is (n - 1) / n of the unbiased one, and as if
    that were known exactly, where Student's t is wider than the normal distribution. 1.03 for
    4 tasks of 32 rows, 1.002 for 400. Source: the expanded percentile interval of Hesterberg, What
    Teachers Should Know About the Bootstrap (arXiv 1411.5279).
    """
    unbiased = math.fsum(count / max(count - 1, 1) for count in rows) / len(rows)
    return math.sqrt(unbiased) * _student_factor(max(sum(rows) - len(rows), 1), tail)


@lru_cache(maxsize=1024)
def _student_factor(freedom: int, tail: float) -> float:
    """Return how much wider Student's t is than the normal distribution, as is nearly 1 at last."""
    if freedom > _ENOUGH_ROWS:
        return 1.0
    return student_quantile(tail, freedom) / NormalDist().inv_cdf(1 - tail)


def interval(trial: Trial, baseline: Trial, seed: int) -> Interval:
    """Return the gain of one trial over another, and the ends of its 95 % interval."""
    gain = difference(trial, baseline, seed)
    return gain.value, gain.low, gain.high


def gain(trial: Trial, baseline: Trial) -> float:
    """Return the mean accuracy of `trial` minus that of `baseline`, over the rows both measured."""
    return _mean(_paired_differences(trial, baseline))


def stderr(trial: Trial, baseline: Trial) -> float:
    """Return the standard error of `gain`."""
    return gain_and_stderr(trial, baseline)[1]


def gain_and_stderr(trial: Trial, baseline: Trial) -> tuple[float, float]:
    """Return `gain` and its standard error, for half the time of both."""
    differences = _paired_differences(trial, baseline)
    spread = math.fsum(_variance(*pair) / sum(pair[1]) for pair in differences.values())
    return _mean(differences), math.sqrt(spread) / len(differences)


def paired_counts(trial: Trial, baseline: Trial) -> Mapping[str, tuple[int, int, int]]:
    """Return by task on how many shared rows `trial` is worse, the same and better."""
    counts = {}
    for task, (values, occurrences) in _paired_differences(trial, baseline).items():
        signs = [(value > 0) - (value < 0) for value in values]
        worse, same, better = (
            sum(count for sign, count in zip(signs, occurrences, strict=True) if sign == wanted)
            for wanted in (-1, 0, 1)
        )
        counts[task] = (worse, same, better)
    return counts


def _paired_differences(trial: Trial, baseline: Trial) -> Mapping[str, tuple[Values, Counts]]:
    """Return by task the differences that occur on shared rows, rising, and on how many each."""
    differences = {}
    for task in sorted(trial.rows):  # a log may list tasks in another order
        ours, theirs = trial.rows[task], baseline.rows[task]
        rows = min(ours.count, theirs.count)
        if ours.values is None and theirs.values is None:
            differences[task] = _bit_differences(ours.bits[:rows], theirs.bits[:rows])
        else:
            change = np.subtract(ours.numbers[:rows], theirs.numbers[:rows])
            values, counts = np.unique(change, return_counts=True)
            differences[task] = values.tolist(), counts.tolist()
    return differences


def _bit_differences(ours: str, theirs: str) -> tuple[Values, Counts]:
    """The three differences of rows that are right or wrong; all bits are compared at once."""
    first, second = int(ours or "0", 2), int(theirs or "0", 2)
    differ = first ^ second
    better, worse = (differ & first).bit_count(), (differ & second).bit_count()
    return _SIGNS, (worse, len(ours) - worse - better, better)


def _mean(differences: Mapping[str, tuple[Values, Counts]]) -> float:
    means = (_total(values, counts) / sum(counts) for values, counts in differences.values())
    return math.fsum(means) / len(differences)


def _resampled_means(values: Values, counts: Counts, generator: np.random.Generator) -> Floats:
    """RESAMPLES means of as many rows as there are, drawn in blocks that fit in memory."""
    rows, block = sum(counts), max(1, _MOST_DRAWS // len(values))
    sizes = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
    shares = np.array(counts) / rows
    draws = (generator.multinomial(rows, shares, size) for size in sizes)
    return np.concatenate([drawn @ np.array(values) / rows for drawn in draws])


def _total(values: Iterable[float], counts: Counts) -> float:
    return math.fsum(value * count for value, count in zip(values, counts, strict=True))


def _variance(values: Values, counts: Counts) -> float:
    """Return the unbiased variance of the difference on one row."""
    rows = sum(counts)
    mean = _total(values, counts) / rows
    squares = _total((value**2 for value in values), counts)
    # Rounding can make it negative where all rows differ alike.
    return max(squares - rows * mean**2, 0.0) / max(rows - 1, 1)


def _bootstrap_seed(seed: int, trial: Trial, baseline: Trial) -> int:
    """Derive the seed from the pair, so that its samples do not depend on earlier comparisons."""
    text = json.dumps([seed, trial.recipe, baseline.recipe]).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:16], "big")
