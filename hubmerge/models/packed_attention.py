"""Whether a language model keeps rows apart that share a sequence."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from hubmerge.errors import UsageError
from hubmerge.models.language_model import LanguageModel

_LENGTHS = (5, 1, 3)  # tokens of the rows that are compared
# Of the largest logit. Rounding of float32 is below 6e-6 of it in 30 layers; untrained models that
# mix rows are off by 0.3 (attention), or 2e-4 (a short convolution of small random weights).
_TOLERANCE = 5e-5


def check_packing(model: LanguageModel) -> None:
    """Raise UsageError for a model that reads rows differently if they share a sequence.

    A few tokens are read both ways, since no config says how: state-space models carry their state
    on, and some classes of transformers do not derive their mask from positions (OPT, GptOss).
    """
    if model.is_seq2seq:
        raise UsageError(
            f"--pack needs a decoder, and {model.name} has an encoder, too.", "Leave --pack out."
        )
    if not _keeps_rows_apart(model.forward_module):
        raise UsageError(
            f"--pack needs a model that keeps rows of one sequence apart by their positions, and "
            f"{model.name} does not.",
            "Leave --pack out; --bucket saves padding, too.",
        )


@torch.no_grad()
def _keeps_rows_apart(module: Any) -> bool:
    if "position_ids" not in inspect.signature(module.forward).parameters:
        return False
    was_training = module.training
    module.eval()
    vocabulary = module.get_input_embeddings().num_embeddings
    # Neighbouring rows differ, and so do the tokens of a row.
    ids = 7 * torch.arange(1, sum(_LENGTHS) + 1) % vocabulary
    positions = torch.cat([torch.arange(length) for length in _LENGTHS])
    packed = _logits(module, ids, positions)
    apart = torch.cat([_logits(module, row, torch.arange(len(row))) for row in ids.split(_LENGTHS)])
    module.train(was_training)
    return bool((packed - apart).abs().max() <= _TOLERANCE * apart.abs().max())


def _logits(module: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """Logits [tokens, vocabulary] of one sequence."""
    output = module(input_ids=ids[None], position_ids=positions[None], use_cache=False)
    logits: Tensor = output.logits[0]
    return logits
