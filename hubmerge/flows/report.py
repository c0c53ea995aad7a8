"""hubmerge report: accuracy per step of experts, and of what was made of them, from the log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.errors import DataError
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import Pinned
from hubmerge.opening.references import every_step, pin, pin_revision
from hubmerge.refs import ModelRef
from hubmerge.scores import Score, ScoreLog, Upcycling, shown_names, upcycling

EXPERTS = "experts, each on its own task"


@dataclass(frozen=True)
class Report:
    """Curve name -> step -> mean raw accuracy over `tasks`, with its standard error.

    `left_out` tells, one line each, which models have no point and why.
    """

    split: str
    tasks: tuple[str, ...]
    curves: dict[str, dict[int, Upcycling]]
    left_out: tuple[str, ...]

    @property
    def steps(self) -> list[int]:
        return sorted({step for curve in self.curves.values() for step in curve})


def report(hub: Hub, refs: Sequence[ModelRef], log: ScoreLog, split: str) -> Report:
    """Gather what was measured of step revisions, and of merges and mixtures of one common step.

    A mixture stands at the step that its experts were at before, and its name tells its own step
    where several are shown. A repository without revision stands for all its steps. A point needs a
    score on every task of the experts. Raises DataError if nothing was measured at all, or not all
    by the same metric.
    """
    scores = [score for score in log.read() if score.split == split]
    models = _models(hub, refs)
    experts = [(one, m) for one in models if (m := one.manifest) and m.is_expert]
    merges = [(one, m) for one in models if (m := one.manifest) and not m.is_expert]
    tasks = tuple(sorted({str(m.task) for _, m in experts})) or _tasks_of(merges)
    left_out = [f"{one.revision.label}: no manifest" for one in models if one.manifest is None]

    found: dict[tuple[str, int], list[Score]] = {}
    for one, manifest in (*experts, *merges):
        own = {s.task: s for s in scores if s.model == manifest.digest and s.task in tasks}
        step = manifest.step if manifest.is_expert else _common_step(manifest)
        if step is None:
            left_out.append(f"{one.revision.label}: its experts are at different steps")
        elif not own:
            left_out.append(f"{one.revision.label}: not measured on {split}")
        elif manifest.is_expert:
            mine = [s for s in own.values() if s.task == manifest.task]
            found.setdefault((EXPERTS, step), []).extend(mine)
        else:
            found[_curve_name(manifest, merges), step] = list(own.values())

    _check_metrics(score for own_scores in found.values() for score in own_scores)
    curves: dict[str, dict[int, Upcycling]] = {}
    for (name, step), own_scores in sorted(found.items(), key=lambda item: item[0]):
        point = upcycling(own_scores)
        if point and point.tasks == len(tasks):
            curves.setdefault(name, {})[step] = point
        else:
            left_out.append(f"{name}, step {step}: {len(own_scores)} of {len(tasks)} tasks")
    if not curves:
        raise DataError(
            f"None of these was measured on {split}.", "Run `hubmerge eval` on them first."
        )
    names = shown_names(tasks)
    return Report(split, tuple(names.values()), curves, tuple(left_out))


def _check_metrics(scores: Iterable[Score]) -> None:
    metrics = sorted({score.metric for score in scores})
    if len(metrics) > 1:
        raise DataError(
            f"The tasks are measured differently, by {' and '.join(metrics)}: they have no mean.",
            "Report on tasks of one metric at a time; `hubmerge eval` shows them side by side.",
        )


def _models(hub: Hub, refs: Sequence[ModelRef]) -> list[Pinned]:
    found: list[Pinned] = []
    for ref in refs:
        if ref.repo_id is None or ref.revision:
            found.append(pin(hub, ref))
        else:
            found += [pin_revision(hub, step) for step in every_step(hub, ref.repo_id)]
    return found


def _tasks_of(merges: Sequence[tuple[Pinned, Manifest]]) -> tuple[str, ...]:
    """Without experts among the models, the tasks are those of the merged ones."""
    return tuple(sorted({str(e.task) for _, manifest in merges for e in manifest.experts}))


def _common_step(manifest: Manifest) -> int | None:
    steps = {expert.step for expert in manifest.experts}
    return steps.pop() if len(steps) == 1 else None


def _curve_name(manifest: Manifest, merges: Sequence[tuple[Pinned, Manifest]]) -> str:
    """The method, and the parameters in which merges of the method differ here."""
    alike = [_params(other) for _, other in merges if other.method == manifest.method]
    differing = [
        f"{name}={value}"
        for name, value in sorted(_params(manifest).items())
        if any(params.get(name) != value for params in alike)
    ]
    return " ".join([str(manifest.method), *differing])


def _params(manifest: Manifest) -> Mapping[str, Any]:
    """What tells merges of one method apart; mixtures by how long they were trained, too."""
    trained = {"trained": manifest.step} if manifest.is_moe else {}
    return {**manifest.params, **trained}
