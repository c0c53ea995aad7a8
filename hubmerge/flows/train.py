"""Training an expert or a mixture of experts: steps are saved on disk, published in background."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hubmerge.durable import try_lock
from hubmerge.errors import Busy, UsageError
from hubmerge.hub.client import Hub
from hubmerge.hub.outbox import Publisher
from hubmerge.hub.publish import Publication, ensure_repo
from hubmerge.opening.publication import step_publication
from hubmerge.progress import Progress
from hubmerge.runs.run import Run, check_repository, discard_position
from hubmerge.runs.step_folders import save_step, write_curve
from hubmerge.training_curve import ValidationPoint

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hubmerge.runs.job import ReadyJob
    from hubmerge.training.fit import Fit
    from hubmerge.training.position import Position


@dataclass(frozen=True)
class TrainResult:
    """The result of a run: commits and validation points by step, and the curve of the last step.

    `commits` is empty if the run is not published; `folder` has the last step.
    """

    repo_id: str | None
    run: str
    commits: dict[int, str]
    points: dict[int, ValidationPoint]
    curve: tuple[ValidationPoint, ...]
    folder: Path


def train(
    hub: Hub,
    run: Run,
    progress: Progress,
    *,
    private: bool = False,
    patience_s: float = 60.0,
    warn: Callable[[str], None] = lambda sentence: None,
) -> TrainResult | None:
    """Train the missing steps and publish the unpublished ones; run again to resume either.

    Training and saving go on while the Hub is unreachable: steps wait on disk, and an error is
    raised at the end after another `patience_s` seconds. `warn` gets a sentence when the Hub asks
    to wait for minutes or hours. Returns None in all but the main process.
    """
    if not run.machine.is_main_process:
        for _ in _train_and_save(run, progress):
            pass
        return None
    if run.to is not None:
        ensure_repo(hub, run.to, private)
    with _lock_run(run.outbox.folder):
        commits = _train_and_publish(hub, run, progress, patience_s, warn)
    curves = {step: run.manifest(step).validation for step in run.steps}
    points = {step: curve[-1] for step, curve in curves.items()}
    last = run.steps[-1]
    return TrainResult(run.to, run.id, commits, points, curves[last], run.outbox.step_folder(last))


def _train_and_publish(
    hub: Hub, run: Run, progress: Progress, patience_s: float, warn: Callable[[str], None]
) -> dict[int, str]:
    """Train and publish; returns step -> commit."""
    if run.to is None:
        _finish(run, progress, lambda: None)
        return {}
    publisher = Publisher(hub, run.outbox, lambda step: _make_publication(hub, run, step), warn)
    try:
        _finish(run, _with_queue(progress, publisher), publisher.notify)
    except BaseException:
        _close_after_error(publisher, patience_s)
        raise
    return publisher.close(patience_s)


def _finish(run: Run, progress: Progress, saved: Callable[[], None]) -> None:
    if run.missing:
        for _ in _train_and_save(run, progress):
            saved()
    discard_position(run)  # a killed process may have left one after the last step was saved


def _close_after_error(publisher: Publisher, patience_s: float) -> None:
    """Publish the steps that were saved before training failed, without hiding that error."""
    try:
        publisher.close(patience_s)
    except Exception:  # the steps stay on disk, and the first error is the one to report
        return


def _with_queue(progress: Progress, publisher: Publisher) -> Progress:
    """Add the number of saved steps that wait to be pushed to the progress."""

    def report(what: str, done: int, total: int) -> None:
        waiting = publisher.unpublished
        progress(f"{what}, {len(waiting)} to push" if waiting else what, done, total)

    return report


def _train_and_save(run: Run, progress: Progress) -> Iterator[int]:
    """Train line after line; yield each pushed step once its folder is complete."""
    from hubmerge.runs.machine import make_accelerator
    from hubmerge.training.position import read_position

    folder, missing = run.outbox.folder, run.missing
    settings = run.spec.model_dump(mode="json")
    accelerator = make_accelerator(run.machine, run.spec.precision, folder, settings)
    saved = read_position(folder, run.id)
    _check_shared(accelerator, folder, missing, saved)
    for line in _training_lines(run, missing):
        start = saved[1] if saved is not None and saved[0] == line[-1] else None
        if start is not None and not _reaches_missing(start, missing, run):
            start = None
        yield from _train_line(run, line, accelerator, progress, start)
        accelerator.free_memory()
    accelerator.end_training()


def _check_shared(
    accelerator: Accelerator, folder: Path, missing: tuple[int, ...], saved: Any
) -> None:
    """Check that all processes resume from the same position, before any of them writes."""
    if accelerator.num_processes == 1:
        return
    import torch

    state = [len(missing), *saved[:1], saved[1].step] if saved else [len(missing), -1, -1]
    tensor = torch.tensor([state], device=accelerator.device)
    if len(accelerator.gather(tensor).unique(dim=0)) > 1:
        raise UsageError(
            f"The processes do not see the same {folder}.",
            "Set --out or HUBMERGE_HOME to a folder that all machines share.",
        )


def _training_lines(run: Run, missing: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Return the pushed steps of each line of training that is not done yet."""
    independent = run.spec.anneal == "independent"
    return [(step,) for step in missing] if independent else [run.planned_steps]


