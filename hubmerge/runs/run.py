"""A training run before it starts: what it is, whether it may be, and what of it is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox
from hubmerge.hub.resolve import list_steps
from hubmerge.kinds import EXPERT
from hubmerge.manifest import Manifest
from hubmerge.opening.integrity import is_sealed
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.publication import check_room
from hubmerge.opening.references import pin_revision, read_local_manifest
from hubmerge.refs import step_tag
from hubmerge.runs.job import Job
from hubmerge.runs.machine import Machine
from hubmerge.specs import TrainSpec

_WAY_OUT = "Choose another repository with {}."


@dataclass(frozen=True)
class Run:
    """One training run: its job, the folder where it happens, and the repository of its steps.

    `to` is None for a run that is not published. `id` is 64 hex digits over all that decides the
    weights and which of them are kept: the same command is the same run. `notes` are sentences that
    should be read before it starts.
    """

    job: Job
    to: str | None
    outbox: Outbox
    id: str
    machine: Machine
    notes: tuple[str, ...] = ()

    @property
    def spec(self) -> TrainSpec:
        return self.job.spec

    @property
    def base(self) -> Opened:
        return self.job.base

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return self.job.command(self.machine)

    @property
    def planned(self) -> tuple[int, ...]:
        """The steps that become revisions, unless early stopping ends the run before."""
        return self.job.planned

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that become revisions, as far as is known now."""
        end = self._stopped_at()
        if end is None:
            return self.planned
        return (*(step for step in self.planned if step < end), end)

    @property
    def missing(self) -> tuple[int, ...]:
        """The steps that are not saved yet."""
        return tuple(sorted(set(self.steps) - set(self.outbox.saved())))

    def manifest(self, step: int) -> Manifest:
        """The manifest of a saved step; raises IntegrityError for a folder that is none."""
        folder = self.outbox.step_folder(step)
        manifest = read_local_manifest(folder)
        if manifest is None:
            raise IntegrityError(f"{folder} is no step that hubmerge saved.", "Remove the folder.")
        return manifest

    def _stopped_at(self) -> int | None:
        saved = self.outbox.saved() if self.spec.early_stop != "off" else ()
        stopped = (s for s in saved if self.manifest(s).training.get("stopped") == "early")
        return next(stopped, None)


def prepare_run(
    hub: Hub,
    job: Job,
    to: str | None,
    machine: Machine,
    folder: Callable[[str], Path],
    checked: Callable[[], tuple[str, ...]],
) -> Run:
    """The run of a job, after a look at what of it lies where; `folder` places it by its id.

    `checked` opens model and data once and returns notes; it is left out where all is done. Writes
    nothing. Raises IntegrityError if folder or repository hold another run.
    """
    said = json.dumps([*job.identity, machine.world], sort_keys=True)
    run_id = hashlib.sha256(said.encode()).hexdigest()
    run = Run(job, to, Outbox(folder(run_id)), run_id, machine)
    check_repository(hub, run)
    for step in run.outbox.saved():
        _check_saved(run, step)
    return replace(run, notes=checked()) if run.missing else run


def forget_position(run: Run) -> None:
    """Drop where the run stands: it is done, or is to start over and retrace the steps it saved."""
    from hubmerge.training.position import drop_position

    drop_position(run.outbox.folder)


def check_repository(hub: Hub, run: Run) -> None:
    """A repository holds the steps of one run from one base: two would mislead every reader."""
    if run.to is None:
        return
    try:
        steps = list_steps(hub, run.to)
    except NotOnHub:
        return
    if not steps:
        check_room(hub, run.to, run.job.kind)
        return
    label, manifest = steps[-1].label, pin_revision(hub, steps[-1]).manifest
    way_out = _WAY_OUT.format("--to" if run.job.kind == EXPERT else "--push")
    if manifest is None:
        raise IntegrityError(f"{label} is there already, and hubmerge did not make it.", way_out)
    if manifest.base.digest != run.base.digest:
        raise IntegrityError(
            f"{run.to} was trained from another base: {manifest.base.label} "
            f"({manifest.base.sha[:12]}), not {run.base.revision.label}.",
            way_out,
        )
    if manifest.run != run.id:
        raise IntegrityError(
            f"{label} is there already and belongs to another run ({str(manifest.run)[:12]}, "
            f"this is {run.id[:12]}): other options, data or task.",
            f"{way_out} That run was made with: {manifest.command}",
        )


def _check_saved(run: Run, step: int) -> None:
    manifest = run.manifest(step)
    if manifest.run != run.id or step not in run.steps:
        raise IntegrityError(
            f"{run.outbox.folder} holds {step_tag(step)} of another run "
            f"({str(manifest.run)[:12]}, this is {run.id[:12]}).",
            "Choose another folder with --out."
            if run.job.kind == EXPERT
            else "Remove the folder, if you do not need it.",
        )
    if not is_sealed(run.outbox.step_folder(step), manifest):
        raise IntegrityError(
            f"{run.outbox.step_folder(step)} is not as it was saved.",
            "Remove the folder: the same command makes it again.",
        )
