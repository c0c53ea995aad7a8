"""Records one run of a loop in the main process: its folder, its base, and every due step."""

from __future__ import annotations

import atexit
import os
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

from hubmerge.callbacks.evaluations import Metrics
from hubmerge.callbacks.model_writer import name_base
from hubmerge.callbacks.run_settings import LoopRun
from hubmerge.callbacks.step_drafts import StepDrafts
from hubmerge.callbacks.step_publisher import OTHER_REPOSITORY, StepPublisher
from hubmerge.callbacks.target import PushTarget
from hubmerge.durable import hash_file, try_lock
from hubmerge.errors import Busy
from hubmerge.hub.environment import home
from hubmerge.hub.outbox import Outbox
from hubmerge.kinds import EXPERT
from hubmerge.manifest import Manifest
from hubmerge.opening.references import versions
from hubmerge.refs import ModelRef, step_tag
from hubmerge.source import Source
from hubmerge.tasks.task_file import TASK_YAML, remember_data, task_file
from hubmerge.training_curve import ValidationPoint
from hubmerge.weights.atomic_folder import atomic_folder

Write = Callable[[Path], None]
_BASE = "base"
# By the folder of the run: who records it in this process.
_open_recorders: dict[Path, tuple[object, StepRecorder]] = {}


def open_recorder(
    owner: object,
    beside: Collection[object],
    target: PushTarget,
    run: LoopRun,
    base: ModelRef | None,
    starts_at: int,
    write_base: Write,
    warn: Callable[[str], None],
) -> StepRecorder:
    """The recorder of a run for its callback or loop.

    One that an interrupted loop of this process has left, as in a notebook, is closed first. Raises
    Busy if another process records the run, or one of the callbacks `beside` this one.
    """
    folder = _run_folder(target, run)
    other, left = _open_recorders.get(folder, (None, None))
    if left is not None and not any(callback is other for callback in beside):
        left.close(patience_s=0.0)
    recorder = StepRecorder(target, run, base, starts_at, write_base, warn)
    _open_recorders[folder] = owner, recorder
    return recorder


def _run_folder(target: PushTarget, run: LoopRun) -> Path:
    return target.folder or home() / "runs" / target.to / run.id[:12]


