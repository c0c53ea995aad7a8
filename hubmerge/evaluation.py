"""Model x task x split -> raw accuracy through the frozen zero-shot head.

Shapes: B images of a batch, H x W pixels, D embedding, C classes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hubmerge.errors import CheckpointError
from hubmerge.models.preprocess import Transform
from hubmerge.models.vision_text import VisionText
from hubmerge.tasks.data import Split
from hubmerge.tasks.heads import zero_shot_head
from hubmerge.tasks.metrics import metric

BATCH = 256
KEEP_BYTES = 500_000_000

Batch = tuple[Tensor, Tensor]  # images [B, 3, H, W], labels [B]


class ImageClassifier(nn.Module):
    """An image encoder under a frozen head: images [B, 3, H, W] -> logits [B, C]."""

    head: Tensor

    def __init__(self, encoder: nn.Module, head: Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("head", head)

    def forward(self, images: Tensor) -> Tensor:
        return normalize(self.encoder(images), dim=-1) @ self.head.T


def classifier(model: VisionText, split: Split) -> ImageClassifier:
    """The model's encoder under the zero-shot head of the split's task."""
    templates = split.task.spec.templates
    head = zero_shot_head(model.encode_text, model.scale(), split.classes, templates)
    return ImageClassifier(model.encoder, head)


@torch.inference_mode()
def accuracy(
    network: ImageClassifier, batches: Iterable[Batch], metric_name: str
) -> dict[str, float]:
    """Value in [0, 1], count and standard error over all batches, in evaluation mode.

    Raises CheckpointError for logits that are no numbers: argmax would take them for a class.
    """
    was_training, device = network.training, network.head.device
    network.eval()
    measure = metric(metric_name)
    for images, labels in batches:
        logits = network(images.to(device))
        if not logits.isfinite().all():
            raise CheckpointError(
                "The model's logits are not numbers.", "Some of its weights are infinite or NaN."
            )
        measure.add_batch(predictions=logits.argmax(dim=-1).cpu(), references=labels)
    network.train(was_training)
    return cast(dict[str, float], measure.compute())


class Examples:
    """The images of a split as the model sees them when evaluated.

    Each is prepared when first asked for, and kept while all that are kept take at most
    `keep_bytes`.
    """

    def __init__(self, transform: Transform, split: Split, keep_bytes: int = KEEP_BYTES) -> None:
        self.split, self._transform = split, transform
        self.kept_bytes, self._keep_bytes = 0, keep_bytes
        self._kept: dict[int, tuple[Tensor, int]] = {}

    def batches(self) -> Iterator[Batch]:
        """All examples in the split's order, BATCH at a time."""
        for start in range(0, len(self.split), BATCH):
            yield self.batch(range(start, min(start + BATCH, len(self.split))))

    def batch(self, rows: Sequence[int]) -> Batch:
        """The examples of these rows."""
        images, labels = zip(*map(self._example, rows), strict=True)
        return torch.stack(images), torch.tensor(labels)

    def _example(self, row: int) -> tuple[Tensor, int]:
        if row in self._kept:
            return self._kept[row]
        picture, label = self.split.example(row)
        image = self._transform(picture)
        if self.kept_bytes + image.nbytes <= self._keep_bytes:
            self.kept_bytes += image.nbytes
            self._kept[row] = image, label
        return image, label
