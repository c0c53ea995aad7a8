"""A base, opened, adapted and set at a task: what is to become an expert."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, DataError, UsageError
from hubmerge.learners.factory import first_head, make_learner
from hubmerge.learners.heads import save_head
from hubmerge.learners.learner import Learner
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.models.adapter import Adapted, adapt
from hubmerge.models.loading import Model, open_model
from hubmerge.models.recompute import recompute
from hubmerge.opening.opened_model import Opened
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.tasks.examples import Paired, Ranked
from hubmerge.tasks.task import Task
from hubmerge.weights.writer import copy_side_files

_TRIED = 50  # rows that are read beforehand, spread over the split
_LISTED = 2000  # rows whose answers are counted in tokens beforehand


@dataclass(frozen=True)
class Trainee:
    """A learner whose network is about to be trained, and how it is saved."""

    base: Opened
    task: Task
    model: Model
    adapted: Adapted | None
    head: nn.Module | None
    learner: Learner
    classes: tuple[str, ...]
    names: Mapping[str, str]  # of what is saved -> of the same tensor in the network

    @property
    def layout(self) -> str:
        return "peft" if self.adapted else self.model.layout

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write what training changed: a whole model beside the base's other files, or an adapter.

        `weights` by names of the network stand for its own, where those are spread over processes.
        """
        try:
            self._save(folder, weights)
        except SafetensorError as error:  # its way to say that the disk refuses
            raise CheckpointError(
                f"{folder} could not be written: {error}",
                "Make room, then run the same command again.",
            ) from error

    def _save(self, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        if self.adapted:
            self.adapted.save(folder, self._renamed(weights, self.adapted.peft))
        else:
            # The model's own config goes over the base's: it says in which precision they are.
            copy_side_files(self.base.folder, folder)
            self.model.save(folder, self._renamed(weights, self.model.module))
        if self.task.spec.head == "trained":
            assert isinstance(self.head, nn.Linear)
            if weights is not None:
                tensors = {name: weights[f"head.{name}"] for name in ("weight", "bias")}
                self.head.load_state_dict(tensors)
            save_head(self.head, folder, self.task, self.classes)

    def _renamed(
        self, weights: Mapping[str, Tensor] | None, module: nn.Module
    ) -> dict[str, Tensor] | None:
        """Every tensor of `module`, trained ones from `weights`."""
        if weights is None:
            return None
        return {
            name: weights[self.names[name]] if name in self.names else tensor
            for name, tensor in module.state_dict().items()
        }


def make_trainee(base: Opened, task: Task, classes: tuple[str, ...], spec: TrainSpec) -> Trainee:
    """Open a base for a task and make trainable what the spec says.

    Raises CheckpointError, or UsageError where model, task and way of tuning do not go together.
    """
    _check_kind(task, spec)
    model = open_model(base.folder, task.spec.kind)
    head = first_head(model, task, classes)
    adapted = None
    if spec.tune != "full":
        sha = base.revision.sha or base.digest
        name = base.revision.ref.repo_id or str(base.folder)
        adapted = adapt(model, spec, name, sha)
    learner = make_learner(adapted.model if adapted else model, task, head, spec.augment)
    if spec.recompute:
        recompute(model)
    saved = adapted.peft if adapted else model.module
    names = _names(saved, learner.network)
    return Trainee(base, task, model, adapted, head, learner, classes, names)


def _names(saved: nn.Module, network: nn.Module) -> dict[str, str]:
    """The tensors that two modules share: name in one -> name in the other."""
    theirs = {id(p): name for name, p in network.named_parameters(remove_duplicate=False)}
    ours = saved.named_parameters(remove_duplicate=False)
    return {name: theirs[id(p)] for name, p in ours if id(p) in theirs}


def _check_kind(task: Task, spec: TrainSpec) -> None:
    if spec.bucket and task.spec.kind == "image":
        raise UsageError(
            f"--bucket sorts texts by length, and {task.name} is a task of images.", "Leave it out."
        )


def early_notes(learner: Learner, training: Split | None, validation: Split) -> Iterator[str]:
    """What should be known before hours are spent, in one sentence each.

    Raises DataError for rows that cannot be read, and for answers that the tokenizer would cut.
    """
    for split in (training, validation):
        if split is None:
            continue
        for row in range(0, len(split), max(1, len(split) // _TRIED)):
            split.example(row)
        if split.task.spec.classifies and (absent := split.absent()):
            yield (
                f"{len(absent)} of {len(split.classes)} classes of {split.task.name} are not in "
                f"its {split.name} split: {', '.join(absent[:5])}."
            )
        if isinstance(learner, LanguageLearner):
            yield from _reading_notes(learner, split)


def _reading_notes(learner: LanguageLearner, split: Split) -> Iterator[str]:
    rows = range(min(len(split), _LISTED))
    problems, cut = list[str](), 0
    for row in rows:
        example = split.example(row)
        assert isinstance(example, (Ranked, Paired))
        try:
            learner.for_evaluation(example)
        except DataError as error:
            problems.append(error.message)
        cut += learner.is_cut(example.prompt)
    if problems:
        raise DataError(
            f"Task {split.task.name}: {len(problems)} of {len(rows)} {split.name} rows have an "
            f"answer that would be cut. {problems[0]}",
            "Raise `max_tokens:` in the task's YAML, or shorten the answers.",
        )
    if cut:
        yield (
            f"{cut} of {len(rows)} {split.name} prompts of {split.task.name} are longer than "
            f"{learner.max_tokens} tokens and are cut."
        )