class StepRecorder:
    """The saved steps of a run, published in the background; `warn` gets sentences for the user.

    `starts_at` is the step that the model has now. A run that starts at step 0 must repeat the
    steps that are saved already; one that goes on from a checkpoint keeps them.
    """

    def __init__(
        self,
        target: PushTarget,
        run: LoopRun,
        base: ModelRef | None,
        starts_at: int,
        write_base: Write,
        warn: Callable[[str], None],
    ) -> None:
        self._target, self._run, self._starts_at, self._warn = target, run, starts_at, warn
        self._resources, self._variants = ExitStack(), 1
        self._publisher: StepPublisher | None = None
        self.run_folder = _run_folder(target, run)
        self._use_folder(self.run_folder)
        while other := self._other_run():
            self._leave_folder(f"the steps of run {other[:12]}")
        if target.task is not None:
            remember_data(home(), [target.task])
        self.base = base or self._saved_base(write_base)
        if self._variants == 1:
            self._publisher = StepPublisher(target, self._run, self._drafts, self.base, warn)
        atexit.register(self._warn_of_left)

    @property
    def folder(self) -> Path:
        """The folder of the run, with its steps."""
        return self._drafts.outbox.folder

    def has(self, step: int) -> bool:
        """Whether a step is saved."""
        return step in self._drafts.outbox.saved_steps()

    def evaluations_before(self, step: int) -> Mapping[int, Metrics]:
        """The evaluations that the last step saved before `step` recorded."""
        earlier = [saved for saved in self._drafts.outbox.saved_steps() if saved < step]
        manifest = self._drafts.read(earlier[-1]) if earlier else None
        recorded = manifest.training.get("evaluations", {}) if manifest else {}
        return {int(number): metrics for number, metrics in recorded.items()}

    def save(
        self,
        step: int,
        write: Write,
        evaluations: Mapping[int, Metrics],
        curve: tuple[ValidationPoint, ...],
        is_stopped: bool = False,
    ) -> None:
        """Save a step that is not saved; `write` writes the model into a folder.

        Raises OSError or CheckpointError if the disk does not take it.
        """
        if self.has(step):
            self._compare(step, write, lambda: self.save(step, write, evaluations, curve))
            return
        draft = self._draft(step, evaluations, curve, is_stopped)

        def fill(folder: Path) -> None:
            write(folder)
            if self.base is not None and self.base.path is not None:
                name_base(folder, self.base.path)
            if self._target.task is not None and (text := task_file(self._target.task)):
                (folder / TASK_YAML).write_bytes(text)

        self._drafts.save(step, draft, fill)
        if self._publisher is not None:
            self._publisher.notify()

    def close(self, patience_s: float | None = None) -> dict[int, str]:
        """Wait until all steps are published; returns step -> commit. What is left is named."""
        atexit.unregister(self._warn_of_left)
        _open_recorders.pop(self.run_folder, None)
        patience_s = self._target.patience_s if patience_s is None else patience_s
        commits = self._publisher.close(patience_s) if self._publisher is not None else {}
        self._resources.close()
        return commits

    def _draft(
        self,
        step: int,
        evaluations: Mapping[int, Metrics],
        curve: tuple[ValidationPoint, ...],
        is_stopped: bool,
    ) -> Manifest:
        task, training = self._target.task, dict(self._run.settings)
        training["evaluations"] = {str(number): dict(m) for number, m in evaluations.items()}
        if is_stopped:
            training["stopped"] = "early"
        return Manifest(
            kind=EXPERT,
            base=Source(str(self.base), "", ""),
            task=task.id if task else None,
            task_kind=task.spec.kind if task else "",
            step=step,
            last_step=step if is_stopped else self._run.last_step,
            training={key: value for key, value in training.items() if value not in (None, {})},
            validation=curve,
            run=self._run.id,
            layout=self._run.layout,
            command=f'PushSteps("{self._target.to}") in {self._run.loop}',
            versions=versions(),
        )

    def _compare(self, step: int, write: Write, save_again: Callable[[], None]) -> None:
        """Check that a step that is made again has the saved weights."""
        if self._has_weights_of(self._drafts.outbox.step_folder(step), write):
            return
        if self._starts_at > 0:
            self._warn(
                f"{step_tag(step)} has other weights than before it was interrupted; the one that "
                "was saved first is kept."
            )
            return
        self._leave_folder(step_tag(step))
        save_again()

    def _leave_folder(self, name: str) -> None:
        """Go on in a folder of its own: this run does not repeat what is saved in this one."""
        if self._publisher is not None:
            self._publisher.close(self._target.patience_s)
            self._publisher = None
        old, self._variants = self.folder, self._variants + 1
        first = old if self._variants == 2 else old.with_name(old.name.rpartition("-")[0])
        self._run = self._run.variant(self._variants)
        self._use_folder(first.with_name(f"{first.name}-{self._variants}"))
        steps = self._drafts.outbox.steps_folder
        self._warn(
            f"This run does not repeat {name} as saved in {old}: data, code, threads or hardware "
            f"have changed. Its steps are saved in {steps} and not published; publish them with: "
            f"{self._target.publish_command(steps, OTHER_REPOSITORY)}"
        )

    def _other_run(self) -> str | None:
        """The id of the run whose steps are in the folder, if that is another one."""
        saved = (self._drafts.read(step) for step in self._drafts.outbox.saved_steps())
        runs = {str(manifest.run) for manifest in saved if manifest} - {self._run.id}
        return min(runs, default=None)

    def _saved_base(self, write_base: Write) -> ModelRef | None:
        """The base of a model that was not loaded from a name: saved before the first step."""
        path = self.folder / _BASE
        if self._starts_at > 0:
            return ModelRef(path=path) if path.is_dir() else None
        if path.is_dir() and not self._has_weights_of(path, write_base):
            self._leave_folder("the weights before the first step")
            return self._saved_base(write_base)
        if not path.is_dir():
            with atomic_folder(path) as partial:
                write_base(partial)
        return ModelRef(path=path)

    def _has_weights_of(self, folder: Path, write: Write) -> bool:
        """Whether `write` writes the same weights as are in a folder."""
        with TemporaryDirectory(dir=self.folder) as name:
            write(Path(name))
            return _weights(Path(name)) == _weights(folder)

    def _use_folder(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        lock = self._resources.enter_context((folder / ".lock").open("ab"))
        if not try_lock(lock):
            self._resources.close()
            raise Busy(
                f"{folder} is in use: another PushSteps saves and publishes the steps of this run.",
                "Leave one of the two out.",
            )
        self._drafts = StepDrafts(Outbox(folder))

    def _warn_of_left(self) -> None:
        if self._publisher is not None and (left := self._publisher.unpublished):
            steps = self._drafts.outbox.steps_folder
            self._warn(
                f"Training ended before {len(left)} steps in {steps} were published: run the "
                f"script again, or publish them with: {self._target.publish_command(steps)}"
            )


def _weights(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of weights in a folder and its modules."""
    return {
        os.fspath(path.relative_to(folder)): hash_file(path)
        for path in folder.rglob("*.safetensors")
    }
