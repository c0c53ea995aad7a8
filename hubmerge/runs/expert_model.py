"""The model of an expert: a base with a head or an adapter for one task, and how it is saved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from safetensors import SafetensorError
from torch import Tensor, nn

from hubmerge.errors import CheckpointError, DataError, UsageError
from hubmerge.learners.embedding import EmbeddingLearner
from hubmerge.learners.factory import initial_head, make_learner
from hubmerge.learners.heads import save_head
from hubmerge.learners.learner import Learner
from hubmerge.learners.ranking import LanguageLearner
from hubmerge.models.adapter import AdaptedModel, add_adapter
from hubmerge.models.embedder import Embedder, complete_modules
from hubmerge.models.language_model import LanguageModel
from hubmerge.models.loading import Model, load_model
from hubmerge.models.packed_attention import check_packing
from hubmerge.models.quantised import quantise_to_4bit
from hubmerge.models.recompute import enable_recompute
from hubmerge.opening.opened_model import OpenedModel
from hubmerge.specs import TrainSpec
from hubmerge.tasks.data import Split
from hubmerge.tasks.examples import ChatExample, LanguageExample
from hubmerge.tasks.row_formats import describe_shapes, shape_of
from hubmerge.tasks.source import source_notes
from hubmerge.tasks.task import Task
from hubmerge.weights.side_files import copy_module_files, copy_side_files

_SAMPLED_ROWS = 50  # images and texts that are read before training, spread over the split
_TOKENIZED_ROWS = 2000  # rows of language tasks that become tokens before training


@dataclass(frozen=True)
class ExpertModel:
    """A learner with the network to train, and how it is saved."""

    base: OpenedModel
    task: Task
    model: Model
    adapted: AdaptedModel | None
    head: nn.Module | None
    learner: Learner
    classes: tuple[str, ...]
    network_names: Mapping[str, str]  # name in the saved module -> name in the network

    @property
    def layout(self) -> str:
        return "peft" if self.adapted else self.model.layout

    def training_learner(self, spec: TrainSpec) -> Learner:
        """The learner that makes the batches of training."""
        if spec.pack and isinstance(self.learner, LanguageLearner):
            return replace(self.learner, packs=True)
        return self.learner

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Write a full model with the other files of the base, or an adapter.

        `weights`, by their names in the network, replace its own if these are sharded over
        processes.
        """
        try:
            self._save(folder, weights)
        except SafetensorError as error:  # raised by safetensors for a full disk
            raise CheckpointError(
                f"{folder} could not be written: {error}",
                "Free disk space, then run the same command again.",
            ) from error

    def _save(self, folder: Path, weights: Mapping[str, Tensor] | None) -> None:
        if self.adapted:
            self.adapted.save(folder, self._renamed(weights, self.adapted.peft_model))
            if isinstance(self.model, Embedder):
                copy_module_files(self.base.folder, folder)
                complete_modules(self.model, folder)
        else:
            # The config of the model replaces that of the base: the dtype may differ.
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
        """All tensors of `module`, the trained ones from `weights`."""
        if weights is None:
            return None
        return {
            name: weights[self.network_names[name]] if name in self.network_names else tensor
            for name, tensor in module.state_dict().items()
        }


def make_expert_model(
    base: OpenedModel, task: Task, classes: tuple[str, ...], spec: TrainSpec
) -> ExpertModel:
    """Load a base for a task and make the parameters trainable that the spec names.

    Raises CheckpointError, or UsageError if model, task and `tune` do not go together.
    """
    _check_kind(task, spec)
    model = load_model(base.folder, task.spec.kind)
    head = initial_head(model, task, classes)
    adapted = None
    if spec.load_in == "4bit":
        quantise_to_4bit(model)
    if spec.tune != "full":
        sha = base.revision.sha or base.digest
        name = base.revision.ref.repo_id or str(base.folder)
        adapted = add_adapter(model, spec, name, sha)
    learner = make_learner(adapted.model if adapted else model, task, head, spec.augment)
    if spec.pack and isinstance(model, LanguageModel):
        check_packing(model)
    if spec.recompute:
        enable_recompute(model)
    saved = adapted.peft_model if adapted else model.module
    names = _shared_names(saved, learner.network)
    return ExpertModel(base, task, model, adapted, head, learner, classes, names)


def _shared_names(saved: nn.Module, network: nn.Module) -> dict[str, str]:
    """The parameters that two modules share: name in the first -> name in the second."""
    network_names = {id(p): name for name, p in network.named_parameters(remove_duplicate=False)}
    parameters = saved.named_parameters(remove_duplicate=False)
    return {name: network_names[id(p)] for name, p in parameters if id(p) in network_names}


