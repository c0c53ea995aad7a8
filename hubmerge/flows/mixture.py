"""A mixture of experts as a job, and a mixture's folder as a model."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from hubmerge.errors import UsageError
from hubmerge.evaluation import KEEP_BYTES, Examples
from hubmerge.flows.combination import copy_heads, heads_of
from hubmerge.flows.expert import flags
from hubmerge.flows.experts import Experts
from hubmerge.flows.job import Begun, Weights
from hubmerge.flows.machine import Machine
from hubmerge.flows.sources import Opened
from hubmerge.flows.traffic import logged, write_routing
from hubmerge.learners.learner import Learner
from hubmerge.learners.making import first_head, make_learner, trained_head
from hubmerge.learners.mixed import MixedLearner
from hubmerge.manifest import Manifest
from hubmerge.models.opening import Model, open_model
from hubmerge.models.recompute import recompute
from hubmerge.models.text_encoder import TextEncoder
from hubmerge.moerging.book import Book
from hubmerge.moerging.centroids import start_at_centroids
from hubmerge.moerging.mixture import Mixture, build
from hubmerge.moerging.starts import start
from hubmerge.specs import MoeSpec, TrainSpec
from hubmerge.tasks.data import Split, load_split
from hubmerge.tasks.deck import make_deck
from hubmerge.tasks.task import Task
from hubmerge.training.loop import Watched
from hubmerge.training.schedule import push_steps
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig, expert_names

if TYPE_CHECKING:
    from hubmerge.training.loop import Moment

_SHOWN = 64  # rows of each task that a centroid is the mean of


@dataclass(frozen=True)
class MixtureJob:
    """The making of one mixture: what was asked, its experts, and the tasks it is trained on.

    `own` is the task of each expert, in their order, None where nobody said; `words` are the
    command's, from the experts on.
    """

    asked: MoeSpec
    experts: Experts
    tasks: tuple[Task, ...]
    own: tuple[Task | None, ...]
    words: tuple[str, ...]
    kind: Literal["expert", "moe"] = "moe"

    @property
    def base(self) -> Opened:
        return self.experts.base

    @property
    def spec(self) -> TrainSpec:
        return self.asked.training

    @property
    def planned(self) -> tuple[int, ...]:
        """Without training, the start itself is what is kept."""
        if not self.asked.train_steps:
            return (0,)
        return push_steps(self.spec.push_every, self.spec.steps)

    @property
    def params(self) -> dict[str, Any]:
        """All that decides the mixture beside base and experts."""
        return {**self.asked.settings, "tasks": [task.id for task in self.tasks]}

    @property
    def identity(self) -> list[Any]:
        parts = [source.key for source in self.experts.sources]
        return [self.params, self.planned, self.base.digest, parts]

    @property
    def config(self) -> MoeConfig:
        """The mixture's configuration, but for its layers."""
        asked, base = self.asked, self.base
        wanted = [s.task_name or s.name.rpartition("/")[2] for s in self.experts.sources]
        names = expert_names(wanted)
        return MoeConfig(
            base_model=base.revision.ref.repo_id or str(base.folder),
            base_revision=base.revision.sha or None,
            base_digest=base.digest,
            layout="open_clip" if _is_open_clip(base.folder) else "transformers",
            experts=tuple(
                MoeExpert(name, s.task, s.step, s.name, None if s.is_local else s.sha)
                for name, s in zip(names, self.experts.sources, strict=True)
            ),
            top_k=asked.top_k,
            modules=(),
            router=RouterConfig(asked.is_signed, asked.temperature, asked.router),
        )

    def begin(self) -> Begun:
        model = self._opened()
        training = [self._rows(task) for task in self.tasks]
        validation = [load_split(task, "validation") for task in self.tasks]
        heads = [self._head(model, split) for split in validation]
        mixture = self._built(model)
        learners = [
            make_learner(model, task, head, self.asked.augment)
            for task, head in zip(self.tasks, heads, strict=True)
        ]
        if self.asked.router in ("centroid", "prompts"):
            start_at_centroids(mixture, self._shows(model, learners))
        if self.asked.recompute:
            recompute(model)
        book = Book(mixture.layers, balances=self.asked.balance > 0)
        learner = MixedLearner.of(learners, self.tasks, book.balance, self.asked.balance)
        watched = tuple(
            Watched(learner, Examples(learner.at(place), split, KEEP_BYTES // len(validation)))
            for place, split in enumerate(validation)
        )
        return Begun(
            learner,
            make_deck(training, self.asked.power),
            watched,
            sample=(0, validation[0].example(0)),
            save=partial(self._save, mixture, learner.network),
            about={"base_layout": model.layout},
            measure=partial(write_routing, mixture, book, watched),
            logged=partial(logged, mixture, book),
        )

    def command(self, machine: Machine) -> str:
        words = ["hubmerge", "moerge"]
        if machine.world > 1:
            words = ["torchrun", "--nproc_per_node", str(machine.world), "-m", *words]
        said = self.asked.model_dump(exclude_defaults=True)
        return shlex.join([*words, *self.words, *flags(said)])

    def manifest(self, moment: Moment, begun: Begun) -> Manifest:
        kinds = {task.spec.kind for task in self.tasks}
        revisions = {task.name: task.spec.data.revision for task in self.tasks}
        notes = {"notes": self.experts.notes} if self.experts.notes else {}
        return Manifest(
            kind="moe",
            base=self.experts.base_source,
            experts=self.experts.sources,
            method="moe",
            params=self.params,
            task_kind=kinds.pop() if len(kinds) == 1 else "several",
            last_step=self.asked.train_steps,
            training={**begun.about, **notes, "data_revisions": revisions},
            layout="hubmerge-moe",
        )

    def _opened(self) -> Model:
        """The base, which must be able to do every task."""
        *others, last = dict.fromkeys(task.spec.kind for task in self.tasks)
        for kind in others:
            open_model(self.base.folder, kind)
        return open_model(self.base.folder, last)

    def _rows(self, task: Task) -> Split:
        split, most = load_split(task, "train"), self.asked.max_examples
        return split if most is None else split.sample(most, self.asked.seed)

    def _head(self, model: Model, split: Split) -> nn.Module | None:
        """A label head is the base's; a trained one is its expert's, and stays as it is."""
        if not split.task.spec.classifies:
            return None
        if split.task.spec.head == "label":
            return first_head(model, split.task, split.classes)
        folders = [
            one.folder
            for one, task in zip(self.experts.opened, self.own, strict=True)
            if task is not None and task.id == split.task.id
        ]
        if not folders:
            raise UsageError(
                f"No expert brings a head for {split.task.name}, whose head is trained.",
                "Name an expert that was trained for it, or leave the task out.",
            )
        return trained_head(model, split.task, split.classes, folders[0])

    def _built(self, model: Model) -> Mixture:
        asked, config = self.asked, self.config
        data_driven = asked.router in ("centroid", "prompts")
        kind: Any = "zero" if data_driven else asked.router
        names = [expert.name for expert in config.experts]

        def first(path: str, lora_A: torch.Tensor, lora_B: torch.Tensor) -> torch.Tensor:
            return start(
                kind,
                lora_A,
                lora_B,
                signed=asked.is_signed or data_driven,
                seed=asked.seed,
                module=path,
                experts=names,
            )

        return build(model, self.experts.adapters, config, first)

    def _shows(self, model: Model, learners: Sequence[Learner]) -> list[Callable[[], object]]:
        """For each expert, what runs the model over its task."""
        of = {task.id: place for place, task in enumerate(self.tasks)}
        places = [of[task.id] for task in self.own if task is not None]
        if self.asked.router == "prompts":
            return [partial(_prompted, model, self.tasks[place]) for place in places]
        rows = [self._rows(task).sample(_SHOWN, self.asked.seed) for task in self.tasks]
        return [partial(_shown, learners[place], rows[place]) for place in places]

    def _save(
        self, mixture: Mixture, network: nn.Module, folder: Path, weights: Weights | None
    ) -> None:
        if weights is None:
            mixture.save(folder)
        else:
            named = {id(p): name for name, p in network.named_parameters()}
            mixture.save(folder, lambda parameter: weights[named[id(parameter)]])
        copy_heads(heads_of(self.experts.opened), folder)


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()


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
