"""Statistics over seeds: mean, standard error, Student's t and Holm's correction.

Seeds are few, so intervals and p values are Student's: a standard error of three seeds is itself
uncertain. With one seed there is neither an interval nor a p value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

LEVEL = 0.95


def mean(values: Sequence[float]) -> float:
    """The mean; NaN for no values."""
    return math.fsum(values) / len(values) if values else math.nan


def stderr(values: Sequence[float]) -> float:
    """The standard error of the mean over seeds; 0 for a single seed, where it is not known."""
    if len(values) < 2:
        return 0.0
    average = mean(values)
    variance = math.fsum((value - average) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, float] | None:
    """The two-sided confidence interval of the mean by Student's t; None for fewer than two."""
    if len(values) < 2:
        return None
    half = student_quantile((1 - level) / 2, len(values) - 1) * stderr(values)
    return mean(values) - half, mean(values) + half


def p_above(values: Sequence[float], threshold: float = 0.0) -> float | None:
    """The one-sided p value of Student's t test that the mean exceeds a threshold.

    It is the probability of a mean so far above if the true one is at the threshold. None for
    fewer than two values; 0 or 1 for equal values, which have no spread (1 at the threshold).
    """
    if len(values) < 2:
        return None
    excess, error = mean(values) - threshold, stderr(values)
    if not error:
        return 0.0 if excess > 0 else 1.0
    return student_tail(excess / error, len(values) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values adjusted for testing all of them, in the same order.

    To call those of at most 0.05 true is wrong about any of them with probability 0.05 or less.
    Source: Holm, A Simple Sequentially Rejective Multiple Test Procedure (1979).
    """
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def student_tail(t: float, degrees: int) -> float:
    """P(T > t) for Student's t with a whole number of degrees of freedom, at least 1.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4.
    Its absolute error is about 1e-15.
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    is_odd = degrees % 2
    term = total = cosine if is_odd else 1.0
    for power in range(2 + is_odd, degrees - 1, 2):
        term *= cosine * cosine * (power - 1) / power
        total += term
    if is_odd:
        between = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        between = sine * total
    tail = (1 - between) / 2
    return tail if t >= 0 else 1 - tail


def student_quantile(tail: float, degrees: int) -> float:
    """The t that is exceeded with probability `tail`, which is between 1e-9 and 0.5."""
    low, high = 0.0, 1.0
    while student_tail(high, degrees) > tail:
        low, high = high, 2 * high
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if student_tail(middle, degrees) > tail else (low, middle)
    return (low + high) / 2
