"""hubmerge steps: the step revisions of repositories, with what their manifests tell."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.flows.sources import pin_revision
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import Point
from hubmerge.progress import Progress
from hubmerge.refs import Revision

BEST, STOPPED, LAST = "best", "early stop", "last"


@dataclass(frozen=True)
class Step:
    """One step revision: how it was found, and, where it has a manifest, what that tells.

    `validation` is its own validation accuracy, `anneal` and `tune` are how it was trained. `marks`
    single it out in its repository: `best` is the highest accuracy on its own task (the earliest of
    equals), which says nothing about merging; `early stop` ended the run; `last` is the last.
    """

    repo_id: str
    step: int
    revision: str
    sha: str
    found: str
    confidence: float
    task: str | None = None
    validation: float | None = None
    anneal: str | None = None
    tune: str | None = None
    marks: tuple[str, ...] = ()


def describe_steps(hub: Hub, repos: Sequence[str], progress: Progress) -> list[Step]:
    """The steps of every repository, rising; an empty repository gives none."""
    revisions = {repo: list_steps(hub, repo) for repo in repos}
    total, steps = sum(map(len, revisions.values())), list[Step]()
    for repo, found in revisions.items():
        described = []
        for revision in found:
            described.append(_described(hub, repo, revision))
            progress(revision.label, len(steps) + len(described), total)
        steps += marked(described)
    return steps


def marked(steps: Sequence[Step]) -> list[Step]:
    """The steps of one repository, rising, with the marks they have among each other."""
    measured = [step for step in steps if step.validation is not None]
    best = max(measured, key=lambda step: step.validation or 0.0, default=None)
    last = steps[-1] if steps else None
    return [dataclasses.replace(step, marks=tuple(_marks(step, best, last))) for step in steps]


def _marks(step: Step, best: Step | None, last: Step | None) -> Iterator[str]:
    if step is best:
        yield BEST
    yield from step.marks
    if step is last:
        yield LAST


def _described(hub: Hub, repo: str, revision: Revision) -> Step:
    manifest = pin_revision(hub, revision).manifest
    training = manifest.training if manifest else {}
    return Step(
        repo_id=repo,
        step=revision.step or 0,
        revision=revision.ref.revision or revision.ref.subfolder or "main",
        sha=revision.sha,
        found=revision.found,
        confidence=revision.confidence,
        task=(manifest.task_name or None) if manifest else None,
        validation=_accuracy(manifest.validation) if manifest else None,
        anneal=_text(training, "anneal"),
        tune=_text(training, "tune"),
        marks=(STOPPED,) if training.get("stopped") == "early" else (),
    )


def _accuracy(curve: Sequence[Point]) -> float | None:
    """The accuracy at the end of a curve; anybody may have written it, so it may be none."""
    accuracy = curve[-1].accuracy if curve else math.nan
    return accuracy if 0 <= accuracy <= 1 else None


def _text(training: Mapping[str, Any], key: str) -> str | None:
    """A setting, if it is text."""
    value = training.get(key)
    return value if isinstance(value, str) else None
