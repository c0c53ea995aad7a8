"""hubmerge eval: score models on tasks; each score is measured once and kept in the log."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from hubmerge.calibration import calibration_error, calibration_stderr, read_confidences
from hubmerge.errors import map_all
from hubmerge.evaluation import Examples, accuracy
from hubmerge.hub.client import Hub
from hubmerge.learners.embedding import EmbeddingLearner
from hubmerge.learners.factory import class_model, make_learner
from hubmerge.learners.heads import head_path
from hubmerge.learners.learner import Learner, without_network
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.manifest import Manifest
from hubmerge.models.adapter import apply_adapter
from hubmerge.models.class_model import has_config, put_under_head, read_head_file
from hubmerge.models.loading import Model, load_classifier
from hubmerge.moerging.moe_model import read_moe
from hubmerge.opening.bases import open_base
from hubmerge.opening.opened_model import OpenedModel, PinnedModel
from hubmerge.opening.references import open_pinned, pin, pin_task
from hubmerge.opening.task_heads import TaskHeads
from hubmerge.opening.trained_tasks import find_trained_tasks
from hubmerge.predictions import Predictions, read_predictions
from hubmerge.progress import Progress
from hubmerge.refs import ModelRef
from hubmerge.row_values import (
    MeasuredRows,
    check_metric,
    has_row_metric,
    lm_eval_values,
    mean_token_loss,
    measure_rows,
)
from hubmerge.runs.machine import pick_device
from hubmerge.scores import Score, ScoreLog
from hubmerge.specs import Kind
from hubmerge.tasks.chosen_metric import CALIBRATION, LOSSES, with_metric
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.lm_eval_docs import ALL_ROWS, carved_note
from hubmerge.tasks.lm_eval_name import LmEvalTask
from hubmerge.tasks.task import Task
from hubmerge.weights.adapter_match import match_adapter
from hubmerge.weights.expert_stacks import restack
from hubmerge.weights.kept_heads import kept_head
from hubmerge.weights.match_options import MatchOptions
from hubmerge.weights.task_vector import TaskVector


def evaluate(
    hub: Hub,
    models: Sequence[PinnedModel],
    tasks: Sequence[Task | ModelRef],
    split: str,
    log: ScoreLog,
    progress: Progress,
    device: str | None = None,
    metric: str | None = None,
    print_note: Callable[[str], None] = lambda note: None,
) -> list[Score]:
    """Measure every model on every task, or if `tasks` is empty on those it was trained for.

    A reference among the tasks is an expert, and stands for the tasks that it was trained for.
    `metric` is used instead of those of the tasks. Scores in the log are not measured again. All
    models are opened, and functions tried, before the first is measured. `print_note` gets what is
    to be said of the tasks.
    """
    evaluator = ModelEvaluator(hub, split, pick_device(device))
    opened = map_all(partial(open_pinned, hub), models)
    pinned_tasks = [pinned for task in tasks for pinned in _pin_tasks(hub, task, metric)]
    pairs = [(model, pinned_tasks or find_trained_tasks(hub, model, metric)) for model in opened]
    for task in {task.id: task for _, model_tasks in pairs for task in model_tasks}.values():
        if ":" in task.metric:
            check_metric(evaluator.load_rows(task))
        if split != ALL_ROWS and (note := carved_note(task)):
            print_note(note)
    total, scores = sum(len(model_tasks) for _, model_tasks in pairs), list[Score]()
    known = {(score.model, score.task, score.split): score for score in log.read()}
    for model, model_tasks in pairs:
        for task in model_tasks:
            progress(f"{model.revision.label} on {task.name}", len(scores), total)
            key = (model.digest, task.id, split)
            if key not in known:
                known[key] = evaluator.measure(model, task)
                log.append([known[key]])
            # The same weights may have been measured under another label.
            scores.append(dataclasses.replace(known[key], label=model.revision.label))
    return scores


def _pin_tasks(hub: Hub, task: Task | ModelRef, metric: str | None) -> list[Task]:
    """A task with its data at a commit, or those that an expert was trained for."""
    if isinstance(task, ModelRef):
        return find_trained_tasks(hub, pin(hub, task), metric)
    return [with_metric(pin_task(hub, task), metric)]


class ModelEvaluator:
    """Evaluates models on one split; rows are loaded and preprocessed once for all of them."""

    def __init__(self, hub: Hub, split: str, device: torch.device) -> None:
        self._hub, self._split, self._device = hub, split, device
        self._splits: dict[str, Split] = {}
        self._examples: dict[tuple[str, str], Examples] = {}
        self._last: tuple[tuple[str, Kind], Model] | None = None
        self._heads = TaskHeads(hub)

    def measure(self, model: OpenedModel, task: Task) -> Score:
        """Measure the score of one model on one task."""
        split, (learner, examples) = self.load_rows(task), self._prepare(model, task)
        result = self._measure_metric(learner, examples)
        manifest, data = model.manifest, task.spec.data
        return Score(
            label=model.revision.label,
            model=model.digest,
            task=task.id,
            split=split.name,
            metric=task.metric,
            value=result["value"],
            count=int(result["count"]),
            stderr=result["stderr"],
            unfinished=int(result.get("unfinished", 0)),
            recipe=_recipe_of_result(manifest) if manifest else None,
            data=f"{data.id}@{data.revision}" if data.id else None,
        )

    def _measure_metric(self, learner: Learner, examples: Examples) -> dict[str, float]:
        """Return value, count and standard error of a task's metric over all rows."""
        task, network = examples.split.task, learner.network
        if task.lm_eval is not None:
            return _measure_by_lm_eval(learner, examples.split, task.lm_eval)
        if task.metric in LOSSES:
            loss, error = mean_token_loss(learner, network, examples, self._device)
            count = len(examples.split)
            if task.metric == "loss":
                return {"value": loss, "count": count, "stderr": error}
            perplexity = float(np.exp(loss))
            return {"value": perplexity, "count": count, "stderr": perplexity * error}
        if task.metric == CALIBRATION:
            return self._measure_calibration(learner, examples)
        if not has_row_metric(task):
            batches = examples.batches(learner.collate)
            return accuracy(learner, network, batches, task.metric, self._device)
        rows = range(len(examples.split))
        measured = measure_rows(learner, network, examples, rows, self._device)
        return {
            "value": measured.mean,
            "count": len(rows),
            "stderr": measured.stderr,
            "unfinished": measured.unfinished,
        }

    def _measure_calibration(self, learner: Learner, examples: Examples) -> dict[str, float]:
        batches = (batch for batch, _ in examples.batches(learner.collate))
        confidences = read_confidences(learner, learner.network, batches, self._device)
        value, error = calibration_error(*confidences), calibration_stderr(*confidences)
        return {"value": value, "count": len(examples.split), "stderr": error}

    def predict(self, model: OpenedModel, task: Task) -> Predictions:
        """Return one model's predictions for every row of one task, in order.

        Raises UsageError for a task without classes.
        """
        learner, examples = self._prepare(model, task)
        batches = (batch for batch, _ in examples.batches(learner.collate))
        return read_predictions(learner, learner.network, batches, self._device)

    def load_rows(self, task: Task) -> Split:
        """Return the split of a task, loaded once."""
        if task.id not in self._splits:
            self._splits[task.id] = load_split(task, self._split)
        return self._splits[task.id]

    def _prepare(self, model: OpenedModel, task: Task) -> tuple[Learner, Examples]:
        """Return a learner of the model for the task, on the device, and its prepared examples."""
        split = self.load_rows(task)
        opened, head = self._open_with_head(model, task, split.classes)
        learner = make_learner(opened, task, head, augment=False)
        learner.network.to(self._device)
        return learner, self._prepare_examples(learner, opened, split)

    def _open_with_head(
        self, model: OpenedModel, task: Task, classes: tuple[str, ...]
    ) -> tuple[Model, nn.Module | None]:
        """Open the model, with its head for the task if that has classes."""
        kind = task.spec.kind
        if model.checkpoint.kind == "lora" and task.spec.head == "trained":
            base = open_base(self._hub, model)
            classifier = _open_own_head(base, model, task) if base else None
            if base and classifier is not None:
                opened = load_classifier(base.folder, kind)
                return opened, class_model(opened, classifier, classes, model.revision.label)
        opened = self._open(model, kind)
        return opened, self._heads.load(model, opened, task, classes)

    def _open(self, model: OpenedModel, kind: Kind) -> Model:
        """Open the model as a module; the last one stays open for its next task."""
        if self._last is None or self._last[0] != (model.digest, kind):
            self._last = (model.digest, kind), open_expert(self._hub, model, kind)
        return self._last[1]

    def _prepare_examples(self, learner: Learner, model: Model, split: Split) -> Examples:
        """Return the preprocessed rows, shared by all learners with the same preprocessing."""
        key = (split.task.id, preprocessing_key(learner, model))
        if key not in self._examples:
            self._examples[key] = Examples(without_network(learner).for_evaluation, split)
        return self._examples[key]


