"""hubmerge difficulty: measure how hard each row of a task is for some models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from hubmerge.cards.gallery import gallery_png
from hubmerge.difficulty.bins import BINS, rank_rows
from hubmerge.difficulty.difficulty import Difficulty, ModelName, compute_difficulty, score_models
from hubmerge.durable import write_atomic
from hubmerge.flows.evaluate import ModelEvaluator
from hubmerge.flows.examples import ExampleRow, example_rows
from hubmerge.hub.client import Hub
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.predictions import Predictions
from hubmerge.progress import Progress
from hubmerge.runs.machine import pick_device
from hubmerge.tasks.data import load_split
from hubmerge.tasks.task import Task


def measure_difficulty(
    hub: Hub,
    models: Sequence[OpenedModel],
    task: Task,
    split: str,
    device: str | None,
    progress: Progress,
    bins: int = BINS,
    course: Sequence[OpenedModel] = (),
) -> Difficulty:
    """Measure EL2N of every row of a split, averaged over models (in the paper, over seeds).

    For the models in `course`, only accuracy and the share of the loss in each bin are reported.
    Raises UsageError for a task without classes, or for fewer rows than bins.
    """
    evaluator = ModelEvaluator(hub, split, pick_device(device))
    digests = list(dict.fromkeys(model.digest for model in (*models, *course)))
    predictions = dict[str, Predictions]()

    def predict_all(models: Sequence[OpenedModel]) -> Iterator[tuple[ModelName, Predictions]]:
        for model in models:
            if model.digest not in predictions:
                progress(f"{model.revision.label} on {task.name}", len(predictions), len(digests))
                predictions[model.digest] = evaluator.predict(model, task)
            yield model_name(model), predictions[model.digest]

    difficulty = compute_difficulty(task.id, split, list(predict_all(models)), bins)
    return difficulty.with_course(score_models(list(predict_all(course)), difficulty.bin_of, bins))


def hardest_examples(task: Task, difficulty: Difficulty, most: int) -> list[ExampleRow]:
    """Return at most `most` rows with their content, the hardest first."""
    hardest = rank_rows(difficulty.el2n)[::-1][:most].tolist()
    split = load_split(task, difficulty.split)
    return example_rows(split, hardest, difficulty.predicted, difficulty.el2n)


def draw_hardest(difficulty: Difficulty, rows: Sequence[ExampleRow], path: Path) -> None:
    """Write a picture of one or more of these rows."""
    name, models = difficulty.task.partition("@")[0], len(difficulty.models)
    scored_by = difficulty.models[0].label if models == 1 else f"{models} models"
    source = f"{difficulty.count} examples in {difficulty.split} of {name}"
    title = f"the hardest of {source}, by {scored_by}"
    write_atomic(path, gallery_png([(title, rows)]), mode=0o644)


def model_name(model: OpenedModel) -> ModelName:
    """Return the name of a model as a difficulty file records it."""
    return ModelName(model.revision.label, model.digest, model.revision.step)
