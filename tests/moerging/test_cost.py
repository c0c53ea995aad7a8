"""What a mixture costs, counted by hand on a ViT of two layers, 32 wide, 64 within."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubmerge.moerging.cost import cost
from tests.moerging.networks import lora, mixture, opened, write

# In each of two layers: q, k, v and o [32, 32]; fc1 [64, 32] and fc2 [32, 64].
LINEAR = 2 * (4 * 32 * 32 + 2 * 32 * 64)
WIDTHS = 2 * (4 * (32 + 32) + 2 * (32 + 64))  # of inputs and outputs
INPUTS = 2 * (5 * 32 + 64)


@pytest.mark.parametrize(("ranks", "top_k"), [((2,), 1), ((2, 2, 2), 2), ((1, 3), 2), ((1, 5), 1)])
def test_by_hand(tmp_path: Path, ranks: tuple[int, ...], top_k: int) -> None:
    base = write("vit", tmp_path / "base")
    whole = sum(weight.numel() for weight in opened("vit", base).module.parameters())
    experts = [lora("vit", base, tmp_path / f"e{n}", r=rank) for n, rank in enumerate(ranks)]
    said = cost(mixture("vit", base, experts, top_k))
    trained = sum(ranks) * WIDTHS + len(ranks) * INPUTS
    parameters = said.parameters
    assert (parameters.base, parameters.merged) == (whole, whole)
    assert (parameters.mixture, parameters.trained) == (whole + trained, trained)
    mean = sum(ranks) / len(ranks)
    flops = said.flops_per_token
    assert (flops.base, flops.merged) == (LINEAR, LINEAR)
    assert flops.mixture == LINEAR + len(ranks) * INPUTS + top_k * mean * WIDTHS


def test_an_attention_taken_apart_costs_no_more(tmp_path: Path) -> None:
    """open_clip's model has two towers, and a matrix [96, 32] for q, k and v; 128 within."""
    base = write("open_clip", tmp_path / "base")
    whole = sum(weight.numel() for weight in opened("open_clip", base).module.parameters())
    said = cost(mixture("open_clip", base, [lora("open_clip", base, tmp_path / "e")]))
    assert said.parameters.base == whole
    assert said.flops_per_token.base == 2 * (96 * 32 + 32 * 32 + 2 * 32 * 128)
