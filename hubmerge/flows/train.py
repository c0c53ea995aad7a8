"""hubmerge train: a run on disk, its steps saved whole, published in the background."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.durable import try_lock
from hubmerge.errors import Busy, CheckpointError, IntegrityError, NotOnHub
from hubmerge.flows.publication import check_room, seal, step_publication
from hubmerge.flows.sources import (
    Opened,
    open_ref,
    pin_revision,
    pin_task,
    read_local_manifest,
    source_of,
    versions,
)
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import Publication, ensure_repo
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import Manifest, Point
from hubmerge.progress import Progress
from hubmerge.refs import parse_ref, step_tag
from hubmerge.specs import TrainSpec
from hubmerge.tasks.task import Task, find_task
from hubmerge.training.schedule import push_steps
from hubmerge.weights.folder import whole_folder
from hubmerge.weights.writer import copy_side_files

if TYPE_CHECKING:
    from hubmerge.models.vision_text import VisionText

CURVE = "validation.jsonl"
_WAY_OUT = "Choose another repository with --to."


@dataclass(frozen=True)
class Run:
    """One training run: what was asked, from which base, and the folder where it happens.

    `id` is 64 hex digits over all that decides the weights and which of them are kept: the same
    command is the same run.
    """

    spec: TrainSpec
    base: Opened
    task: Task
    outbox: Outbox
    id: str

    @property
    def steps(self) -> tuple[int, ...]:
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def missing(self) -> tuple[int, ...]:
        """The steps that are not saved yet."""
        return tuple(sorted(set(self.steps) - set(self.outbox.saved())))


@dataclass(frozen=True)
class Trained:
    """What a run left on the Hub: step -> commit, and the validation curve of the whole run."""

    repo_id: str
    run: str
    commits: dict[int, str]
    curve: tuple[Point, ...]


def prepare(hub: Hub, spec: TrainSpec, runs: Path, out: Path | None = None) -> Run:
    """Check everything that can be checked before training: names, base, data, what lies where.

    Writes nothing, here or there. Raises IntegrityError if folder or repository hold another run.
    """
    steps = push_steps(spec.push_every, spec.steps)
    task = find_task(spec.task)
    base = open_ref(hub, parse_ref(spec.base))
    task = pin_task(hub, task)
    said = spec.model_dump(mode="json", exclude={"base", "task", "to", "push_every"})
    identity = [said, steps, spec.to, base.digest, task.digest]
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    run = Run(spec, base, task, Outbox(out or runs / spec.to / run_id[:12]), run_id)
    _check_repository(hub, run)
    for step in run.outbox.saved():
        _check_saved(run, step)
    if run.missing:
        _check_model_and_data(run)
    return run


def train(
    hub: Hub,
    run: Run,
    device: str | None,
    progress: Progress,
    *,
    private: bool = False,
    patience_s: float = 60.0,
) -> Trained:
    """Train what is not trained yet, publish what is not published yet; rerun to finish either.

    A Hub that goes away stops neither training nor saving: steps wait on disk and the error at the
    end says so, once `patience_s` pass in vain.
    """
    ensure_repo(hub, run.spec.to, private)
    with _alone(run.outbox.folder):
        publisher = Publisher(hub, run.outbox, lambda step: _publication(hub, run, step))
        try:
            if run.missing:
                for step in _train_and_save(run, device, progress):
                    publisher.notify()
                    progress(f"saved {step_tag(step)}", step, run.spec.steps)
        except BaseException:
            _leave(publisher, patience_s)
            raise
        commits = publisher.close(patience_s)
    return Trained(run.spec.to, run.id, commits, _manifest(run, run.steps[-1]).validation)


def _leave(publisher: Publisher, patience_s: float) -> None:
    """Training failed: publish the steps saved before it did, and let that error speak."""
    try:
        publisher.close(patience_s)
    except Exception:  # the steps stay on disk, and the first error is the one to tell
        return


def _train_and_save(run: Run, device: str | None, progress: Progress) -> Iterator[int]:
    """Run the loop; each pushed step becomes a folder, whole, before its number is yielded."""
    import torch
    from accelerate import Accelerator

    from hubmerge.flows.device import pick_device
    from hubmerge.models.vision_text import open_model
    from hubmerge.tasks.data import load_split
    from hubmerge.training.loop import train as train_loop

    chosen = pick_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    # Precision is said here, so that no ACCELERATE_* variable changes the bits.
    accelerator = Accelerator(cpu=chosen.type == "cpu", mixed_precision="no")
    model = open_model(run.base.folder)
    training, validation = load_split(run.task, "train"), load_split(run.task, "validation")
    curve: tuple[Point, ...] = ()
    run.outbox.folder.mkdir(parents=True, exist_ok=True)
    with (run.outbox.folder / CURVE).open("w") as lines:
        for point in train_loop(model, run.spec, training, validation, accelerator, progress):
            curve += (point,)
            lines.write(json.dumps(dataclasses.asdict(point), sort_keys=True) + "\n")
            lines.flush()
            if point.step == 0:
                continue
            if point.step in run.missing:
                with whole_folder(run.outbox.step_folder(point.step)) as folder:
                    _save(model, folder)
                    copy_side_files(run.base.folder, folder)
                    seal(folder, _described(run, curve, model.layout))
            else:
                _check_retraced(run, point.step, curve)
            yield point.step


def _save(model: VisionText, folder: Path) -> None:
    from safetensors import SafetensorError

    try:
        model.save(folder)
    except SafetensorError as error:  # its way to say that the disk refuses
        raise CheckpointError(
            f"{folder} could not be written: {error}", "Make room, then run the same command again."
        ) from error


def _described(run: Run, curve: tuple[Point, ...], layout: str) -> Manifest:
    spec = run.spec.model_dump(mode="json", exclude={"base", "task", "to"})
    return Manifest(
        kind="expert",
        base=source_of(run.base),
        task=run.task.id,
        step=curve[-1].step,
        last_step=run.spec.steps,
        training={**spec, "anneal": "trajectory", "data_revision": run.task.spec.data.revision},
        validation=curve,
        run=run.id,
        layout=layout,
        command=train_command(run.spec),
        versions=versions(),
    )


def _publication(hub: Hub, run: Run, step: int) -> Publication:
    _check_repository(hub, run)  # another run may have begun to publish there since
    return step_publication(run.outbox.step_folder(step), _manifest(run, step), run.spec.to)


def _manifest(run: Run, step: int) -> Manifest:
    folder = run.outbox.step_folder(step)
    manifest = read_local_manifest(folder)
    if manifest is None:
        raise IntegrityError(f"{folder} is no step that hubmerge saved.", "Remove the folder.")
    return manifest


def _check_repository(hub: Hub, run: Run) -> None:
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
    manifest = _manifest(run, step)
    if manifest.run != run.id or step not in run.steps:
        raise IntegrityError(
            f"{run.outbox.folder} holds {step_tag(step)} of another run "
            f"({str(manifest.run)[:12]}, this is {run.id[:12]}).",
            "Choose another folder with --out.",
        )


def _check_model_and_data(run: Run) -> None:
    from hubmerge.models.vision_text import open_model
    from hubmerge.tasks.data import load_split

    open_model(run.base.folder)
    for split in ("train", "validation"):
        load_split(run.task, split)


def _check_retraced(run: Run, step: int, curve: tuple[Point, ...]) -> None:
    """A rerun after a crash must retrace the steps already saved, or the run is two runs."""
    if _manifest(run, step).validation != curve:
        raise IntegrityError(
            f"This run does not repeat {step_tag(step)} as saved in {run.outbox.folder}.",
            "Threads, libraries or hardware have changed since: train into another folder with "
            "--out, and another repository with --to.",
        )


def train_command(spec: TrainSpec) -> str:
    """The command that repeats a run: every option that is not the default."""
    words = ["hubmerge", "train"]
    for name, value in spec.model_dump(exclude_defaults=True).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", str(value)]
    return shlex.join(words)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes in one run would overwrite each other's steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        if not try_lock(lock):
            raise Busy(f"Another process is training in {folder}.", "Wait for it to end.")
        yield
