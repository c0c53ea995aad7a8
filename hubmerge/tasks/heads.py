"""The frozen zero-shot head: class names in templates, encoded by the text tower, as one matrix.

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
    """The head [C, D] that turns unit image features [B, D] into logits: exp(logit_scale) x cosine.

    Per class: encode each template, normalise, mean, normalise; `scale` is the model's
    exp(logit_scale). As the task-vectors code does (arXiv 2212.04089), without bias.
    """
    rows = [_class_embedding(encode_text, name, templates) for name in classes]
    return scale * torch.stack(rows)


@torch.no_grad()
def _class_embedding(encode_text: EncodeText, name: str, templates: Sequence[str]) -> Tensor:
    prompts = [template.replace("{}", name) for template in templates]
    each = normalize(encode_text(prompts).float(), dim=-1)  # [T, D]
    return normalize(each.mean(dim=0), dim=-1)  # [D]
