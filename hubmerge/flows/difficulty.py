"""hubmerge difficulty: models x a task's rows -> how hard each row is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubmerge.cards.gallery import gallery_picture
from hubmerge.difficulty.bins import BINS, ranked
from hubmerge.difficulty.difficulty import Difficulty, Name, asked_of, difficulty_of
from hubmerge.durable import write_whole
from hubmerge.flows.evaluate import Bench
from hubmerge.flows.examples import Shown, shown
from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import Opened
from hubmerge.predictions import Answers
from hubmerge.progress import Progress
from hubmerge.runs.machine import pick_device
from hubmerge.tasks.data import load_split
from hubmerge.tasks.task import Task


def measure(
    hub: Hub,
    models: Sequence[Opened],
    task: Task,
    split: str,
    device: str | None,
    progress: Progress,
    bins: int = BINS,
    course: Sequence[Opened] = (),
) -> Difficulty:
    """EL2N of every row of a split, the mean over the models: seeds of one step, in the paper.

    Of those in `course` only accuracy and the share of the loss in each bin are told. Raises
    UsageError for a task without classes, or for fewer rows than bins.
    """
    bench = Bench(hub, split, pick_device(device))
    every = list(dict.fromkeys(model.digest for model in (*models, *course)))
    told = dict[str, Answers]()

    def answered(asked: Sequence[Opened]) -> Iterator[tuple[Name, Answers]]:
        for model in asked:
            if model.digest not in told:
                progress(f"{model.revision.label} on {task.name}", len(told), len(every))
                told[model.digest] = bench.answers(model, task)
            yield name_of(model), told[model.digest]

    found = difficulty_of(task.id, split, list(answered(models)), bins)
    return found.with_course(asked_of(list(answered(course)), found.bin_of, bins))


def answers_of(
    hub: Hub,
    opened: Opened,
    task: Task,
    split: str,
    device: str | None = None,
    bench: Bench | None = None,
) -> Answers:
    """What a model of any kind says of every row of a split, in their order.

    A `bench` of that split keeps rows between models. Of a merge that is in memory, ask its Stage.
    """
    return (bench or Bench(hub, split, pick_device(device))).answers(opened, task)


def hardest_examples(task: Task, difficulty: Difficulty, most: int) -> list[Shown]:
    """So many rows at most to look at, the hardest first."""
    hardest = ranked(difficulty.el2n)[::-1][:most].tolist()
    split = load_split(task, difficulty.split)
    return shown(split, hardest, difficulty.predicted, difficulty.el2n)


def draw_hardest(difficulty: Difficulty, seen: Sequence[Shown], path: Path) -> None:
    """Write a picture of these rows, one or more."""
    name, models = difficulty.task.partition("@")[0], len(difficulty.models)
    by = difficulty.models[0].label if models == 1 else f"{models} models"
    title = f"the hardest of {difficulty.count} examples in {difficulty.split} of {name}, by {by}"
    write_whole(path, gallery_picture([(title, seen)]), mode=0o644)


def name_of(model: Opened) -> Name:
    """What a difficulty or a forgetting calls a model."""
    return Name(model.revision.label, model.digest, model.revision.step)
