"""The published steps of a repository, and what their manifests say about each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from hubmerge.errors import IntegrityError
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.refs import step_of
from hubmerge.server.http_errors import HttpError
from hubmerge.server.pushes import TAG
from hubmerge.server.repository import Repository
from hubmerge.server.snapshot import Snapshot

_MAX_MANIFEST_BYTES = 5_000_000
ACCURACY = "validation accuracy"


@dataclass(frozen=True)
class TaggedStep:
    """A tag that names a step, and its commit."""

    name: str
    step: int
    sha: str


@dataclass(frozen=True)
class StepFacts:
    """What the manifest of a step says: its numbers by name, and the norm of its task vector.

    `problem` is why there is nothing.
    """

    numbers: Mapping[str, float] = field(default_factory=dict)
    count: int | None = None
    norm: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class Curve:
    """A number over the steps of one run."""

    name: str
    points: tuple[tuple[int, float], ...]


def list_steps(repository: Repository) -> list[TaggedStep]:
    """The tags that name steps, in rising order; their commits are not read."""
    tags = (
        TaggedStep(name, step, sha)
        for name, sha in repository.refs(TAG).items()
        if (step := step_of(name)) is not None
    )
    return sorted(tags, key=lambda tag: (tag.step, tag.name))


def read_manifest(snapshot: Snapshot) -> tuple[Manifest | None, str]:
    """The manifest at a commit and, if it has none that can be read, why."""
    try:
        data = snapshot.read(MANIFEST_JSON, _MAX_MANIFEST_BYTES)
        if not data:
            return None, f"it has no {MANIFEST_JSON}"
        return parse_manifest(data, "this commit"), ""
    except IntegrityError as error:
        return None, error.message
    except HttpError as error:
        return None, error.message


# What a table shows of a step: small, while a manifest may have thousands of points.
@lru_cache(maxsize=8192)
def read_facts(snapshot: Snapshot) -> StepFacts:
    """The numbers of the step at a commit."""
    manifest, problem = read_manifest(snapshot)
    if manifest is None:
        return StepFacts(problem=problem)
    norm = manifest.norms.model if manifest.norms else None
    points = [point for point in manifest.validation if point.step == manifest.step]
    for point in points or manifest.validation[-1:]:
        numbers = {ACCURACY: point.accuracy}
        if point.loss is not None:
            numbers["training loss"] = point.loss
        return StepFacts(numbers, point.count, norm)
    return StepFacts(_evaluations(manifest).get(manifest.step or 0, {}), None, norm)


def curves_of(manifest: Manifest) -> list[Curve]:
    """The numbers over the steps of a run, up to the step of this manifest."""
    if manifest.validation:
        points = tuple((point.step, point.accuracy) for point in manifest.validation)
        return [Curve(ACCURACY, points)]
    evaluations = sorted(_evaluations(manifest).items())
    names = dict.fromkeys(name for _, numbers in evaluations for name in numbers)
    return [
        Curve(name, tuple((step, values[name]) for step, values in evaluations if name in values))
        for name in names
    ]


def _evaluations(manifest: Manifest) -> dict[int, dict[str, float]]:
    """What a Trainer measured, by step; other values than numbers are left out."""
    evaluations = manifest.training.get("evaluations")
    items = evaluations.items() if isinstance(evaluations, Mapping) else ()
    return {
        int(step): _numbers(values)
        for step, values in items
        if str(step).isdecimal() and len(str(step)) < 13
    }


def _numbers(values: Any) -> dict[str, float]:
    items = values.items() if isinstance(values, Mapping) else ()
    return {
        str(name)[:60]: float(value)
        for name, value in items
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
