"""Which steps of a run are pushed, and the learning rate at each step."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from hubmerge.errors import UsageError
from hubmerge.specs import TrainSpec

_POWERS = re.compile(r"(\d+)\^k")


def push_steps(rule: str, total: int) -> tuple[int, ...]:
    """The steps that become revisions, rising, the last step always among them.

    `2^k` gives 1, 2, 4, ...; a number n gives n, 2n, 3n, ...; `a,b,c` gives just these. Raises
    UsageError for a rule that is none of the three, or a step beyond `total`.
    """
    powers = _POWERS.fullmatch(rule)
    if powers and int(powers[1]) >= 2:
        steps = _powers(int(powers[1]), total)
    elif rule.isdecimal() and int(rule) > 0:
        steps = set(range(int(rule), total + 1, int(rule)))
    else:
        steps = _listed(rule, total)
    return tuple(sorted(steps | {total}))


def _powers(base: int, total: int) -> set[int]:
    steps, step = set(), 1
    while step <= total:
        steps.add(step)
        step *= base
    return steps


def _listed(rule: str, total: int) -> set[int]:
    parts = [part.strip() for part in rule.split(",")]
    if len(parts) < 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(
            f"--push-every {rule!r} is no rule for steps.",
            "Write 2^k (1, 2, 4, ...), a number (every so many steps) or a list such as 8,64,512.",
        )
    beyond = [part for part in parts if int(part) > total]
    if beyond:
        raise UsageError(
            f"--push-every asks for step {beyond[0]}, but the run has {total} steps.",
            f"Write --steps {max(map(int, parts))}, or leave it out.",
        )
    return {int(part) for part in parts}


def rate(step: int, total: int, warmup: int, schedule: str, cooldown: int) -> float:
    """The share of the peak learning rate used for update number `step` (from 0), in [0, 1].

    Linear warm-up, then constant (what a plateau leaves of it is not decided here), half a cosine
    or a line to zero, or warm-up-stable-decay (arXiv 2404.06395): constant until the last
    `cooldown` updates. Warm-up and cosine as the task-vectors code has them (arXiv 2212.04089).
    """
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "wsd":
        return cooling(step - (total - cooldown), cooldown)
    if schedule in ("constant", "plateau"):
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def cooling(step: int, length: int) -> float:
    """The share left at update number `step` (from 0) of a cool-down: a line that ends above 0."""
    return min(1.0, (length - step) / (length + 1))


def cooldown_length(steps: int, share: float) -> int:
    """A cool-down's part of so many steps, at least one."""
    return max(1, round(share * steps))


def branch_points(pushed: Sequence[int], share: float) -> dict[int, list[int]]:
    """Where a constant trunk is left: its step -> the pushed steps whose cool-down starts there."""
    points: dict[int, list[int]] = {}
    for step in pushed:
        points.setdefault(step - cooldown_length(step, share), []).append(step)
    return points


def check_even(spec: TrainSpec, processes: int) -> None:
    """Raise UsageError for a batch that does not split evenly over processes and parts."""
    shares = spec.accumulate * processes
    if spec.batch % shares:
        raise UsageError(
            f"A batch of {spec.batch} does not split evenly over {processes} processes x "
            f"{spec.accumulate} accumulated parts.",
            f"Write --batch {-(-spec.batch // shares) * shares}.",
        )