def _check_kind(task: Task, spec: TrainSpec) -> None:
    if spec.bucket and task.spec.kind == "image":
        raise UsageError(
            f"--bucket sorts texts by length, and {task.name} is a task of images.", "Leave it out."
        )
    if task.spec.kind == "pairs" and spec.tune == "prefix":
        raise UsageError(
            "Prefix tuning is for language models only, and embeddings have no prompt to continue.",
            "Use `tune: lora`.",
        )
    if spec.pack and task.spec.kind != "target":
        raise UsageError(
            f"--pack is for tasks of `kind: target`, and {task.name} is of `kind: "
            f"{task.spec.kind}`.",
            "Leave it out.",
        )


def data_notes(learner: Learner, training: Split | None, validation: Split) -> Iterator[str]:
    """Notes on the data before training, one sentence each.

    Raises DataError for rows that cannot be read, and for answers that are too long or have no
    tokens; UsageError for a model that cannot read such rows.
    """
    yield from source_notes(validation.task)
    for split in (training, validation):
        if split is None:
            continue
        if split.skipped:
            yield f"{split.skipped} broken rows of {split.task.name} {split.name} are left out."
        if isinstance(learner, LanguageLearner):
            yield from _language_notes(learner, split)
            continue
        if isinstance(learner, EmbeddingLearner):
            yield from _pair_notes(learner, split)
            continue
        for row in range(0, len(split), max(1, len(split) // _SAMPLED_ROWS)):
            split.example(row)
        if split.task.spec.is_classification and (absent := split.absent_classes()):
            yield (
                f"{len(absent)} of {len(split.classes)} classes of {split.task.name} are not in "
                f"its {split.name} split: {', '.join(absent[:5])}."
            )


def _pair_notes(learner: EmbeddingLearner, split: Split) -> Iterator[str]:
    """Notes on the texts of pairs; raises DataError for rows that cannot be used.

    Training rows need something that is far, and validation rows more than one document.
    """
    texts, spec = split.documents.texts, split.task.spec
    if len(texts) < 2 and not spec.negative:
        raise DataError(
            f"All {len(split)} {split.name} rows of {split.task.name} have one positive: there is "
            "nothing that an embedding should be far from.",
            "Give rows with other positives, or a `negative`.",
        )
    sample = texts[:_TOKENIZED_ROWS]
    cut = sum(len(ids) >= learner.max_tokens for ids in learner.encode_documents(sample))
    if cut:
        yield (
            f"{cut} of {len(sample)} {split.name} documents of {split.task.name} have "
            f"{learner.max_tokens} tokens or more, and are cut there."
        )


def check_batch_of_pairs(task: Task, spec: TrainSpec, processes: int) -> None:
    """Raise UsageError for batches of one pair, in which a positive has no negatives."""
    rows = spec.batch // (spec.accumulate * processes)
    if task.spec.kind == "pairs" and rows < 2 and not task.spec.negative:
        raise UsageError(
            f"Each batch of {task.name} would be one pair, without another pair to compare it "
            "with.",
            "Give a larger --batch or a smaller --accumulate, or a task with a `negative`.",
        )


def _language_notes(learner: LanguageLearner, split: Split) -> Iterator[str]:
    """Notes on how the rows become tokens; raises DataError for rows that cannot.

    Every row is read; the first ones become tokens.
    """
    problems, counts, row_of_shape = list[DataError](), Counter[str](), dict[str, str]()
    for row in range(len(split)):
        try:
            example = cast(LanguageExample, split.example(row))
            row_of_shape.setdefault(shape_of(example), f"{split.name} row {row}")
            counts["tools"] += isinstance(example, ChatExample) and example.has_tools
            if row < _TOKENIZED_ROWS:
                with _name_row(split, row):
                    encoded = learner.encoder.encode(example)
                counts["truncated"] += encoded.is_truncated
                counts["merged"] += not encoded.is_aligned
        except DataError as error:
            problems.append(error)
    name = f"{split.name} rows of {split.task.name}"
    if problems:
        raise DataError(
            f"{len(problems)} of {len(split)} {name} cannot be used. {problems[0].message}",
            problems[0].hint,
        )
    if len(row_of_shape) > 1:
        raise DataError(
            f"Task {split.task.name}: {describe_shapes(row_of_shape)}.",
            "Write all rows in one shape, or make a task of each.",
        )
    if counts["tools"]:
        yield (
            f"{counts['tools']} of {len(split)} {name} have tools, which are ignored: calls and "
            "their results are left out."
        )
    name = f"{min(len(split), _TOKENIZED_ROWS)} {name}"
    if counts["truncated"]:
        yield (
            f"{counts['truncated']} of {name} are longer than {learner.encoder.max_tokens} tokens "
            "and are truncated."
        )
    if counts["merged"]:
        yield (
            f"{counts['merged']} of {name} have an answer whose first characters are in a token of "
            "the prompt, and are not predicted; end the prompt where a word ends, or write "
            '`join: " "` in the task\'s YAML.'
        )


@contextmanager
def _name_row(split: Split, row: int) -> Iterator[None]:
    try:
        yield
    except DataError as error:
        message = f"Task {split.task.name}: {split.name} row {row}: {error.message.rstrip('.')}."
        raise DataError(message, error.hint) from error
