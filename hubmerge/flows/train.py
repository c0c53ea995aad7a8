"""A run on disk, its steps saved whole, published in the background: an expert's or a mixture's."""

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
from hubmerge.manifest import Point
from hubmerge.opening.publication import step_publication
from hubmerge.progress import Progress
from hubmerge.runs.run import Run, check_repository, forget_position
from hubmerge.runs.step_folders import keep_step, write_curve

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hubmerge.training.position import Position


@dataclass(frozen=True)
class Trained:
    """What a run left: step -> commit if it is published, step -> its point, and the last's curve.

    `folder` holds the last step.
    """

    repo_id: str | None
    run: str
    commits: dict[int, str]
    points: dict[int, Point]
    curve: tuple[Point, ...]
    folder: Path


def train(
    hub: Hub, run: Run, progress: Progress, *, private: bool = False, patience_s: float = 60.0
) -> Trained | None:
    """Train what is not trained yet, publish what is not published yet; rerun to finish either.

    A Hub that goes away stops neither training nor saving: steps wait on disk and the error at the
    end says so, once `patience_s` pass in vain. None in processes that only help.
    """
    if not run.machine.leads:
        for _ in _train_and_save(run, progress):
            pass
        return None
    if run.to is not None:
        ensure_repo(hub, run.to, private)
    with _alone(run.outbox.folder):
        commits = _worked(hub, run, progress, patience_s)
    curves = {step: run.manifest(step).validation for step in run.steps}
    points = {step: curve[-1] for step, curve in curves.items()}
    last = run.steps[-1]
    return Trained(run.to, run.id, commits, points, curves[last], run.outbox.step_folder(last))


def _worked(hub: Hub, run: Run, progress: Progress, patience_s: float) -> dict[int, str]:
    """Train and publish; returns step -> commit."""
    if run.to is None:
        _finish(run, progress, lambda: None)
        return {}
    publisher = Publisher(hub, run.outbox, lambda step: _publication(hub, run, step))
    try:
        _finish(run, _with_queue(progress, publisher), publisher.notify)
    except BaseException:
        _leave(publisher, patience_s)
        raise
    return publisher.close(patience_s)


def _finish(run: Run, progress: Progress, saved: Callable[[], None]) -> None:
    if run.missing:
        for _ in _train_and_save(run, progress):
            saved()
    forget_position(run)  # also one that a kill left after the last step was saved


def _leave(publisher: Publisher, patience_s: float) -> None:
    """Training failed: publish the steps saved before it did, and let that error speak."""
    try:
        publisher.close(patience_s)
    except Exception:  # the steps stay on disk, and the first error is the one to tell
        return


def _with_queue(progress: Progress, publisher: Publisher) -> Progress:
    """Progress that also tells how many saved steps wait to be pushed."""

    def tell(what: str, done: int, total: int) -> None:
        waiting = publisher.waiting
        progress(f"{what}, {len(waiting)} to push" if waiting else what, done, total)

    return tell


def _train_and_save(run: Run, progress: Progress) -> Iterator[int]:
    """Train line after line; each pushed step is a folder, whole, before its number is yielded."""
    from hubmerge.runs.machine import make_accelerator
    from hubmerge.training.position import read_position

    folder, missing = run.outbox.folder, run.missing
    settings = run.spec.model_dump(mode="json")
    accelerator = make_accelerator(run.machine, run.spec.precision, folder, settings)
    found = read_position(folder, run.id)
    _check_shared(accelerator, folder, missing, found)
    for line in _lines(run, missing):
        start = found[1] if found is not None and found[0] == line[-1] else None
        if start is not None and not _leads_to(start, missing, run):
            start = None
        yield from _line(run, line, accelerator, progress, start)
        accelerator.free_memory()
    accelerator.end_training()


def _check_shared(
    accelerator: Accelerator, folder: Path, missing: tuple[int, ...], found: Any
) -> None:
    """All processes must go on from the same place; none writes before all have looked."""
    if accelerator.num_processes == 1:
        return
    import torch

    seen = [len(missing), *found[:1], found[1].step] if found else [len(missing), -1, -1]
    told = torch.tensor([seen], device=accelerator.device)
    if len(accelerator.gather(told).unique(dim=0)) > 1:
        raise UsageError(
            f"The processes do not see the same {folder}.",
            "Give --out, or HUBMERGE_HOME, a folder that all machines share.",
        )


def _lines(run: Run, missing: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The pushed steps of each line of training that is still to be done."""
    independent = run.spec.anneal == "independent"
    return [(step,) for step in missing] if independent else [run.planned]


def _leads_to(position: Position, missing: tuple[int, ...], run: Run) -> bool:
    """Whether every missing step lies ahead; a user may have removed one that does not."""
    from hubmerge.training.schedule import cooldown_length

    if run.spec.anneal != "branch":
        return all(step > position.step for step in missing)
    left = (step - cooldown_length(step, run.spec.cooldown) for step in missing)
    return all(step >= position.step for step in left)


def _line(
    run: Run,
    line: tuple[int, ...],
    accelerator: Accelerator,
    progress: Progress,
    start: Position | None,
) -> Iterator[int]:
    """Train one line, keep its pushed steps, and yield each when it is kept."""
    from hubmerge.training.fit import freeze_idle, make_fit
    from hubmerge.training.inputs import Data, Watch
    from hubmerge.training.loop import train as train_line
    from hubmerge.training.position import write_position

    begun = run.job.begin()
    learner = begun.learner
    if accelerator.num_processes > 1:
        freeze_idle(learner, learner.collate([learner.for_training(begun.sample, 0)]))
    fit = make_fit(learner, run.spec, accelerator)

    def keep(position: Callable[[], Position]) -> None:
        if run.machine.leads or fit.is_spread:
            standing = position()
            if run.machine.leads and standing.state:
                write_position(run.outbox.folder, run.id, line[-1], standing)

    def keep_often(step: int, position: Callable[[], Position]) -> None:
        if run.machine.state_every and step % run.machine.state_every == 0:
            keep(position)

    watch = Watch(
        progress,
        lambda said, step: accelerator.log(dict(said), step),
        keep_often,
        begun.logged,
    )
    data = Data(begun.training, begun.watched, run.machine.workers)
    for moment in train_line(fit, data, line, watch, start):
        if run.machine.leads:
            write_curve(run.outbox.folder, moment.curve)
        if moment.pushed:
            keep_step(run, begun, fit, moment)
            if not run.machine.state_every:
                keep(moment.position)
            yield moment.step


def _publication(hub: Hub, run: Run, step: int) -> Publication:
    check_repository(hub, run)  # another run may have begun to publish there since
    assert run.to is not None
    return step_publication(run.outbox.step_folder(step), run.manifest(step), run.to)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two processes in one run would overwrite each other's steps."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("ab") as lock:
        if not try_lock(lock):
            raise Busy(f"Another process is training in {folder}.", "Wait for it to end.")
        yield
