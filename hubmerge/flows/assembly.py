"""A mixture's network, assembled: base, experts, router, heads, and the rows it learns from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.evaluation import KEEP_BYTES, Examples
from hubmerge.flows.combination import copy_heads, heads_of
from hubmerge.flows.job import Begun, Weights
from hubmerge.flows.traffic import Traffic
from hubmerge.learners.learner import Learner
from hubmerge.learners.making import first_head, make_learner, trained_head
from hubmerge.learners.mixed import MixedLearner
from hubmerge.models.opening import Model, open_model
from hubmerge.models.recompute import recompute
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.moerging.book import Book
from hubmerge.moerging.centroids import start_at_centroids
from hubmerge.moerging.mixture import Mixture, build
from hubmerge.moerging.starts import start
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.deck import make_deck
from hubmerge.tasks.task import Task
from hubmerge.training.watch import Watched
from hubmerge.weights.header import listed

if TYPE_CHECKING:
    from hubmerge.flows.mixture import MixtureJob

_SHOWN = 64  # rows of each task that a centroid is the mean of


def begun(job: MixtureJob) -> Begun:
    """Open the base, put the experts into it, and set it at the tasks."""
    model = _opened(job)
    training = [_rows(job, task) for task in job.tasks]
    validation = [load_split(task, "validation") for task in job.tasks]
    heads = [_head(job, model, split) for split in validation]
    mixture = _built(job, model)
    learners = [
        make_learner(model, task, head, job.asked.augment)
        for task, head in zip(job.tasks, heads, strict=True)
    ]
    book = Book(mixture.layers, balances=job.asked.balance > 0)
    learner = MixedLearner.of(learners, job.tasks, book.balance, job.asked.balance)
    sample = (0, validation[0].example(0))
    _check_used(book, learner, sample)
    if job.asked.router in ("centroid", "prompts"):
        start_at_centroids(mixture, _shows(job, model, learners))
    traffic = Traffic(mixture, book, validation)
    learner.network.train()  # in which alone a balance is told
    if job.asked.recompute:
        recompute(model)
    watched = tuple(
        Watched(
            learner,
            Examples(learner.at(place), split, KEEP_BYTES // len(validation)),
            partial(traffic.saw, place),
        )
        for place, split in enumerate(validation)
    )
    return Begun(
        learner,
        make_deck(training, job.asked.power),
        watched,
        sample=sample,
        save=partial(_save, job, mixture, learner.network),
        about={"base_layout": model.layout},
        measure=traffic.write,
        logged=traffic.logged,
        lock=job.lock,
    )


def _opened(job: MixtureJob) -> Model:
    """The base, which must be able to do every task."""
    *others, last = dict.fromkeys(task.spec.kind for task in job.tasks)
    for kind in others:
        open_model(job.base.folder, kind)
    return open_model(job.base.folder, last)


def _rows(job: MixtureJob, task: Task) -> Split:
    split, most = load_split(task, "train"), job.asked.max_examples
    return split if most is None else split.sample(most, job.asked.seed)


def _head(job: MixtureJob, model: Model, split: Split) -> nn.Module | None:
    """A label head is the base's; a trained one is its expert's, and stays as it is."""
    if not split.task.spec.classifies:
        return None
    if split.task.spec.head == "label":
        return first_head(model, split.task, split.classes)
    folders = [
        one.folder
        for one, task in zip(job.experts.opened, job.own, strict=True)
        if task is not None and task.id == split.task.id
    ]
    if not folders:
        raise UsageError(
            f"No expert brings a head for {split.task.name}, whose head is trained.",
            "Name an expert that was trained for it, or leave the task out.",
        )
    return trained_head(model, split.task, split.classes, folders[0])


def _built(job: MixtureJob, model: Model) -> Mixture:
    asked, config = job.asked, job.config
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

    return build(model, job.experts.adapters, config, first)


@torch.no_grad()  # in inference mode, what a network keeps for later could not be trained on
def _check_used(book: Book, learner: Learner, sample: Any) -> None:
    """Raise CheckpointError for experts in layers that a row does not pass: none could learn."""
    learner.answers(learner.network.eval(), learner.collate([learner.for_evaluation(sample)]))
    if idle := book.idle:
        raise CheckpointError(
            f"The experts adapt {listed(idle, 'layer')}, which no row of the tasks passes.",
            "Use adapters on that part of the base alone that does the task.",
        )


def _shows(
    job: MixtureJob, model: Model, learners: Sequence[Learner]
) -> list[Callable[[], object]]:
    """For each expert, what runs the model over its task."""
    of = {task.id: place for place, task in enumerate(job.tasks)}
    places = [of[task.id] for task in job.own if task is not None]
    if job.asked.router == "prompts":
        return [partial(_prompted, model, job.tasks[place]) for place in places]
    rows = [_rows(job, task).sample(_SHOWN, job.asked.seed) for task in job.tasks]
    return [partial(_shown, learners[place], rows[place]) for place in places]


def _save(
    job: MixtureJob, mixture: Mixture, network: nn.Module, folder: Path, weights: Weights | None
) -> None:
    if weights is None:
        mixture.save(folder)
    else:
        named = {id(p): name for name, p in network.named_parameters()}
        mixture.save(folder, lambda parameter: weights[named[id(parameter)]])
    copy_heads(heads_of(job.experts.opened), folder)


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