def _measure_by_lm_eval(learner: Learner, split: Split, found: LmEvalTask) -> dict[str, float]:
    """Return what lm_eval makes of all rows together, with count and standard error."""
    # Imported here because it imports lm_eval, which is an extra.
    from hubmerge.learners.lm_eval_model import aggregate, resampled_error

    metric, docs = split.task.metric, split.lm_eval
    assert docs is not None
    values = lm_eval_values(learner, learner.network, split, range(len(split)))
    value = aggregate(docs, metric, values)
    if metric in found.row_metrics:
        error = MeasuredRows(tuple(map(float, values))).stderr
    else:
        error = resampled_error(docs, metric, values)
    return {"value": value, "count": len(values), "stderr": error}


def _recipe_of_result(manifest: Manifest) -> str | None:
    """Return the recipe of a merge, or of a mixture of experts at its last step, else None.

    Earlier steps of a mixture have the same recipe as the last one.
    """
    is_finished = manifest.is_merge or manifest.step == manifest.last_step
    return manifest.recipe if not manifest.is_expert and is_finished else None


def preprocessing_key(learner: Learner, model: Model) -> str:
    """Return a key that is equal for learners with the same preprocessing."""
    if hasattr(model, "preprocess"):
        return repr(model.preprocess)
    tokenizer = model.tokenizer
    description = repr(tokenizer)
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # Truncation and padding are set at every call.
        description = json.dumps(
            {k: v for k, v in state.items() if k not in ("truncation", "padding")}
        )
    if isinstance(learner, LanguageLearner):
        limits: object = learner.encoder.settings, tokenizer.chat_template
    elif isinstance(learner, EmbeddingLearner):
        limits = learner.settings
    else:
        limits = getattr(learner, "max_tokens", None)
    special_tokens = tokenizer.eos_token_id, tokenizer.pad_token_id
    return hashlib.sha256(f"{limits}/{special_tokens}/{description}".encode()).hexdigest()


