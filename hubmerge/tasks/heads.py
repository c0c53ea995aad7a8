"""The zero-shot head: a matrix of text embeddings of the class names in templates.

Shapes: C classes, T templates, D embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import normalize

EncodeText = Callable[[Sequence[str]], Tensor]


def zero_shot_head(
    encode_text: EncodeText, scale: float, classes: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """The head [C, D] from normalised features [B, D] to logits: `scale` x cosine.

    For each class: encode it in each template, normalise, average, and normalise again. `scale` is
    the model's exp(logit_scale). Same as the task-vectors code (arXiv 2212.04089); no bias.
    """
    embeddings = [_class_embedding(encode_text, name, templates) for name in classes]
    return scale * torch.stack(embeddings)


@torch.no_grad()
def _class_embedding(encode_text: EncodeText, name: str, templates: Sequence[str]) -> Tensor:
    prompts = [template.replace("{}", name) for template in templates]
    each = normalize(encode_text(prompts).float(), dim=-1)  # [T, D]
    return normalize(each.mean(dim=0), dim=-1)  # [D]
