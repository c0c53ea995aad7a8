"""A training run: its identity, the checks before it starts, and its saved steps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox
from hubmerge.hub.resolve import list_steps
from hubmerge.kinds import EXPERT, ModelKind
from hubmerge.manifest import Manifest
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.publication import check_repository_kind
from hubmerge.opening.references import pin_revision, read_local_manifest
from hubmerge.refs import step_tag
from hubmerge.runs.job import Job, ReadyJob
from hubmerge.runs.machine import Machine
from hubmerge.specs import TrainSpec

_HINT = "Choose another repository with {}."


@dataclass(frozen=True)
class Run:
    """One training run: its job, its folder, and the repository of its steps.

    `to` is None for a run that is not published. `id` is 64 hex digits, a hash of all that decides
    the weights and which steps are saved: the same command is the same run. `notes` are sentences
    for the user before the run starts. `opened` holds the job as the checks opened it, until it is
    trained.
    """

    job: Job
    to: str | None
    outbox: Outbox
    id: str
    machine: Machine
    notes: tuple[str, ...] = ()
    opened: list[ReadyJob] = field(default_factory=list, repr=False, compare=False)

    @property
    def spec(self) -> TrainSpec:
        return self.job.spec

    @property
    def base(self) -> OpenedModel:
        return self.job.base

    @property
    def command(self) -> str:
        """The command that repeats the run."""
        return self.job.command(self.machine)

    @property
    def planned_steps(self) -> tuple[int, ...]:
        """The steps that become revisions, unless early stopping ends the run before."""
        return self.job.planned_steps

    @property
    def steps(self) -> tuple[int, ...]:
        """The steps that become revisions, as far as they are known now."""
        end = self._stopped_at()
        if end is None:
            return self.planned_steps
        return (*(step for step in self.planned_steps if step < end), end)

    @property
    def missing(self) -> tuple[int, ...]:
        """The steps that are not saved yet."""
        return tuple(sorted(set(self.steps) - set(self.outbox.saved_steps())))

    def manifest(self, step: int) -> Manifest:
        """The manifest of a saved step; raises IntegrityError for a folder without one."""
        folder = self.outbox.step_folder(step)
        manifest = read_local_manifest(folder)
        if manifest is None:
            raise IntegrityError(
                f"{folder} is not a step that hubmerge saved.", "Remove the folder."
            )
        return manifest

    def open_job(self) -> ReadyJob:
        """Model and data in the state before the first step: those that were checked, then new."""
        return self.opened.pop() if self.opened else self.job.build()

    def _stopped_at(self) -> int | None:
        saved = self.outbox.saved_steps() if self.spec.early_stop != "off" else ()
        stopped = (s for s in saved if self.manifest(s).training.get("stopped") == "early")
        return next(stopped, None)


def prepare_run(
    hub: Hub,
    job: Job,
    to: str | None,
    machine: Machine,
    folder: Callable[[str], Path],
    check_data: Callable[[], tuple[ReadyJob, tuple[str, ...]]],
) -> Run:
    """Make the run of a job and check its saved steps; `folder` maps the id to the run's folder.

    `check_data` opens model and data and returns them with notes; it is skipped if no step is
    missing.
    Writes nothing. Raises IntegrityError if the folder or the repository holds another run.
    """
    identity = json.dumps([*job.identity, machine.world_size], sort_keys=True)
    run_id = hashlib.sha256(identity.encode()).hexdigest()
    run = Run(job, to, Outbox(folder(run_id)), run_id, machine)
    check_repository(hub, run)
    for step in run.outbox.saved_steps():
        _check_saved(run, step)
    if not run.missing:
        return run
    ready, notes = check_data()
    return replace(run, notes=notes, opened=[ready])


def discard_position(run: Run) -> None:
    """Delete the saved position of a run that is finished or starts again from step 0."""
    from hubmerge.training.position import remove_position

    remove_position(run.outbox.folder)


def check_repository(hub: Hub, run: Run) -> None:
    """Raise IntegrityError if the repository holds steps of another run or from another base."""
    if run.to is not None:
        hint = _HINT.format("--to" if run.job.kind == EXPERT else "--push")
        check_steps_of(hub, run.to, run.job.kind, run.base, run.id, hint)


def check_steps_of(
    hub: Hub, repo_id: str, kind: ModelKind, base: OpenedModel, run_id: str, hint: str
) -> None:
    """Raise IntegrityError if a repository holds something else than steps of one run.

    A repository that is missing or empty is accepted; `hint` says how to name another.
    """
    try:
        steps = list_steps(hub, repo_id)
    except NotOnHub:
        return
    if not steps:
        check_repository_kind(hub, repo_id, kind)
        return
    label, manifest = steps[-1].label, pin_revision(hub, steps[-1]).manifest
    if manifest is None:
        raise IntegrityError(f"{label} exists already, and hubmerge did not make it.", hint)
    if manifest.base.digest != base.digest:
        raise IntegrityError(
            f"{repo_id} was trained from another base: {manifest.base.label} "
            f"({manifest.base.sha[:12]}), not {base.revision.label}.",
            hint,
        )
    if manifest.run != run_id:
        raise IntegrityError(
            f"{label} exists already and belongs to another run ({str(manifest.run)[:12]}, "
            f"this is {run_id[:12]}): other options, data or task.",
            f"{hint} That run was made with: {manifest.command}",
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
    if not matches_manifest(run.outbox.step_folder(step), manifest):
        raise IntegrityError(
            f"{run.outbox.step_folder(step)} has changed since it was saved.",
            "Remove the folder, then run the same command to make it again.",
        )
