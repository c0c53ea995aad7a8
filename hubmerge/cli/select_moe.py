"""hubmerge select --target moe"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table

from hubmerge.cli.options import settings_of
from hubmerge.cli.selection_tables import Choice, over, steps_around
from hubmerge.cli.tables import line, percent, table
from hubmerge.errors import UsageError
from hubmerge.lock import Lock
from hubmerge.specs import MoeSpec, validated

if TYPE_CHECKING:
    from hubmerge.choosing.merge_selection import Request
    from hubmerge.choosing.moe_selection import Prepared
    from hubmerge.cli.session import Session
    from hubmerge.flows.select_moe import Selected
    from hubmerge.hub.client import Hub
    from hubmerge.progress import Progress

_PAPER = "arXiv 2506.14126: mixtures start best from undertrained experts"
_LEGEND = (
    "Mean validation accuracy in percent after so many training steps, each a run of its own under "
    "its whole schedule. Short runs exaggerate gaps and punish the earliest starts. Intervals are "
    "over rows and for each start alone: another training seed moves the numbers too, and of many "
    "starts one is lucky."
)


def asked_mixture(settings: Sequence[str]) -> MoeSpec:
    """The mixture that is chosen for; raises UsageError with all that is wrong with --set."""
    said = settings_of(settings, "train_steps=300")
    if "push_every" in said:
        raise UsageError(
            "--set push_every has no say in the choice.",
            "Say it when the mixture is made: `hubmerge moerge --lock ... --push-every`.",
        )
    return validated(MoeSpec, said, "--set")


def choose_start(
    session: Session,
    hub: Hub,
    request: Request,
    asked: MoeSpec,
    dry_run: bool,
    progress: Progress,
) -> Choice | None:
    """Choose what a mixture starts from; None after a dry run, which is shown."""
    from hubmerge.choosing.moe_selection import MixtureRequest
    from hubmerge.flows import select_moe as flow
    from hubmerge.flows.select import few_rows

    extracted = session.home / "extracted"
    wanted = MixtureRequest(**vars(request), asked=asked, extracted=extracted)
    prepared = flow.prepare(hub, wanted, progress)
    rows = {task.name: prepared.bench.rows[task.id] for task in prepared.bench.pool.tasks}
    for note in few_rows(rows):
        session.say(f"Note: {note}")
    if dry_run:
        session.show(_plan(prepared), _plan_data(prepared))
        return None
    selected = flow.select(prepared, session.trials, progress)
    return Choice(
        lock=selected.lock,
        shown=_shown(selected),
        data=_data(selected),
        said=[f"The budget ended {name} early." for name in selected.lock.cut],
        verdict=partial(_verdict, selected),
    )


def _shown(selected: Selected) -> Group:
    made = selected.lock
    null = line(f"The null is {made.rival} ({_PAPER}): {_outcome(made)}.")
    return Group(_race(selected), steps_around(made), null, line(_LEGEND))


def _race(selected: Selected) -> Table:
    """Every start, what it reached on each rung, and what became of it."""
    made, full = selected.lock, selected.rungs[0].horizon
    horizons = sorted({rung.horizon for rung in selected.rungs})
    picks = {pick.policy: pick for pick in made.picks}
    rows = []
    for name in dict.fromkeys([*selected.steps, *picks]):
        known = {r.horizon: r.accuracies[name] for r in selected.rungs if name in r.accuracies}
        if name in picks:
            known[full] = picks[name].accuracy
        steps = selected.steps.get(name) or [e.step or 0 for e in picks[name].experts]
        rows.append((
            ("> " if name == made.chosen else "  ") + name,
            " ".join(map(str, steps)),
            *(percent(known[horizon]) if horizon in known else "" for horizon in horizons),
            over(made, picks[name]) if name in picks else "",
            _fate(selected, name),
        ))  # fmt: skip
    after = [f"{horizon}>" for horizon in horizons]
    title = "moe: validation % of each start by training steps"
    return table(("start", "steps", *after, f"over {made.rival}>", "verdict"), rows, title=title)


def _fate(selected: Selected, name: str) -> str:
    made = selected.lock
    pick = next((pick for pick in made.picks if pick.policy == name), None)
    if name == made.rival:
        return "the null"
    if pick and pick.gain:
        _, low, high = pick.gain
        told = "better" if low > 0 else "worse" if high < 0 else "within the noise"
        return f"{told}, chosen" if name == made.chosen else told
    if name in made.cut:
        return "the budget ended"
    raced = [rung for rung in selected.rungs if name in rung.accuracies]
    return f"out after {raced[-1].horizon}"


def _outcome(made: Lock) -> str:
    if made.chosen == made.rival:
        return f"nothing beats {made.rival} beyond the noise, so it is chosen"
    if made.conclusive:
        return f"{made.chosen} beats {made.rival} beyond the noise"
    return f"{made.chosen}, which was asked for, does not beat {made.rival} beyond the noise"


def _verdict(selected: Selected, path: Path) -> str:
    """What was gained, for what, and what to type next."""
    made = selected.lock
    cost = (
        f"by {made.spent.evaluations} mixtures, {selected.train_steps} training steps in "
        f"{selected.seconds / 60:.1f} minutes"
    )
    build = f"`hubmerge moerge --lock {path}` trains it."
    gain = over(made, made.pick())
    if made.conclusive:
        return f"{made.chosen}: {gain} points over the null, {made.rival}, {cost}. {build}"
    return f"Inconclusive: {_outcome(made)}, {cost}. {build}"


def _data(selected: Selected) -> dict[str, object]:
    """The lock, and the race beside it."""
    return {
        **json.loads(selected.lock.to_bytes()),
        "rungs": [dataclasses.asdict(rung) for rung in selected.rungs],
        "train_steps": selected.train_steps,
    }


def _plan(prepared: Prepared) -> Group:
    rows = [
        (name, " ".join(map(str, prepared.steps(name))), " ".join(map(str, horizons)))
        for name, horizons in _planned(prepared)
    ]
    title = f"would choose what a mixture starts from; the null is {prepared.arms.null}"
    cost = (
        f"The race takes {prepared.race_steps} training steps; the neighbours of its choice "
        f"{prepared.sweep_steps} more at most."
    )
    return Group(table(("start", "steps", "trained for at most"), rows, title=title), line(cost))


def _planned(prepared: Prepared) -> Iterator[tuple[str, Sequence[int]]]:
    for name in prepared.arms.places:
        yield name, prepared.horizons[-1:] if name in prepared.sure else prepared.horizons


def _plan_data(prepared: Prepared) -> dict[str, object]:
    return {
        "target": prepared.request.method,
        "null": prepared.arms.null,
        "starts": {name: list(prepared.steps(name)) for name in prepared.arms.places},
        "horizons": list(prepared.horizons),
        "race_steps": prepared.race_steps,
        "sweep_steps": prepared.sweep_steps,
    }
