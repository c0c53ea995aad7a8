"""A training run before it starts: what it is, whether it may be, and what of it is there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

from hubmerge.errors import IntegrityError, NotOnHub
from hubmerge.flows.machine import Machine, check_machine
from hubmerge.flows.publication import check_room
from hubmerge.flows.sources import Opened, open_ref, pin_revision, pin_task, read_local_manifest
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import Manifest
from hubmerge.refs import parse_ref, step_tag
from hubmerge.specs import TrainSpec
from hubmerge.tasks.task import Task
from hubmerge.training.schedule import check_even, push_steps

_WAY_OUT = "Choose another repository with --to."


@dataclass(frozen=True)
class Run:
    """One training run: what was asked, from which base, and the folder where it happens.

    `id` is 64 hex digits over all that decides the weights and which of them are kept: the same
    command is the same run. `columns` is what --columns said, `notes` are sentences that should be
    read before it starts.
    """

    spec: TrainSpec
    base: Opened
    task: Task
    outbox: Outbox
    id: str
    machine: Machine
    columns: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """The command that repeats the run: every option that decides it and is not the default."""
        said = {"columns": self.columns} if self.columns else {}
        words = ["hubmerge", "train"]
        if self.machine.world > 1:  # other sums, so another run than that of one process
            words = ["torchrun", "--nproc_per_node", str(self.machine.world), "-m", *words]
        for name, value in {**self.spec.model_dump(exclude_defaults=True), **said}.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                words.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                words += [f"--{flag}", str(value)]
        return shlex.join(words)

    @property
    def planned(self) -> tuple[int, ...]:
        """The steps that become revisions, unless early stopping ends the run before."""
        return push_steps(self.spec.push_every, self.spec.steps)

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


def prepare(
    hub: Hub,
    spec: TrainSpec,
    task: Task,
    runs: Path,
    out: Path | None = None,
    machine: Machine | None = None,
    columns: str | None = None,
) -> Run:
    """Check everything that can be checked before training: names, base, data, what lies where.

    Writes nothing, here or there. Raises IntegrityError if folder or repository hold another run.
    """
    machine = machine or Machine()
    check_machine(machine)
    check_even(spec, machine.world)
    steps = push_steps(spec.push_every, spec.steps)
    base = open_ref(hub, parse_ref(spec.base))
    task = pin_task(hub, task)
    said = {name: value for name, value in spec.settings.items() if name != "push_every"}
    said["warmup"] = [spec.warmup_length(step) for step in steps]
    identity = [said, steps, spec.to, base.digest, task.digest, machine.world]
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    outbox = Outbox(out or runs / spec.to / run_id[:12])
    run = Run(spec, base, task, outbox, run_id, machine, columns)
    check_repository(hub, run)
    for step in run.outbox.saved():
        _check_saved(run, step)
    return dataclasses.replace(run, notes=_checked(run)) if run.missing else run


def _checked(run: Run) -> tuple[str, ...]:
    """Open model and data once before anything is written; returns what should be known."""
    from hubmerge.flows.trainee import early_notes, make_trainee
    from hubmerge.tasks.data import load_split
    from hubmerge.tasks.stream import load_stream

    if run.spec.stream:
        load_stream(run.task, run.spec.max_examples)
    validation = load_split(run.task, "validation")
    training = None if run.spec.stream else load_split(run.task, "train")
    trainee = make_trainee(run.base, run.task, validation.classes, run.spec)
    return tuple(early_notes(trainee.learner, training, validation))


def forget_position(run: Run) -> None:
    """Drop where the run stands: it is done, or is to start over and retrace the steps it saved."""
    from hubmerge.training.position import drop_position

    drop_position(run.outbox.folder)


def check_repository(hub: Hub, run: Run) -> None:
    """A repository holds the steps of one run from one base: two would mislead every reader."""
    try:
        steps = list_steps(hub, run.spec.to)
    except NotOnHub:
        return
    if not steps:
        check_room(hub, run.spec.to, "expert")
        return
    label, manifest = steps[-1].label, pin_revision(hub, steps[-1]).manifest
    if manifest is None:
        raise IntegrityError(f"{label} is there already, and hubmerge did not make it.", _WAY_OUT)
    if manifest.base.digest != run.base.digest:
        raise IntegrityError(
            f"{run.spec.to} was trained from another base: {manifest.base.label} "
            f"({manifest.base.sha[:12]}), not {run.base.revision.label}.",
            _WAY_OUT,
        )
    if manifest.run != run.id:
        raise IntegrityError(
            f"{label} is there already and belongs to another run ({str(manifest.run)[:12]}, "
            f"this is {run.id[:12]}): other options, data or task.",
            f"{_WAY_OUT} That run was made with: {manifest.command}",
        )


def _check_saved(run: Run, step: int) -> None:
    manifest = run.manifest(step)
    if manifest.run != run.id or step not in run.steps:
        raise IntegrityError(
            f"{run.outbox.folder} holds {step_tag(step)} of another run "
            f"({str(manifest.run)[:12]}, this is {run.id[:12]}).",
            "Choose another folder with --out.",
        )
