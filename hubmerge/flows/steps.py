"""hubmerge steps: the step revisions of repositories, mined ones too, and their manifests."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import find_steps, typed
from hubmerge.manifest import Point
from hubmerge.opening.references import pin_revision
from hubmerge.progress import Progress
from hubmerge.refs import Revision, is_sha

BEST, STOPPED, LAST = "best", "early stop", "last"
_AT_ONCE = 8


@dataclass(frozen=True)
class Step:
    """One step revision: how it was found, and, where it has a manifest, what that tells.

    `step` is None where nothing says it: for an epoch, an end of training, or a number that counts
    checkpoints. `confidence`, 0 to 1, says how sure it is, `run` which run of the repository's
    history it belongs to, `note` what one should know, and `ref` what to type for it.

    `validation` is its own validation accuracy, `anneal` and `tune` are how it was trained. `marks`
    single it out in its repository: `best` is the highest accuracy on its own task (the earliest of
    equals), which says nothing about merging; `early stop` ended the run; `last` is the last.
    """

    repo_id: str
    step: int | None
    revision: str
    sha: str
    found: str
    confidence: float
    ref: str
    subfolder: str | None = None
    run: int | None = None
    note: str = ""
    task: str | None = None
    validation: float | None = None
    anneal: str | None = None
    tune: str | None = None
    marks: tuple[str, ...] = ()


def describe_steps(hub: Hub, repos: Sequence[str], progress: Progress) -> list[Step]:
    """The steps of every repository, run after run and rising; an empty one gives none."""
    revisions = [find_steps(hub, repo, progress) for repo in dict.fromkeys(repos)]
    total, steps = sum(map(len, revisions)), list[Step]()
    for found in revisions:
        described = []
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for step in pool.map(lambda one: _described(hub, one), found):
                described.append(step)
                progress(step.ref, len(steps) + len(described), total)
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


def _described(hub: Hub, revision: Revision) -> Step:
    # What a Trainer pushed has none, and there may be thousands.
    manifest = None if revision.run else pin_revision(hub, revision).manifest
    training = manifest.training if manifest else {}
    return Step(
        repo_id=str(revision.ref.repo_id),
        step=revision.step,
        revision=_name(revision),
        sha=revision.sha,
        found=revision.found,
        confidence=revision.confidence,
        ref=typed(revision),
        subfolder=revision.ref.subfolder,
        run=revision.run,
        note=revision.note,
        task=(manifest.task_name or None) if manifest else None,
        validation=_accuracy(manifest.validation) if manifest else None,
        anneal=_text(training, "anneal"),
        tune=_text(training, "tune"),
        marks=(STOPPED,) if training.get("stopped") == "early" else (),
    )


def _name(revision: Revision) -> str:
    """The tag, branch or folder, else the commit and the folder in it."""
    ref = revision.ref
    if ref.revision and not is_sha(ref.revision):
        return ref.revision
    commit = revision.sha[:12] if ref.revision else ""
    return "/".join(filter(None, (commit, ref.subfolder))) or "main"


def _accuracy(curve: Sequence[Point]) -> float | None:
    """The accuracy at the end of a curve; anybody may have written it, so it may be none."""
    accuracy = curve[-1].accuracy if curve else math.nan
    return accuracy if 0 <= accuracy <= 1 else None


def _text(training: Mapping[str, Any], key: str) -> str | None:
    """A setting, if it is text."""
    value = training.get(key)
    return value if isinstance(value, str) else None
