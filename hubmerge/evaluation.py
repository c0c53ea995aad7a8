"""Model x task x split -> Score: raw accuracy through the frozen zero-shot head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from hubmerge.models.preprocess import Transform
from hubmerge.models.vision_text import VisionText
from hubmerge.tasks.data import Split
from hubmerge.tasks.heads import zero_shot_head
from hubmerge.tasks.metrics import metric

BATCH = 256


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
    network: ImageClassifier, batches: Iterator[tuple[Tensor, Tensor]], metric_name: str
) -> dict[str, float]:
    """Value in [0, 1], count and standard error over all batches, in evaluation mode."""
    was_training, device = network.training, network.head.device
    network.eval()
    measure = metric(metric_name)
    for images, labels in batches:
        guesses = network(images.to(device)).argmax(dim=-1)
        measure.add_batch(predictions=guesses.cpu(), references=labels)
    network.train(was_training)
    return cast(dict[str, float], measure.compute())


class Examples:
    """The images of a split as the model sees them when evaluated.

    They are prepared once and kept if they take no more than `keep` bytes, else at each pass.
    """

    def __init__(self, transform: Transform, split: Split, keep: int = 500_000_000) -> None:
        self._rows, self._transform = split.rows, transform
        self._keep = keep
        self._kept: list[tuple[Tensor, Tensor]] = []

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of images [B, 3, H, W] and labels [B], in the split's order."""
        if self._kept:
            yield from self._kept
            return
        prepared = (self._batch(start) for start in range(0, len(self._rows), BATCH))
        if self._transform(self._rows[0]["image"]).nbytes * len(self._rows) <= self._keep:
            self._kept = list(prepared)
            yield from self._kept
        else:
            yield from prepared

    def _batch(self, start: int) -> tuple[Tensor, Tensor]:
        rows = self._rows[start : start + BATCH]
        images = torch.stack([self._transform(image) for image in rows["image"]])
        return images, torch.tensor(rows["label"])