def open_expert(hub: Hub, model: OpenedModel, kind: Kind) -> Model:
    """Open a model of any kind as a module; an adapter or a mixture is applied to its base.

    Raises UsageError if that base is not known.
    """
    if model.checkpoint.kind == "full":
        return load_classifier(model.folder, kind)
    base = open_base(hub, model)
    assert base is not None  # `open_base` raises for an adapter or a mixture without a base
    opened = load_classifier(base.folder, kind)
    if model.checkpoint.is_moe:
        return read_moe(opened, base.checkpoint, model.folder).model
    return apply_adapter(opened, model.folder).model


def _open_own_head(base: OpenedModel, model: OpenedModel, task: Task) -> Any:
    """The base with an adapter's changes under the head that was kept beside it or saved in it.

    None if there is neither, or if the base has the tensors of the head that it saved.
    """
    expert, options = restack(base.checkpoint, model.checkpoint), MatchOptions(heads="keep")
    vector, file = TaskVector(base.checkpoint, expert, options), head_path(model.folder, task)
    if file.is_file() and has_config(file):
        head = read_head_file(file)
    else:
        matched = match_adapter(base.checkpoint, expert, model.revision.label, options)
        if matched.adapter.head.keys() <= base.checkpoint.index.keys():
            return None
        head = kept_head(vector)
    classifier = put_under_head(base.folder, head)
    state = classifier.module.state_dict()
    # Copies of a tied tensor are one parameter, which changes once.
    for module_name, name in {module: name for name, module in classifier.names.items()}.items():
        state[module_name] += torch.from_numpy(vector.delta(name))
    return classifier.module
