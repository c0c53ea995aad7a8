"""Classification of images and texts: an encoder under a frozen or a trained head.

Shapes: B examples, L tokens, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.nn.utils.rnn import pad_sequence

from hubmerge.errors import CheckpointError
from hubmerge.learners.learner import Batch, Example
from hubmerge.models.preprocess import Transform

TEXT_INPUTS = ("input_ids", "attention_mask")


class LabelHead(nn.Module):
    """Scaled cosine to each frozen label embedding [C, D]: features [B, D] -> logits [B, C]."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, features: Tensor) -> Tensor:
        # In bfloat16 two classes would often have equal logits.
        with torch.autocast(features.device.type, enabled=False):
            return normalize(features.float(), dim=-1) @ self.weight.T


class Classifier(nn.Module):
    """An encoder under a head: inputs -> logits [B, C]."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, *inputs: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.encoder(*inputs)))


class ClassificationLearner:
    """Loss and predictions of a batch, shared by image and text classification."""

    input_names: tuple[str, ...]

    def count_terms(self, batch: Batch) -> int:
        return len(batch["label"])

    def loss(self, network: nn.Module, batch: Batch) -> Tensor:
        return cross_entropy(self.scores(network, batch), batch["label"], reduction="sum")

    def predict(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        logits = self.scores(network, batch)
        check_finite(logits)
        return logits.argmax(dim=-1, keepdim=True), batch["label"].unsqueeze(-1)

    def scores(self, network: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, C]."""
        return cast(Tensor, network(*(batch[name] for name in self.input_names)))


@dataclass(frozen=True)
class ImageLearner(ClassificationLearner):
    """Image classification; `augmented_transform` crops at random in training."""

    network: nn.Module
    transform: Transform
    augmented_transform: Transform | None = None
    input_names: tuple[str, ...] = ("image",)

    @property
    def augments(self) -> bool:
        return self.augmented_transform is not None

    def for_training(self, example: Any, seed: int) -> Example:
        if self.augmented_transform is None:
            return self.for_evaluation(example)
        image, label = example
        # torchvision draws from torch's global generator; fork_rng restores its state.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return {"image": self.augmented_transform(image), "label": label}

    def for_evaluation(self, example: Any) -> Example:
        image, label = example
        return {"image": self.transform(image), "label": label}

    def collate(self, examples: Sequence[Example]) -> Batch:
        images = torch.stack([example["image"] for example in examples])
        return {"image": images, "label": label_tensor(examples)}


@dataclass(frozen=True)
class TextLearner(ClassificationLearner):
    """Text classification; texts are truncated to `max_tokens` tokens."""

    network: nn.Module
    tokenizer: Any
    max_tokens: int
    input_names: tuple[str, ...] = TEXT_INPUTS
    augments: bool = False

    def for_training(self, example: Any, seed: int) -> Example:
        return self.for_evaluation(example)

    def for_evaluation(self, example: Any) -> Example:
        text, label = example
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        return {"input_ids": torch.tensor(ids), "label": label}

    def collate(self, examples: Sequence[Example]) -> Batch:
        ids = [example["input_ids"] for example in examples]
        padded = pad_right(ids, self.tokenizer.pad_token_id)
        mask = pad_right([torch.ones_like(row) for row in ids], 0)
        return {"input_ids": padded, "attention_mask": mask, "label": label_tensor(examples)}


def pad_right(rows: Sequence[Tensor], value: int) -> Tensor:
    """Rows of different lengths as one matrix [N, longest], padded with `value`."""
    return pad_sequence(list(rows), batch_first=True, padding_value=value)


def label_tensor(examples: Sequence[Example]) -> Tensor:
    return torch.tensor([example["label"] for example in examples])


def check_finite(values: Tensor) -> None:
    """Raise CheckpointError for values that are infinite or NaN."""
    # A maximum or minimum is NaN where any value is, and it takes no mask of all values.
    if values.numel() and not torch.stack(values.detach().aminmax()).isfinite().all():
        raise CheckpointError(
            "The model's predictions are not finite.", "Some of its weights are infinite or NaN."
        )
