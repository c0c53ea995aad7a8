"""hubmerge steps: list the step revisions of repositories, including those mined from history."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import find_steps, format_ref
from hubmerge.opening.opened_model import PinnedModel
from hubmerge.opening.references import pin_revisions
from hubmerge.progress import Progress
from hubmerge.refs import Revision, is_sha

BEST, STOPPED, LAST = "best", "early stop", "last"


@dataclass(frozen=True)
class Step:
    """One step revision: how it was found, and the content of its manifest if it has one.

    `step` is None if it is not known: for an epoch, the end of training, or a number that counts
    checkpoints. `confidence` (0 to 1) is how sure the step is, `run` the run of the repository's
    history that it belongs to, `note` a remark for the user, and `ref` what to type for it.

    `validation` is the accuracy on its own task; `anneal` and `tune` are how it was trained.
    `marks` compares it with the other steps of its repository: `best` has the highest accuracy on
    its own task (the earliest of equals), which does not predict merging; `early stop` ended the
    run; `last` is the last step.
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
    """Return the steps of every repository, run after run and rising."""
    steps = list[Step]()
    for repo in dict.fromkeys(repos):
        revisions = find_steps(hub, repo, progress)
        # Commits pushed by a Trainer have no manifest, and there may be thousands.
        pinned = iter(pin_revisions(hub, [r for r in revisions if not r.run], progress))
        models = [PinnedModel(r, None) if r.run else next(pinned) for r in revisions]
        steps += add_marks(
            [_describe(r, model) for r, model in zip(revisions, models, strict=True)]
        )
    return steps


def add_marks(steps: Sequence[Step]) -> list[Step]:
    """Return the steps of one repository, rising, with their marks."""
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


def _describe(revision: Revision, model: PinnedModel) -> Step:
    manifest = model.manifest
    training = manifest.training if manifest else {}
    return Step(
        repo_id=str(revision.ref.repo_id),
        step=revision.step,
        revision=_revision_name(revision),
        sha=revision.sha,
        found=revision.origin,
        confidence=revision.confidence,
        ref=format_ref(revision),
        subfolder=revision.ref.subfolder,
        run=revision.run,
        note=revision.note,
        task=(manifest.task_name or None) if manifest else None,
        validation=manifest.own_accuracy if manifest else None,
        anneal=_text_setting(training, "anneal"),
        tune=_text_setting(training, "tune"),
        marks=(STOPPED,) if training.get("stopped") == "early" else (),
    )


def _revision_name(revision: Revision) -> str:
    """Return the tag, branch or folder, else the commit with the folder in it."""
    ref = revision.ref
    if ref.revision and not is_sha(ref.revision):
        return ref.revision
    commit = revision.sha[:12] if ref.revision else ""
    return "/".join(filter(None, (commit, ref.subfolder))) or "main"


def _text_setting(training: Mapping[str, Any], key: str) -> str | None:
    """Return a setting if it is text, else None."""
    value = training.get(key)
    return value if isinstance(value, str) else None
