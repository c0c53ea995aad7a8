"""hubmerge explain: find the rows that a merge forgot, by comparing it with its experts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hubmerge.cards.forgotten import GALLERY, PICTURE
from hubmerge.cards.forgotten_bars import forgotten_bars_png
from hubmerge.cards.gallery import gallery_png
from hubmerge.difficulty.bins import assign_bins
from hubmerge.difficulty.difficulty import Difficulty
from hubmerge.difficulty.forgotten import (
    forgotten_by_bin,
    forgotten_by_class,
    forgotten_rows,
    spread_by_score,
)
from hubmerge.durable import write_atomic
from hubmerge.errors import DataError, IntegrityError, UsageError, raise_together
from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.flows.examples import ExampleRow, example_rows
from hubmerge.forgetting import FORGOTTEN_JSON, ExpertForgetting, Forgetting, ForgottenRow
from hubmerge.hub.client import Hub
from hubmerge.opening.locked_experts import open_source
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.opening.references import open_ref, pin_task
from hubmerge.opening.trained_tasks import find_trained_tasks
from hubmerge.predictions import Predictions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef, parse_ref
from hubmerge.runs.machine import pick_device
from hubmerge.source import Source
from hubmerge.tasks.task import Task

EXAMPLES = 8  # of each expert


@dataclass(frozen=True)
class Explanation:
    """What was forgotten, and for each expert some of these rows with their content."""

    forgetting: Forgetting
    examples: tuple[tuple[ExampleRow, ...], ...]

    @property
    def has_images(self) -> bool:
        return any(row.is_image for rows in self.examples for row in rows)


def explain(
    hub: Hub,
    merged: OpenedModel,
    tasks: Sequence[Task],
    scores: Sequence[Difficulty],
    split: str,
    device: str | None,
    progress: Progress,
    examples: int = EXAMPLES,
) -> Explanation:
    """Find what a merge or a mixture gets wrong that its experts get right.

    Without `tasks`, all tasks of its experts are used. Rows are sorted into ten bins by the
    difficulty of their task if `scores` has one, else by the expert's own EL2N. Raises UsageError
    for a model that was not merged and for a task without an expert or without classes; DataError
    for a difficulty of other rows.
    """
    pinned = [pin_task(hub, task) for task in tasks] or find_trained_tasks(hub, merged)
    pairs = _expert_task_pairs(merged, pinned)
    evaluator, total = ModelEvaluator(hub, split, pick_device(device)), len(pairs) + len(pinned)
    difficulties = _difficulty_by_task(
        scores, {task.id: len(evaluator.load_rows(task)) for task in pinned}, split
    )
    after: dict[str, Predictions] = {}
    for task in pinned:
        progress(f"{merged.revision.label} on {task.name}", len(after), total)
        after[task.id] = evaluator.predict(merged, task)
    summaries, shown = list[ExpertForgetting](), list[tuple[ExampleRow, ...]]()
    for source, task in pairs:
        progress(f"{source.label} on {task.name}", len(after) + len(summaries), total)
        before = evaluator.predict(open_merged_expert(hub, merged, source), task)
        comparison = _Comparison(
            source.label, task.id, before, after[task.id], difficulties.get(task.id)
        )
        rows = example_rows(
            evaluator.load_rows(task),
            comparison.forgotten_rows(examples),
            comparison.after.predicted,
            comparison.scores,
        )
        summaries.append(comparison.summarize(evaluator.load_rows(task).classes, rows))
        shown.append(tuple(rows))
    return Explanation(Forgetting(merged.digest, split, tuple(summaries)), tuple(shown))


def write_explanation(explanation: Explanation, folder: Path) -> list[Path]:
    """Write the bar chart, the gallery if there are images, and last the JSON file."""
    folder.mkdir(parents=True, exist_ok=True)
    has_images = explanation.has_images
    forgetting = replace(explanation.forgetting, pictured=has_images)
    files = {PICTURE: forgotten_bars_png(forgetting)}
    if has_images:
        titles = [
            f"{expert.expert}: right before, wrong in the merge" for expert in forgetting.experts
        ]
        files[GALLERY] = gallery_png(list(zip(titles, explanation.examples, strict=True)))
    else:
        (folder / GALLERY).unlink(missing_ok=True)
    files[FORGOTTEN_JSON] = forgetting.to_bytes()
    for name, content in files.items():
        write_atomic(folder / name, content, mode=0o644)
    return [folder / name for name in files]


def open_merged_expert(hub: Hub, merged: OpenedModel, source: Source) -> OpenedModel:
    """Open an expert of a merge, exactly as it was merged.

    Raises IntegrityError if it is no longer available. A published merge must not choose which
    local folder is read, so a local expert is opened only for a local merge.
    """
    if not source.is_local:
        return open_source(hub, ModelRef(source.name), source)
    if not merged.revision.ref.is_local:
        raise UsageError(
            f"{source.label}, an expert of {merged.revision.label}, was a local folder.",
            "Name other tasks with --tasks.",
        )
    opened = open_ref(hub, parse_ref(source.name))
    if opened.digest != source.digest:
        raise IntegrityError(
            f"{source.label} has changed since it was merged.", "Restore it, or merge again."
        )
    return opened


@dataclass(frozen=True)
class _Comparison:
    """The predictions for one task before and after merging."""

    expert: str
    task: str
    before: Predictions
    after: Predictions
    difficulty: Difficulty | None

    @property
    def scores(self) -> Sequence[float]:
        return self.difficulty.el2n if self.difficulty else self.before.el2n.tolist()

    def forgotten_rows(self, most: int) -> Iterator[int]:
        """Return at most `most` forgotten rows, spread over the scores."""
        forgotten = np.flatnonzero(forgotten_rows(self.before.correct, self.after.correct))
        return iter(spread_by_score(forgotten, self.scores, most).tolist())

    def summarize(self, classes: Sequence[str], rows: Sequence[ExampleRow]) -> ExpertForgetting:
        before, after = self.before, self.after
        scored_by = [model.label for model in self.difficulty.models] if self.difficulty else []
        return ExpertForgetting(
            expert=self.expert,
            task=self.task,
            scored_by=tuple(scored_by or [self.expert]),
            before=before.accuracy,
            after=after.accuracy,
            learnt=int(forgotten_rows(after.correct, before.correct).sum()),
            bins=forgotten_by_bin(before.correct, after.correct, assign_bins(self.scores)),
            classes=forgotten_by_class(before, after, classes),
            examples=tuple(
                ForgottenRow(row.row, row.label, row.predicted, row.score) for row in rows
            ),
        )


def _expert_task_pairs(merged: OpenedModel, tasks: Sequence[Task]) -> list[tuple[Source, Task]]:
    """Pair each expert with its task, in the order of the merge, for the requested tasks."""
    manifest, label = merged.manifest, merged.revision.label
    if manifest is None or not manifest.experts:
        raise UsageError(
            f"{label} was not merged by hubmerge, so its experts are not known.",
            "Name a model that `hubmerge merge` or `hubmerge moerge` made.",
        )
    by_id = {task.id: task for task in tasks}
    pairs = [(expert, by_id[expert.task]) for expert in manifest.experts if expert.task in by_id]
    covered = {task.id for _, task in pairs}
    problems = [f"{label} has no expert for {task.id}." for task in tasks if task.id not in covered]
    trained_for = ", ".join(sorted({str(expert.task) for expert in manifest.experts}))
    raise_together(UsageError, problems, f"Its experts are for {trained_for}.")
    return pairs


def _difficulty_by_task(
    scores: Sequence[Difficulty], rows: Mapping[str, int], split: str
) -> Mapping[str, Difficulty]:
    """Return the difficulties by task id; `rows` is the number of rows of each requested task."""
    problems = [
        f"The difficulty is of {difficulty.count} rows of {difficulty.split} of "
        f"{difficulty.task}, which were not requested."
        for difficulty in scores
        if difficulty.split != split or rows.get(difficulty.task) != difficulty.count
    ]
    requested = ", ".join(f"{count} rows of {task}" for task, count in rows.items())
    raise_together(DataError, problems, f"Requested are {requested}, split {split}.")
    return {difficulty.task: difficulty for difficulty in scores}
