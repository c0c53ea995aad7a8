"""The zero-shot head, with values by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from hubmerge.tasks.heads import zero_shot_head

EMBEDDINGS = {
    "a cat.": [3.0, 4.0],
    "one cat!": [0.0, 2.0],
    "a dog.": [5.0, 0.0],
    "one dog!": [1.0, 0.0],
}


def encode(prompts: Sequence[str]) -> Tensor:
    return torch.tensor([EMBEDDINGS[prompt] for prompt in prompts], requires_grad=True)


def test_templates_have_equal_weight_and_classes_have_length_scale() -> None:
    head = zero_shot_head(encode, 100.0, ["cat", "dog"], ["a {}.", "one {}!"])
    # cat: (.6, .8) and (0, 1), mean (.3, .9), divided by its length sqrt(.9).
    assert head.tolist() == [pytest.approx([31.6228, 94.8683]), pytest.approx([100.0, 0.0])]
    assert not head.requires_grad
