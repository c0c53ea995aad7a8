"""Which steps of a run are pushed, and the learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec

_POWER_RULE = re.compile(r"(\d+)\^k")


def push_steps(rule: str, total: int) -> tuple[int, ...]:
    """The steps that become revisions, in rising order and always including the last step.

    `2^k` gives 1, 2, 4, ...; a number n gives n, 2n, 3n, ...; `a,b,c` gives exactly these steps.
    Raises UsageError for any other rule, or a step beyond `total`.
    """
    powers = _POWER_RULE.fullmatch(rule)
    if powers and int(powers[1]) >= 2:
        steps = _power_steps(int(powers[1]), total)
    elif rule.isdecimal() and int(rule) > 0:
        steps = set(range(int(rule), total + 1, int(rule)))
    else:
        steps = _listed_steps(rule, total)
    return tuple(sorted(steps | {total}))


def is_due(rule: str, step: int) -> bool:
    """Whether `rule` includes a step, for a run whose length need not be known.

    Raises UsageError for a rule that `push_steps` refuses whatever the length.
    """
    if (powers := _POWER_RULE.fullmatch(rule)) and int(powers[1]) >= 2:
        while step > 1 and step % int(powers[1]) == 0:
            step //= int(powers[1])
        return step == 1
    if rule.isdecimal() and int(rule) > 0:
        return step > 0 and step % int(rule) == 0
    return step in _parse_list(rule)


def _power_steps(base: int, total: int) -> set[int]:
    steps, step = set(), 1
    while step <= total:
        steps.add(step)
        step *= base
    return steps


def _listed_steps(rule: str, total: int) -> set[int]:
    steps = _parse_list(rule)
    beyond = [step for step in steps if step > total]
    if beyond:
        raise UsageError(
            f"--push-every includes step {beyond[0]}, but the run has {total} steps.",
            f"Write --steps {max(steps)}, or leave it out.",
        )
    return set(steps)


def _parse_list(rule: str) -> list[int]:
    parts = [part.strip() for part in rule.split(",")]
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--push-every {rule!r} is not a rule for steps.",
            "Write 2^k (1, 2, 4, ...), a number n (every n steps) or a list such as 8,64,512.",
        )
    return [int(part) for part in parts]


def lr_factor(step: int, total: int, warmup: int, schedule: str, cooldown: int) -> float:
    """The factor on the peak learning rate for update number `step` (from 0), in [0, 1].

    Linear warm-up, then the schedule: `constant` or `plateau` (whose reductions `plateau_factor`
    computes), `cosine` or `linear` decay to zero, or `wsd`, warm-up-stable-decay (arXiv
    2404.06395): constant until the last `cooldown` updates. Warm-up and cosine are those of the
    task-vectors code (arXiv 2212.04089).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "wsd":
        return cooldown_factor(step - (total - cooldown), cooldown)
    if schedule in ("constant", "plateau"):
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def cooldown_factor(step: int, length: int) -> float:
    """The factor at update number `step` (from 0) of a cool-down: linear, and always above 0."""
    return min(1.0, (length - step) / (length + 1))


def cooldown_length(steps: int, share: float) -> int:
    """The length of the cool-down in a run of `steps` steps, at least 1."""
    return max(1, round(share * steps))


def branch_points(pushed: Sequence[int], share: float) -> dict[int, list[int]]:
    """Branch step of the trunk -> the pushed steps whose cool-down starts there."""
    points: dict[int, list[int]] = {}
    for step in pushed:
        points.setdefault(step - cooldown_length(step, share), []).append(step)
    return points


def check_even_batches(spec: TrainSpec, processes: int) -> None:
    """Raise UsageError if the batch does not split evenly over processes and micro-batches."""
    parts = spec.accumulate * processes
    if spec.batch % parts:
        raise UsageError(
            f"A batch of {spec.batch} does not split evenly over {processes} processes x "
            f"{spec.accumulate} micro-batches.",
            f"Write --batch {-(-spec.batch // parts) * parts}.",
        )
