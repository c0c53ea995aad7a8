"""The steps of a run that are kept: whole folders that say what they are."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.errors import IntegrityError
from hubmerge.kinds import EXPERT
from hubmerge.manifest import Manifest, Point
from hubmerge.opening.publication import seal
from hubmerge.opening.references import versions
from hubmerge.refs import step_tag
from hubmerge.runs.run import Run
from hubmerge.weights.atomic_folder import whole_folder

if TYPE_CHECKING:
    from hubmerge.runs.job import Begun
    from hubmerge.training.events import Moment
    from hubmerge.training.fit import Fit

CURVE = "validation.jsonl"


def write_curve(folder: Path, curve: tuple[Point, ...]) -> None:
    """Write the curve so far as JSON lines, for whoever watches a run."""
    lines = (json.dumps(point.said(), sort_keys=True) + "\n" for point in curve)
    (folder / CURVE).write_text("".join(lines), encoding="utf-8")


def keep_step(run: Run, begun: Begun, fit: Fit, moment: Moment) -> None:
    """Save a pushed step as a folder; one that is there must be the very same."""
    weights = fit.weights() if fit.is_spread else None
    if not run.machine.leads:
        return
    if moment.step in run.outbox.saved():
        _check_retraced(run, moment)
        return
    with whole_folder(run.outbox.step_folder(moment.step)) as folder:
        begun.save(folder, weights)
        begun.measure(folder)
        seal(folder, _described(run, moment, begun), begun.lock)


def _described(run: Run, moment: Moment, begun: Begun) -> Manifest:
    manifest = run.job.manifest(moment, begun)
    said = dict(manifest.training)
    if moment.stopped:
        said |= {"stopped": "early"}
    if run.machine.world > 1:
        said |= {"processes": run.machine.world}
    return dataclasses.replace(
        manifest,
        step=moment.step,
        training=said,
        validation=moment.curve,
        run=run.id,
        command=run.command,
        versions=versions(),
    )


def _elsewhere(run: Run) -> str:
    """Where the run can be made anew."""
    if run.job.kind == EXPERT:
        return "train into another folder with --out, and another repository with --to"
    return "remove that folder, and publish to another repository with --push"


def _check_retraced(run: Run, moment: Moment) -> None:
    """A rerun after a crash must retrace the steps already saved, or the run is two runs."""
    if run.manifest(moment.step).validation != moment.curve:
        raise IntegrityError(
            f"This run does not repeat {step_tag(moment.step)} as saved in {run.outbox.folder}.",
            f"Threads, libraries or hardware have changed since: {_elsewhere(run)}.",
        )
