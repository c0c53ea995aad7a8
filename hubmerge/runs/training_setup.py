"""A mixture's network, assembled: base, experts, router, heads, and the rows it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.evaluation import KEEP_BYTES, Examples
from hubmerge.learners.factory import first_head, make_learner, trained_head
from hubmerge.learners.learner import Learner
from hubmerge.learners.multitask import MixedLearner
from hubmerge.models.loading import Model, open_model
from hubmerge.models.recompute import recompute
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.moerging.centroids import start_at_centroids
from hubmerge.moerging.moe_model import Mixture, build
from hubmerge.moerging.router_init import start
from hubmerge.moerging.routing_stats import Book
from hubmerge.opening.expert_heads import copy_heads, heads_of
from hubmerge.runs.job import Begun, Weights
from hubmerge.runs.moe_plan import MoePlan
from hubmerge.runs.routing_recorder import Traffic
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.multitask import make_deck
from hubmerge.tasks.task import Task
from hubmerge.training.inputs import Watched
from hubmerge.weights.header import listed

_SHOWN = 64  # rows of each task that a centroid is the mean of


def begun(plan: MoePlan) -> Begun:
    """Open the base, put the experts into it, and set it at the tasks."""
    model = _opened(plan)
    training = [_rows(plan, task) for task in plan.tasks]
    validation = [load_split(task, "validation") for task in plan.tasks]
    heads = [_head(plan, model, split) for split in validation]
    mixture = _built(plan, model)
    learners = [
        make_learner(model, task, head, plan.asked.augment)
        for task, head in zip(plan.tasks, heads, strict=True)
    ]
    book = Book(mixture.layers, balances=plan.asked.balance > 0)
    learner = MixedLearner.of(learners, plan.tasks, book.balance, plan.asked.balance)
    sample = (0, validation[0].example(0))
    _check_used(book, learner, sample)
    if plan.asked.router in ("centroid", "prompts"):
        start_at_centroids(mixture, _shows(plan, model, learners))
    traffic = Traffic(mixture, book, validation)
    learner.network.train()  # in which alone a balance is told
    if plan.asked.recompute:
        recompute(model)
    watched = tuple(
        Watched(
            learner,
            Examples(learner.at(place), split, KEEP_BYTES // len(validation)),
            partial(traffic.record, place),
        )
        for place, split in enumerate(validation)
    )
    return Begun(
        learner,
        make_deck(training, plan.asked.power),
        watched,
        sample=sample,
        save=partial(_save, plan, mixture, learner.network),
        about={"base_layout": model.layout},
        measure=traffic.write,
        logged=traffic.logged,
        lock=plan.lock,
    )


def _opened(plan: MoePlan) -> Model:
    """The base, which must be able to do every task."""
    *others, last = dict.fromkeys(task.spec.kind for task in plan.tasks)
    for kind in others:
        open_model(plan.base.folder, kind)
    return open_model(plan.base.folder, last)


def _rows(plan: MoePlan, task: Task) -> Split:
    split, most = load_split(task, "train"), plan.asked.max_examples
    return split if most is None else split.sample(most, plan.asked.seed)


def _head(plan: MoePlan, model: Model, split: Split) -> nn.Module | None:
    """A label head is the base's; a trained one is its expert's, and stays as it is."""
    if not split.task.spec.classifies:
        return None
    if split.task.spec.head == "label":
        return first_head(model, split.task, split.classes)
    folders = [
        one.folder
        for one, task in zip(plan.experts.opened, plan.own, strict=True)
        if task is not None and task.id == split.task.id
    ]
    if not folders:
        raise UsageError(
            f"No expert brings a head for {split.task.name}, whose head is trained.",
            "Name an expert that was trained for it, or leave the task out.",
        )
    return trained_head(model, split.task, split.classes, folders[0])


def _built(plan: MoePlan, model: Model) -> Mixture:
    asked, config = plan.asked, plan.config
    data_driven = asked.router in ("centroid", "prompts")
    kind: Any = "zero" if data_driven else asked.router
    names = [expert.name for expert in config.experts]

    def first(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return start(
            kind,
            lora_A,
            lora_B,
            signed=asked.is_signed or data_driven,
            seed=asked.seed,
            module=path,
            experts=names,
        )

    return build(model, plan.experts.adapters, config, first)


@torch.no_grad()  # in inference mode, what a network keeps for later could not be trained on
def _check_used(book: Book, learner: Learner, sample: Any) -> None:
    """Raise CheckpointError for experts in layers that a row does not pass: none could learn."""
    learner.answers(learner.network.eval(), learner.collate([learner.for_evaluation(sample)]))
    if idle := book.idle:
        raise CheckpointError(
            f"The experts adapt {listed(idle, 'layer')}, which no row of the tasks passes.",
            "Use adapters on that part of the base alone that does the task.",
        )


def _shows(plan: MoePlan, model: Model, learners: Sequence[Learner]) -> list[Callable[[], object]]:
    """For each expert, what runs the model over its task."""
    of = {task.id: place for place, task in enumerate(plan.tasks)}
    places = [of[task.id] for task in plan.own if task is not None]
    if plan.asked.router == "prompts":
        return [partial(_prompted, model, plan.tasks[place]) for place in places]
    rows = [_rows(plan, task).sample(_SHOWN, plan.asked.seed) for task in plan.tasks]
    return [partial(_shown, learners[place], rows[place]) for place in places]


def _save(
    plan: MoePlan, mixture: Mixture, network: nn.Module, folder: Path, weights: Weights | None
) -> None:
    if weights is None:
        mixture.save(folder)
    else:
        named = {id(p): name for name, p in network.named_parameters()}
        mixture.save(folder, lambda parameter: weights[named[id(parameter)]])
    copy_heads(heads_of(plan.experts.opened), folder)


def _shown(learner: Learner, rows: Split) -> None:
    network = learner.network.eval()
    examples = Examples(learner.for_evaluation, rows)
    for batch in examples.batches_of(range(len(rows)), learner.collate):
        learner.answers(network, batch)


def _prompted(model: Model, task: Task) -> None:
    assert isinstance(model, TextEncoder)  # checked before anything was opened
    classes = load_split(task, "validation").classes
    model.encode_text(
        [text.replace("{}", name) for text in task.spec.templates for name in classes]
    )
