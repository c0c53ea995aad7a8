"""A selection as people read it: the policies side by side, and the steps around the choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table

from hubmerge.cli.tables import line, percent, table
from hubmerge.lock import Lock, Pick, Swap
from hubmerge.scores import shown_names


@dataclass(frozen=True)
class Choice:
    """A selection as it is told: its lock, its table, its data, sentences beside it.

    `verdict` takes the place of the lock and says what was gained, and what to type next.
    """

    lock: Lock
    shown: Group
    data: object
    said: Sequence[str]
    verdict: Callable[[Path], str]


_COLUMNS = 14
_LEGEND = (
    "Validation accuracy of all together with that step in place of the chosen one: [chosen], = "
    "within the noise of it, . not measured."
)


def shown(made: Lock) -> Group:
    """What each policy chose, and what is known of the steps around the choice."""
    return Group(_policies(made), *steps_around(made).renderables)


def steps_around(made: Lock) -> Group:
    """What is known of the chosen model with one expert at another step."""
    return Group(_steps(made), line(_LEGEND))


def _policies(made: Lock) -> Table:
    rows = [_row(made, pick) for pick in made.picks]
    columns = (
        "policy", "steps", "parameters", "validation %>", f"over {made.rival}>", "merges so far>",
    )  # fmt: skip
    title = f"{made.method}: what each policy chose ({', '.join(_names(made))})"
    return table(columns, rows, title=title)


def _row(made: Lock, pick: Pick) -> tuple[object, ...]:
    chosen = "> " if pick.policy == made.chosen else "  "
    steps = " ".join(str(expert.step) for expert in pick.experts)
    accuracy = f"{percent(pick.accuracy)} ± {percent(pick.stderr)}"
    ended = " (cut short)" if pick.policy in made.cut else ""
    name, gain = chosen + pick.policy + ended, over(made, pick)
    return name, steps, _parameters(pick), accuracy, gain, pick.evaluations


def over(made: Lock, pick: Pick) -> str:
    """What a pick gains over the rival, with its interval; nothing for the rival itself."""
    if not pick.gain or pick.policy == made.rival:
        return ""
    value, low, high = (100 * part for part in pick.gain)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _parameters(pick: Pick) -> str:
    """What was tuned: the parameters that are numbers, and what the experts differ in."""
    said = [f"{name} {value:g}" for name, value in pick.params.items() if type(value) is float]
    for name in ("weight", "keep", "intruders"):
        values = [getattr(expert, name) for expert in pick.experts]
        if set(values) != {1.0}:
            said.append(f"{name}s " + " ".join(f"{value:g}" for value in values))
    return ", ".join(said) or "-"


def _steps(made: Lock) -> Table:
    """Tasks by steps; of more steps than fit, those that were measured."""
    # By label: one commit may hold many checkpoint-N folders.
    chosen = {expert.label for expert in made.pick().experts}
    steps = sorted({swap.step for row in made.swaps.values() for swap in row})
    if len(steps) > _COLUMNS:
        told = {s.step for row in made.swaps.values() for s in row if s.merged or s.label in chosen}
        steps = sorted(told)[-_COLUMNS:]
    rows = []
    for name, task in zip(_names(made), made.tasks, strict=True):
        its = made.swaps[task.id]
        at = {swap.step: swap for swap in reversed(its)}
        at |= {swap.step: swap for swap in reversed(its) if swap.merged is not None}
        at |= {swap.step: swap for swap in made.swaps[task.id] if swap.label in chosen}
        rows.append((name, *(_cell(at.get(step), chosen) for step in steps)))
    return table(("task", *(f"{step}>" for step in steps)), rows)


def _cell(swap: Swap | None, chosen: set[str]) -> str:
    if swap is None:
        return ""
    if swap.label in chosen:
        return f"[{percent(swap.merged)}]"
    if swap.merged is None:
        return "."
    return ("=" if swap.tied else "") + percent(swap.merged)


def _names(made: Lock) -> list[str]:
    return list(shown_names(task.id for task in made.tasks).values())


def verdict(made: Lock, seconds: float, path: Path) -> str:
    """What was gained, for what, and what to type next."""
    pick, cost = made.pick(), f"{made.spent.evaluations} merges in {seconds / 60:.1f} minutes"
    build = f"`hubmerge merge --lock {path}` builds it."
    value, low, high = (100 * part for part in pick.gain or (0.0, 0.0, 0.0))
    gain = f"{value:+.1f} points over {made.rival} (95 % interval {low:+.1f} to {high:+.1f})"
    if made.conclusive:
        return f"{made.chosen}: {gain}, by {cost}. {build}"
    if made.chosen == made.rival:
        return f"Inconclusive: nothing beats {made.rival} on validation, by {cost}. {build}"
    return (
        f"Inconclusive: {made.chosen} is {gain}, by {cost}. More validation examples would tell; "
        f"{build}"
    )
