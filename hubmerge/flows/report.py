"""hubmerge report: accuracy per step of experts and of merges, from manifests and the score log."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from hubmerge.errors import DataError
from hubmerge.flows.sources import Pinned, pin, with_every_step
from hubmerge.hub.client import Hub
from hubmerge.refs import ModelRef
from hubmerge.scores import Score, ScoreLog, Upcycling, upcycling

EXPERTS = "experts, each on its own task"


@dataclass
class Report:
    """Curve name -> step -> mean raw accuracy over the tasks, with its standard error."""

    split: str
    curves: dict[str, dict[int, Upcycling]] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()

    @property
    def steps(self) -> list[int]:
        return sorted({step for curve in self.curves.values() for step in curve})


def report(hub: Hub, refs: Sequence[ModelRef], log: ScoreLog, split: str) -> Report:
    """Gather what was measured of step revisions and of merges of one common step.

    A repository without revision stands for all its steps. A step where some expert was not
    measured is left out. Raises DataError if nothing was measured at all.
    """
    scores = [score for score in log.read() if score.split == split]
    experts: dict[str, dict[int, Score]] = {}
    merges: dict[str, dict[int, list[Score]]] = defaultdict(dict)
    for pinned in _models(hub, refs):
        manifest = pinned.manifest
        own = [s for s in scores if manifest and s.model == manifest.digest]
        if manifest is None or not own:
            continue
        if manifest.kind == "expert" and manifest.step is not None:
            task = str((manifest.task or {}).get("name"))
            mine = [score for score in own if score.task_name == task]
            if mine:
                experts.setdefault(task, {})[manifest.step] = mine[0]
        elif (step := _common_step(pinned)) is not None:
            merges[str(manifest.method)][step] = own
    return _report(split, experts, merges)


def _report(
    split: str,
    experts: dict[str, dict[int, Score]],
    merges: dict[str, dict[int, list[Score]]],
) -> Report:
    found = Report(split, tasks=tuple(sorted(experts)))
    steps = set.intersection(*(set(curve) for curve in experts.values())) if experts else set()
    rows = {step: [curve[step] for curve in experts.values()] for step in sorted(steps)}
    for name, curve in ((EXPERTS, rows), *sorted(merges.items())):
        points = {step: point for step in sorted(curve) if (point := upcycling(curve[step]))}
        if points:
            found.curves[name] = points
    if not found.curves:
        raise DataError(
            f"None of these was measured on {split}.", "Run `hubmerge eval` on them first."
        )
    return found


def _models(hub: Hub, refs: Sequence[ModelRef]) -> list[Pinned]:
    found = []
    for ref in refs:
        if ref.is_local or ref.revision:
            found.append(pin(hub, ref))
        else:
            found += [pin(hub, step) for step in with_every_step(hub, ref)]
    return found


def _common_step(pinned: Pinned) -> int | None:
    steps = {expert.step for expert in pinned.manifest.experts} if pinned.manifest else set()
    return steps.pop() if len(steps) == 1 else None
