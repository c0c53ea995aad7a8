"""hubmerge report: accuracy per step of experts, and of their merges, from the score log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.errors import DataError
from hubmerge.hub.client import Hub
from hubmerge.manifest import Manifest
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.references import pin, pin_revisions, require_steps
from hubmerge.progress import no_progress
from hubmerge.refs import ModelRef
from hubmerge.scores import Score, ScoreLog, UpcyclingScore, display_names, upcycling

EXPERTS = "experts, each on its own task"


@dataclass(frozen=True)
class AccuracyReport:
    """Curve name -> step -> mean raw accuracy over `tasks`, with its standard error.

    `left_out` has one line for each model without a point, with the reason.
    """

    split: str
    tasks: tuple[str, ...]
    curves: dict[str, dict[int, UpcyclingScore]]
    left_out: tuple[str, ...]

    @property
    def steps(self) -> list[int]:
        return sorted({step for curve in self.curves.values() for step in curve})


def report_accuracy(
    hub: Hub, refs: Sequence[ModelRef], log: ScoreLog, split: str
) -> AccuracyReport:
    """Collect the scores of step revisions, and of merges and mixtures with one common step.

    A mixture of experts is shown at the step of its experts; its curve's name has its own step if
    there are several. A repository without a revision means all its steps. Experts of one task that
    are in other repositories or tuned in another way have a curve of their own. A point needs a
    score on every task of the experts. Raises DataError if there are no scores, or several metrics.
    """
    scores = [score for score in log.read() if score.split == split]
    models = _pin_models(hub, refs)
    experts = [(model, m) for model in models if (m := model.manifest) and m.is_expert]
    expert_curves = _expert_curves(experts)
    merges = [(model, m) for model in models if (m := model.manifest) and not m.is_expert]
    tasks = tuple(sorted({str(m.task) for _, m in experts})) or _tasks_of_merges(merges)
    left_out = [
        f"{model.revision.label}: no manifest" for model in models if model.manifest is None
    ]

    scores_by_point: dict[tuple[str, int], list[Score]] = {}
    for model, manifest in (*experts, *merges):
        own_scores = {s.task: s for s in scores if s.model == manifest.digest and s.task in tasks}
        step = manifest.step if manifest.is_expert else _common_step(manifest)
        if step is None:
            left_out.append(f"{model.revision.label}: its experts are at different steps")
        elif not own_scores:
            left_out.append(f"{model.revision.label}: not measured on {split}")
        elif manifest.is_expert:
            expert_scores = [s for s in own_scores.values() if s.task == manifest.task]
            curve = expert_curves[_repetition(model, manifest)]
            scores_by_point.setdefault((curve, step), []).extend(expert_scores)
        else:
            scores_by_point[_curve_name(manifest, merges), step] = list(own_scores.values())

    _check_metrics(score for point_scores in scores_by_point.values() for score in point_scores)
    curves: dict[str, dict[int, UpcyclingScore]] = {}
    for (name, step), point_scores in sorted(scores_by_point.items(), key=lambda item: item[0]):
        point = upcycling(point_scores)
        if point and point.tasks == len(tasks):
            curves.setdefault(name, {})[step] = point
        else:
            left_out.append(f"{name}, step {step}: {len(point_scores)} of {len(tasks)} tasks")
    if not curves:
        raise DataError(
            f"None of these was measured on {split}.", "Run `hubmerge eval` on them first."
        )
    names = display_names(tasks)
    return AccuracyReport(split, tuple(names.values()), curves, tuple(left_out))


def _repetition(model: PinnedModel, manifest: Manifest) -> tuple[str, str, str]:
    """What the steps of one expert have in common: their task, how it was tuned, and where."""
    ref = model.revision.ref
    tune = str(manifest.training.get("tune") or ("lora" if manifest.layout == "peft" else "full"))
    return str(manifest.task), tune, ref.repo_id or str(ref.path and ref.path.parent)


def _expert_curves(
    experts: Iterable[tuple[PinnedModel, Manifest]],
) -> dict[tuple[str, str, str], str]:
    """The name of the curve of each expert: one curve has at most one expert of a task.

    Where tasks have several, those tuned alike share a curve, in the order of their names here.
    """
    by_task: dict[str, list[tuple[str, str, str]]] = {}
    for key in dict.fromkeys(_repetition(model, manifest) for model, manifest in experts):
        by_task.setdefault(key[0], []).append(key)
    tunes = sorted({key[1] for keys in by_task.values() for key in keys})
    most = max(map(len, by_task.values()), default=0)
    names: dict[tuple[str, str, str], str] = {}
    for keys in by_task.values():
        for tune in tunes:
            alike = [key for key in keys if key[1] == tune]
            for number, key in enumerate(alike, 1):
                names[key] = EXPERTS if most == 1 else f"{tune} {EXPERTS}"
                names[key] += f" ({number})" if number > 1 else ""
    return names


def _check_metrics(scores: Iterable[Score]) -> None:
    metrics = sorted({score.metric for score in scores})
    if len(metrics) > 1:
        raise DataError(
            f"The tasks are measured differently, by {' and '.join(metrics)}: they have no mean.",
            "Report on tasks of one metric at a time; `hubmerge eval` shows all of them.",
        )


def _pin_models(hub: Hub, refs: Sequence[ModelRef]) -> list[PinnedModel]:
    models: list[PinnedModel] = []
    for ref in refs:
        if ref.repo_id is None or ref.revision:
            models.append(pin(hub, ref))
        else:
            models += pin_revisions(hub, require_steps(hub, ref.repo_id), no_progress)
    return models


def _tasks_of_merges(merges: Sequence[tuple[PinnedModel, Manifest]]) -> tuple[str, ...]:
    """Return the tasks of the merged experts, for a report without experts of its own."""
    return tuple(sorted({str(e.task) for _, manifest in merges for e in manifest.experts}))


def _common_step(manifest: Manifest) -> int | None:
    steps = {expert.step for expert in manifest.experts}
    return steps.pop() if len(steps) == 1 else None


def _curve_name(manifest: Manifest, merges: Sequence[tuple[PinnedModel, Manifest]]) -> str:
    """Name a curve by the method and the parameters in which merges of that method differ here."""
    same_method = [_params(other) for _, other in merges if other.method == manifest.method]
    differing = [
        f"{name}={value}"
        for name, value in sorted(_params(manifest).items())
        if any(params.get(name) != value for params in same_method)
    ]
    return " ".join([str(manifest.method), *differing])


def _params(manifest: Manifest) -> Mapping[str, Any]:
    """Return what distinguishes merges of one method; for mixtures, also their training steps."""
    training = {"trained": manifest.step} if manifest.is_moe else {}
    return {**manifest.params, **training}
