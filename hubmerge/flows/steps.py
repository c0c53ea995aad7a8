"""hubmerge steps: the step revisions of repositories, with what their manifests tell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hubmerge.flows.sources import pin_revision
from hubmerge.hub.client import Hub
from hubmerge.hub.resolve import list_steps
from hubmerge.progress import Progress
from hubmerge.refs import Revision


@dataclass(frozen=True)
class Step:
    """One step revision: how it was found, and, where it has a manifest, its task and accuracy."""

    repo_id: str
    step: int
    revision: str
    sha: str
    found: str
    confidence: float
    task: str | None = None
    validation: float | None = None


def describe_steps(hub: Hub, repos: Sequence[str], progress: Progress) -> list[Step]:
    """The steps of every repository, rising; an empty repository gives none."""
    revisions = [(repo, revision) for repo in repos for revision in list_steps(hub, repo)]
    steps = []
    for done, (repo, revision) in enumerate(revisions, start=1):
        steps.append(_described(hub, repo, revision))
        progress(revision.label, done, len(revisions))
    return steps


def _described(hub: Hub, repo: str, revision: Revision) -> Step:
    manifest = pin_revision(hub, revision).manifest
    points = manifest.validation if manifest else ()
    return Step(
        repo_id=repo,
        step=revision.step or 0,
        revision=revision.ref.revision or revision.ref.subfolder or "main",
        sha=revision.sha,
        found=revision.found,
        confidence=revision.confidence,
        task=(manifest.task_name or None) if manifest else None,
        validation=points[-1].accuracy if points else None,
    )
