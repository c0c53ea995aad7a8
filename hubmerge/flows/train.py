"""hubmerge train: a run on disk, its steps saved whole, published in the background."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hubmerge.cards.card import Told, render_card
from hubmerge.errors import IntegrityError, UsageError
from hubmerge.flows.sources import Opened, open_ref, pin, pin_task, source_of, versions
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Outbox, Publisher
from hubmerge.hub.publish import Publication, ensure_repo, manifest_digest
from hubmerge.hub.resolve import list_steps
from hubmerge.manifest import NAME, Manifest, parse_manifest
from hubmerge.refs import ModelRef, parse_ref, step_tag
from hubmerge.specs import TrainSpec
from hubmerge.tasks.task import Task, find_task
from hubmerge.training.schedule import push_steps
from hubmerge.weights.writer import copy_side_files, hash_file, whole_folder

Progress = Callable[[str, int, int], None]
CURVE = "validation.jsonl"


@dataclass(frozen=True)
class Run:
    """One training run: what was asked, from which base, and the folder where it happens.

    `id` is 64 hex digits over all that decides the weights: the same command is the same run.
    """

    spec: TrainSpec
    base: Opened
    task: Task
    outbox: Outbox
    id: str

    @property
    def steps(self) -> tuple[int, ...]:
        return push_steps(self.spec.push_every, self.spec.steps)


@dataclass(frozen=True)
class Trained:
    """What a run left on the Hub: step -> commit, and the validation curve of the whole run."""

    repo_id: str
    run: str
    commits: dict[int, str]
    curve: tuple[dict[str, Any], ...]


def prepare(hub: Hub, spec: TrainSpec, runs: Path, out: Path | None = None) -> Run:
    """Check everything that can be checked before training: names, base, data, room on the Hub.

    Raises before anything is written here or there.
    """
    push_steps(spec.push_every, spec.steps)
    task = find_task(spec.task)
    base = open_ref(hub, parse_ref(spec.base))
    task = pin_task(hub, task)
    said = spec.model_dump(mode="json", exclude={"base", "task", "to", "push_every"})
    identity = [said, spec.to, base.checkpoint.digest(), task.digest]
    run_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    folder = out or runs / spec.to / run_id[:12]
    return Run(spec, base, task, Outbox(folder), run_id)


def train(
    hub: Hub, run: Run, device: str | None, progress: Progress, patience_s: float = 60.0
) -> Trained:
    """Train what is not trained yet, publish what is not published yet; rerun to finish either.

    A Hub that goes away stops neither training nor saving: steps wait on disk and the error at the
    end says so. Raises IntegrityError if the repository holds another run's steps.
    """
    ensure_repo(hub, run.spec.to)
    _check_repository(hub, run)
    with _alone(run.outbox.folder):
        publisher = Publisher(hub, run.outbox, lambda step: _publication(run, step))
        try:
            if set(run.outbox.saved()) < set(run.steps):
                for step in _train_and_save(run, device, progress):
                    publisher.notify()
                    progress(f"saved {step_tag(step)}", step, run.spec.steps)
        except BaseException:
            _leave(publisher)
            raise
        commits = publisher.close(patience_s)
    lines = (run.outbox.folder / CURVE).read_text().splitlines()
    return Trained(run.spec.to, run.id, commits, tuple(json.loads(line) for line in lines))


def _leave(publisher: Publisher) -> None:
    """Training failed: publish the steps saved before it did, and let that error speak."""
    try:
        publisher.close(60.0)
    except Exception:  # the steps stay on disk, and the first error is the one to tell
        return


def _train_and_save(run: Run, device: str | None, progress: Progress) -> Iterator[int]:
    """Run the loop; each pushed step becomes a folder, whole, before its number is yielded."""
    from accelerate import Accelerator

    from hubmerge.models.vision_text import open_model
    from hubmerge.tasks.data import load_split
    from hubmerge.training.loop import train as train_loop

    model = open_model(run.base.folder)
    training, validation = load_split(run.task, "train"), load_split(run.task, "validation")
    # Said here, so that no ACCELERATE_* variable changes the bits.
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no")
    curve: list[dict[str, object]] = []
    saved = set(run.outbox.saved())
    run.outbox.folder.mkdir(parents=True, exist_ok=True)
    with (run.outbox.folder / CURVE).open("w") as lines:
        for point in train_loop(model, run.spec, training, validation, accelerator, progress):
            curve.append(dataclasses.asdict(point))
            lines.write(json.dumps(curve[-1], sort_keys=True) + "\n")
            lines.flush()
            if point.step == 0:
                continue
            if point.step in saved:
                _check_same(run, point.step, curve)
            else:
                with whole_folder(run.outbox.step_folder(point.step)) as folder:
                    model.save(folder)
                    _describe(run, point.step, tuple(curve), folder, model.layout)
            yield point.step


def _describe(
    run: Run, step: int, curve: tuple[dict[str, object], ...], folder: Path, layout: str
) -> None:
    """Add to the weights of a step whatever else its revision holds: config, manifest, card."""
    copy_side_files(run.base.folder, folder)
    files = {path.name: hash_file(path) for path in sorted(folder.iterdir())}
    spec = run.spec.model_dump(mode="json", exclude={"base", "task", "to"})
    manifest = Manifest(
        kind="expert",
        base=source_of(run.base),
        task={"name": run.task.name, "version": run.task.spec.version, "digest": run.task.digest},
        step=step,
        last_step=run.spec.steps,
        training={**spec, "anneal": "trajectory", "data_revision": run.task.spec.data.revision},
        validation=curve,
        run=run.id,
        layout=layout,
        command=train_command(run.spec),
        versions=versions(),
    ).with_files(files)
    (folder / NAME).write_bytes(manifest.to_bytes())
    (folder / "README.md").write_text(render_card(Told(manifest, ())), encoding="utf-8")


def _publication(run: Run, step: int) -> Publication:
    folder = run.outbox.step_folder(step)
    data = (folder / NAME).read_bytes()
    manifest = parse_manifest(data, str(folder))
    digest = manifest_digest(data)
    accuracy = manifest.validation[-1]["accuracy"]
    message = {
        "step": step, "anneal": "trajectory", "validation": accuracy, "manifest": digest,
    }  # fmt: skip
    return Publication(
        repo_id=run.spec.to,
        folder=folder,
        title=f"Step {step} of {run.task.name}",
        trailer={"run": run.id, "step": str(step), "manifest": digest},
        tag=step_tag(step),
        tag_message=json.dumps(message, sort_keys=True),
    )


def _check_repository(hub: Hub, run: Run) -> None:
    """A repository holds the steps of one run from one base: two would mislead every reader."""
    steps = list_steps(hub, run.spec.to)
    if not steps:
        return
    newest = steps[-1]
    manifest = pin(hub, ModelRef(run.spec.to, revision=newest.ref.revision)).manifest
    way_out = "Choose another repository with --to."
    if manifest is None:
        raise IntegrityError(
            f"{newest.label} is there already, and hubmerge did not publish it.", way_out
        )
    if manifest.base.digest != run.base.checkpoint.digest():
        raise IntegrityError(
            f"{run.spec.to} was trained from another base: {manifest.base.label} "
            f"({manifest.base.sha[:12]}), not {run.base.revision.label}.",
            way_out,
        )
    if manifest.run != run.id:
        raise IntegrityError(
            f"{newest.label} is there already and belongs to another run "
            f"({str(manifest.run)[:12]}, this is {run.id[:12]}): other options, data or task.",
            f"{way_out} That run was made with: {manifest.command}",
        )


def _check_same(run: Run, step: int, curve: list[dict[str, object]]) -> None:
    """A rerun after a crash must retrace the steps already saved, or the run is two runs."""
    folder = run.outbox.step_folder(step)
    manifest = parse_manifest((folder / NAME).read_bytes(), str(folder))
    if [dict(point) for point in manifest.validation] != curve:
        raise IntegrityError(
            f"This run does not repeat {step_tag(step)} as saved in {folder}.",
            "Threads, libraries or hardware have changed since: train into another folder with "
            "--out, and another repository with --to.",
        )


def train_command(spec: TrainSpec) -> str:
    """The command that repeats a run: every option that is not the default."""
    options = spec.model_dump(exclude_defaults=True)
    words = ["hubmerge", "train"]
    for name, value in options.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", f"{value:g}" if isinstance(value, float) else str(value)]
    return shlex.join(words)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes in one run would overwrite each other's steps."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(f"Another process is training in {folder}.", "Wait for it.") from error
    finally:
        os.close(descriptor)
