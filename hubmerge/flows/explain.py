"""hubmerge explain: a merge and its experts x their tasks' rows -> what the merge forgot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hubmerge.cards.forgotten import GALLERY, PICTURE
from hubmerge.cards.forgotten_bars import forgotten_picture
from hubmerge.cards.gallery import gallery_picture
from hubmerge.difficulty.bins import bins_of
from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.difficulty.forgotten import by_class, forgotten, lost, spread
from hubmerge.durable import write_whole
from hubmerge.errors import DataError, IntegrityError, UsageError, raise_together
from hubmerge.flows.evaluate import Bench
from hubmerge.flows.examples import Shown, shown
from hubmerge.forgetting import NAME, Example, Forgetting, OfExpert
from hubmerge.hub.client import Hub
from hubmerge.manifest import Source
from hubmerge.opening.locked_experts import open_source
from hubmerge.opening.opened_model import Opened
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.opening.trained_tasks import own_tasks
from hubmerge.predictions import Answers
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.runs.machine import pick_device
from hubmerge.tasks.task import Task

EXAMPLES = 8  # of each expert


@dataclass(frozen=True)
class Explained:
    """What was forgotten, and rows of it to look at, expert by expert."""

    forgetting: Forgetting
    shown: tuple[tuple[Shown, ...], ...]

    @property
    def has_images(self) -> bool:
        return any(one.is_image for its in self.shown for one in its)


def explain(
    hub: Hub,
    merged: Opened,
    tasks: Sequence[Task],
    scores: Sequence[Difficulty],
    split: str,
    device: str | None,
    progress: Progress,
    examples: int = EXAMPLES,
) -> Explained:
    """What a merge or a mixture has wrong that its experts have right; without tasks, of them all.

    Rows are sorted into ten bins by a difficulty of their task where `scores` have one, else by the
    expert's own EL2N. Raises UsageError for what was not merged, for a task without an expert in
    it or without classes, DataError for a difficulty of other rows.
    """
    pinned = [pin_task(hub, task) for task in tasks] or own_tasks(hub, merged)
    pairs = _pairs(merged, pinned)
    bench, total = Bench(hub, split, pick_device(device)), len(pairs) + len(pinned)
    known = _by_task(scores, {task.id: len(bench.rows(task)) for task in pinned}, split)
    after: dict[str, Answers] = {}
    for task in pinned:
        progress(f"{merged.revision.label} on {task.name}", len(after), total)
        after[task.id] = bench.answers(merged, task)
    told, looked = list[OfExpert](), list[tuple[Shown, ...]]()
    for source, task in pairs:
        progress(f"{source.label} on {task.name}", len(after) + len(told), total)
        before = bench.answers(open_expert_of(hub, merged, source), task)
        one = _Compared(source.label, task.id, before, after[task.id], known.get(task.id))
        seen = shown(bench.rows(task), one.rows(examples), one.after.predicted, one.scores)
        told.append(one.told(bench.rows(task).classes, seen))
        looked.append(tuple(seen))
    return Explained(Forgetting(merged.digest, split, tuple(told)), tuple(looked))


def write_explained(explained: Explained, folder: Path) -> list[Path]:
    """Write what was forgotten, its bars, and images to look at; the JSON last, if all is there."""
    folder.mkdir(parents=True, exist_ok=True)
    pictured = explained.has_images
    told = replace(explained.forgetting, pictured=pictured)
    files = {PICTURE: forgotten_picture(told)}
    if pictured:
        titles = [f"{one.expert}: right before, wrong in the merge" for one in told.experts]
        files[GALLERY] = gallery_picture(list(zip(titles, explained.shown, strict=True)))
    else:
        (folder / GALLERY).unlink(missing_ok=True)
    files[NAME] = told.to_bytes()
    for name, content in files.items():
        write_whole(folder / name, content, mode=0o644)
    return [folder / name for name in files]


def open_expert_of(hub: Hub, merged: Opened, source: Source) -> Opened:
    """An expert of a merge, just as it was merged.

    Raises IntegrityError if it is not to be had any more. A repository may not choose which of our
    folders is read, so an expert that was a folder is opened for a merge in a folder only.
    """
    if not source.is_local:
        return open_source(hub, ModelRef(source.name), source)
    if not merged.revision.ref.is_local:
        raise UsageError(
            f"{source.label}, of which {merged.revision.label} was made, was a folder.",
            "Name other tasks with --task.",
        )
    opened = open_ref(hub, parse_ref(source.name))
    if opened.digest != source.digest:
        raise IntegrityError(
            f"{source.label} is not what it was when it was merged.", "Put it back, or merge anew."
        )
    return opened


@dataclass(frozen=True)
class _Compared:
    """One task's rows before merging and after."""

    expert: str
    task: str
    before: Answers
    after: Answers
    difficulty: Difficulty | None

    @property
    def scores(self) -> Sequence[float]:
        return self.difficulty.el2n if self.difficulty else self.before.el2n.tolist()

    def rows(self, most: int) -> Iterator[int]:
        """Forgotten rows to look at."""
        gone = np.flatnonzero(lost(self.before.right, self.after.right))
        return iter(spread(gone, self.scores, most).tolist())

    def told(self, classes: Sequence[str], seen: Sequence[Shown]) -> OfExpert:
        before, after = self.before, self.after
        by = [model.label for model in self.difficulty.models] if self.difficulty else []
        return OfExpert(
            expert=self.expert,
            task=self.task,
            scored_by=tuple(by or [self.expert]),
            before=before.accuracy,
            after=after.accuracy,
            learnt=int(lost(after.right, before.right).sum()),
            bins=forgotten(before.right, after.right, bins_of(self.scores)),
            classes=by_class(before, after, classes),
            examples=tuple(Example(x.row, x.label, x.predicted, x.score) for x in seen),
        )


def _pairs(merged: Opened, tasks: Sequence[Task]) -> list[tuple[Source, Task]]:
    """Each expert with its task, in the order of the merge, as far as tasks were asked for."""
    manifest, label = merged.manifest, merged.revision.label
    if manifest is None or not manifest.experts:
        raise UsageError(
            f"{label} was not merged by hubmerge, so what it may have forgotten is not known.",
            "Name what `hubmerge merge` or `hubmerge moerge` made.",
        )
    by_id = {task.id: task for task in tasks}
    pairs = [(one, by_id[one.task]) for one in manifest.experts if one.task in by_id]
    had = {task.id for _, task in pairs}
    problems = [f"{label} has no expert for {task.id}." for task in tasks if task.id not in had]
    trained_for = ", ".join(sorted({str(one.task) for one in manifest.experts}))
    raise_together(UsageError, problems, f"Its experts are for {trained_for}.")
    return pairs


def _by_task(
    scores: Sequence[Difficulty], rows: Mapping[str, int], split: str
) -> Mapping[str, Difficulty]:
    """Task id -> its difficulty; `rows` says how many rows each task that is asked for has."""
    problems = [
        f"The difficulty is of {one.count} rows of {one.split} of {one.task}, which is not asked "
        "for."
        for one in scores
        if one.split != split or rows.get(one.task) != one.count
    ]
    asked = ", ".join(f"{count} rows of {task}" for task, count in rows.items())
    raise_together(DataError, problems, f"Asked for are {asked}, split {split}.")
    return {one.task: one for one in scores}
