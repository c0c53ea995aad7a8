"""Save the steps of a run as folders with manifest and card."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.errors import IntegrityError
from hubmerge.kinds import EXPERT
from hubmerge.manifest import Manifest
from hubmerge.opening.publication import finalize_folder
from hubmerge.opening.references import versions
from hubmerge.opening.step_norms import measure_step_norms
from hubmerge.refs import step_tag
from hubmerge.runs.run import Run
from hubmerge.tasks.task_file import TASK_YAML
from hubmerge.training_curve import ValidationPoint
from hubmerge.weights.atomic_folder import atomic_folder

if TYPE_CHECKING:
    from hubmerge.runs.job import ReadyJob
    from hubmerge.training.events import CheckpointEvent
    from hubmerge.training.fit import Fit

CURVE = "validation.jsonl"


def write_curve(folder: Path, curve: tuple[ValidationPoint, ...]) -> None:
    """Write the validation curve so far as JSON Lines, to follow a run."""
    lines = (json.dumps(point.to_json(), sort_keys=True) + "\n" for point in curve)
    (folder / CURVE).write_text("".join(lines), encoding="utf-8")


def save_step(run: Run, ready: ReadyJob, fit: Fit, event: CheckpointEvent) -> None:
    """Save a pushed step as a folder; a step that is saved already must have the same curve."""
    weights = fit.weights() if fit.is_sharded else None
    if not run.machine.is_main_process:
        return
    if event.step in run.outbox.saved_steps():
        _check_repeats_saved(run, event)
        return
    with atomic_folder(run.outbox.step_folder(event.step)) as folder:
        ready.save(folder, weights)
        ready.write_measurements(folder)
        if ready.task_file is not None:
            (folder / TASK_YAML).write_bytes(ready.task_file)
        manifest = _step_manifest(run, event, ready)
        if run.job.kind == EXPERT:
            norms = measure_step_norms(run.base.checkpoint, folder)
            manifest = dataclasses.replace(manifest, norms=norms)
        finalize_folder(folder, manifest, ready.lock)


def _step_manifest(run: Run, event: CheckpointEvent, ready: ReadyJob) -> Manifest:
    manifest = run.job.manifest(event, ready)
    training = dict(manifest.training)
    if event.stopped:
        training |= {"stopped": "early"}
    if run.machine.world_size > 1:
        training |= {"processes": run.machine.world_size}
    return dataclasses.replace(
        manifest,
        step=event.step,
        training=training,
        validation=event.curve,
        run=run.id,
        command=run.command,
        versions=versions(),
    )


def _restart_hint(run: Run) -> str:
    """How to start the run again in another folder and repository."""
    if run.job.kind == EXPERT:
        return "train into another folder with --out, and another repository with --to"
    return "remove that folder, and publish to another repository with --push"


def _check_repeats_saved(run: Run, event: CheckpointEvent) -> None:
    """Raise IntegrityError if a rerun after a crash does not repeat a saved step."""
    if run.manifest(event.step).validation != event.curve:
        raise IntegrityError(
            f"This run does not repeat {step_tag(event.step)} as saved in {run.outbox.folder}.",
            f"Threads, libraries or hardware have changed since: {_restart_hint(run)}.",
        )