def _reaches_missing(position: Position, missing: tuple[int, ...], run: Run) -> bool:
    """Return whether all missing steps lie ahead; the user may have removed an earlier one."""
    from hubmerge.training.schedule import cooldown_length

    if run.spec.anneal != "branch":
        return all(step > position.step for step in missing)
    line_starts = (step - cooldown_length(step, run.spec.cooldown) for step in missing)
    return all(step >= position.step for step in line_starts)


def _train_line(
    run: Run,
    line: tuple[int, ...],
    accelerator: Accelerator,
    progress: Progress,
    start: Position | None,
) -> Iterator[int]:
    """Train one line, save its pushed steps, and yield each once it is saved."""
    from hubmerge.training.fit import freeze_unused, make_fit
    from hubmerge.training.inputs import TrainingCallbacks, TrainingData
    from hubmerge.training.loop import train as train_line
    from hubmerge.training.position import write_position

    inputs = run.open_job()
    learner = inputs.learner
    if accelerator.num_processes > 1:
        freeze_unused(learner, learner.collate([learner.for_training(inputs.sample, 0)]))
    fit = make_fit(learner, run.spec, accelerator)
    if start is None and inputs.start_step:
        start = _start_position(fit, inputs)

    def save_position(position: Callable[[], Position]) -> None:
        if run.machine.is_main_process or fit.is_sharded:
            current = position()
            if run.machine.is_main_process and current.state:
                write_position(run.outbox.folder, run.id, line[-1], current)

    def save_position_at(step: int, position: Callable[[], Position]) -> None:
        if run.machine.state_every and step % run.machine.state_every == 0:
            save_position(position)

    callbacks = TrainingCallbacks(
        progress,
        lambda metrics, step: accelerator.log(dict(metrics), step),
        save_position_at,
        inputs.extra_metrics,
    )
    data = TrainingData(inputs.training, inputs.validation_tasks, run.machine.workers)
    for event in train_line(fit, data, line, callbacks, start):
        if run.machine.is_main_process:
            write_curve(run.outbox.folder, event.curve)
        if event.pushed:
            save_step(run, inputs, fit, event)
            if not run.machine.state_every:
                save_position(event.position)
            yield event.step


def _start_position(fit: Fit, inputs: ReadyJob) -> Position:
    """The position of a run that continues another one: its weights, and no moments."""
    from hubmerge.training.position import Position

    if fit.is_deepspeed:
        raise UsageError(
            "DeepSpeed keeps its own state, so a run under it cannot continue another one.",
            "Leave --start-from out, or train without DeepSpeed.",
        )
    return Position(inputs.start_step, inputs.start_curve, (), None, fit.state())


def _make_publication(hub: Hub, run: Run, step: int) -> Publication:
    check_repository(hub, run)  # another run may have started to publish there
    assert run.to is not None
    return step_publication(run.outbox.step_folder(step), run.manifest(step), run.to)


@contextmanager
def _lock_run(folder: Path) -> Iterator[None]:
    """Lock a run: two processes would overwrite each other's steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        if not try_lock(lock):
            raise Busy(f"Another process is training in {folder}.", "Wait until it ends.")
        yield
