"""Build the training of a mixture of experts: network, heads, router start and data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.evaluation import CACHE_BYTES, Examples
from hubmerge.learners.factory import initial_head, load_trained_head, make_learner
from hubmerge.learners.learner import Learner
from hubmerge.learners.multitask import MultiTaskLearner
from hubmerge.models.loading import Model, load_model
from hubmerge.models.recompute import enable_recompute
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.moerging.centroids import init_from_centroids
from hubmerge.moerging.moe_model import MoeModel, build_moe
from hubmerge.moerging.router_init import init_router
from hubmerge.moerging.routing_stats import RoutingStats
from hubmerge.opening.expert_heads import find_heads, write_heads
from hubmerge.runs.job import ReadyJob, Weights
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.routing_recorder import RoutingRecorder
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.multitask import make_multitask_data
from hubmerge.tasks.task import Task
from hubmerge.training.inputs import ValidationTask
from hubmerge.weights.header import summarize_names

_CENTROID_ROWS = 64  # rows of each task over which a centroid is the mean


def build_training(plan: MoePlan) -> ReadyJob:
    """Load the base, insert the experts and the router, and load the data of the tasks."""
    model = _load_base(plan)
    training = [_training_rows(plan, task) for task in plan.tasks]
    validation = [load_split(task, "validation") for task in plan.tasks]
    heads = [_load_head(plan, model, split) for split in validation]
    moe = _build_moe_model(plan, model)
    learners = [
        make_learner(model, task, head, plan.moe_spec.augment)
        for task, head in zip(plan.tasks, heads, strict=True)
    ]
    stats = RoutingStats(moe.layers, track_balance=plan.moe_spec.balance > 0)
    learner = MultiTaskLearner.from_learners(
        learners, plan.tasks, stats.balance_loss, plan.moe_spec.balance
    )
    sample = (0, validation[0].example(0))
    _check_layers_used(stats, learner, sample)
    if plan.moe_spec.router in ("centroid", "prompts"):
        init_from_centroids(moe, _centroid_passes(plan, model, learners))
    recorder = RoutingRecorder(moe, stats, validation)
    learner.network.train()  # the balance is recorded in training mode only
    if plan.moe_spec.recompute:
        enable_recompute(model)
    validation_tasks = tuple(
        ValidationTask(
            learner,
            Examples(learner.evaluation_of_task(index), split, CACHE_BYTES // len(validation)),
            partial(recorder.record, index),
        )
        for index, split in enumerate(validation)
    )
    return ReadyJob(
        learner=learner,
        training=make_multitask_data(training, plan.moe_spec.sampling_power),
        validation_tasks=validation_tasks,
        sample=sample,
        save=partial(_save, plan, moe, learner.network),
        manifest_fields={"base_layout": model.layout},
        write_measurements=recorder.write_routing,
        extra_metrics=recorder.metrics,
        lock=plan.lock,
    )


def _load_base(plan: MoePlan) -> Model:
    """Load the base; raises an error if it cannot be used for the kind of a task."""
    *others, last = dict.fromkeys(task.spec.kind for task in plan.tasks)
    for kind in others:
        load_model(plan.base.folder, kind)
    return load_model(plan.base.folder, last)


def _training_rows(plan: MoePlan, task: Task) -> Split:
    split, count = load_split(task, "train"), plan.moe_spec.max_examples
    return split if count is None else split.sample(count, plan.moe_spec.seed)


def _load_head(plan: MoePlan, model: Model, split: Split) -> nn.Module | None:
    """A label head embedded by the base, or the trained head of an expert, which is not changed."""
    if not split.task.spec.is_classification:
        return None
    if split.task.spec.head == "label":
        return initial_head(model, split.task, split.classes)
    folders = [
        expert.folder
        for expert, task in zip(plan.experts.models, plan.expert_tasks, strict=True)
        if task is not None and task.id == split.task.id
    ]
    if not folders:
        raise UsageError(
            f"No expert has the trained head of {split.task.name}.",
            "Name an expert that was trained for it, or leave the task out.",
        )
    return load_trained_head(model, split.task, split.classes, folders[0])


def _build_moe_model(plan: MoePlan, model: Model) -> MoeModel:
    spec, config = plan.moe_spec, plan.config
    data_driven = spec.router in ("centroid", "prompts")
    kind: Any = "zero" if data_driven else spec.router
    names = [expert.name for expert in config.experts]

    def init_row(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return init_router(
            kind,
            lora_A,
            lora_B,
            signed=spec.is_signed or data_driven,
            seed=spec.seed,
            module=path,
            experts=names,
        )

    return build_moe(model, plan.experts.adapters, config, init_row)


@torch.no_grad()  # tensors that a network caches in inference mode could not be trained on
def _check_layers_used(stats: RoutingStats, learner: Learner, sample: Any) -> None:
    """Raise CheckpointError for experts in layers that no row passes: these cannot be trained."""
    learner.predict(learner.network.eval(), learner.collate([learner.for_evaluation(sample)]))
    if unused := stats.unused_layers:
        layers = summarize_names(unused, "layer")
        raise CheckpointError(
            f"The experts adapt {layers}, which no row of the tasks passes.",
            "Use adapters on the part of the base that the tasks use.",
        )


def _centroid_passes(
    plan: MoePlan, model: Model, learners: Sequence[Learner]
) -> list[Callable[[], object]]:
    """For each expert, a function that runs the model on data of its task."""
    index_of = {task.id: index for index, task in enumerate(plan.tasks)}
    indices = [index_of[task.id] for task in plan.expert_tasks if task is not None]
    if plan.moe_spec.router == "prompts":
        return [partial(_run_prompts, model, plan.tasks[index]) for index in indices]
    rows = [
        _training_rows(plan, task).sample(_CENTROID_ROWS, plan.moe_spec.seed) for task in plan.tasks
    ]
    return [partial(_run_rows, learners[index], rows[index]) for index in indices]


def _save(
    plan: MoePlan, moe: MoeModel, network: nn.Module, folder: Path, weights: Weights | None
) -> None:
    if weights is None:
        moe.save(folder)
    else:
        names = {id(p): name for name, p in network.named_parameters()}
        moe.save(folder, lambda parameter: weights[names[id(parameter)]])
    write_heads(find_heads(plan.experts.models), folder)


def _run_rows(learner: Learner, rows: Split) -> None:
    network = learner.network.eval()
    examples = Examples(learner.for_evaluation, rows)
    for batch in examples.batches_of(range(len(rows)), learner.collate):
        learner.predict(network, batch)


def _run_prompts(model: Model, task: Task) -> None:
    assert isinstance(model, TextEncoder)  # checked by check_router_start
    classes = load_split(task, "validation").classes
    model.encode_text(
        [text.replace("{}", name) for text in task.spec.templates for name in classes]
    )
