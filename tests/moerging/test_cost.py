"""The cost of a mixture, counted by hand for a ViT of two layers with width 32 and MLP width 64."""

from __future__ import annotations

from pathlib import Path

import pytest

from hubmerge.moerging.cost import compute_cost
from tests.moerging.networks import make_moe, open_base, write_base, write_lora

# In each of two layers: q, k, v and o [32, 32]; fc1 [64, 32] and fc2 [32, 64].
LINEAR = 2 * (4 * 32 * 32 + 2 * 32 * 64)
WIDTHS = 2 * (4 * (32 + 32) + 2 * (32 + 64))  # of inputs and outputs
INPUTS = 2 * (5 * 32 + 64)


@pytest.mark.parametrize(("ranks", "top_k"), [((2,), 1), ((2, 2, 2), 2), ((1, 3), 2), ((1, 5), 1)])
def test_by_hand(tmp_path: Path, ranks: tuple[int, ...], top_k: int) -> None:
    base = write_base("vit", tmp_path / "base")
    base_count = sum(weight.numel() for weight in open_base("vit", base).module.parameters())
    experts = [write_lora("vit", base, tmp_path / f"e{n}", r=rank) for n, rank in enumerate(ranks)]
    cost = compute_cost(make_moe("vit", base, experts, top_k))
    trained = sum(ranks) * WIDTHS + len(ranks) * INPUTS
    parameters = cost.parameters
    assert (parameters.base, parameters.merged) == (base_count, base_count)
    assert (parameters.mixture, parameters.trained) == (base_count + trained, trained)
    mean = sum(ranks) / len(ranks)
    flops = cost.flops_per_token
    assert (flops.base, flops.merged) == (LINEAR, LINEAR)
    assert flops.mixture == LINEAR + len(ranks) * INPUTS + top_k * mean * WIDTHS


def test_unfused_attention_has_the_same_cost(tmp_path: Path) -> None:
    """open_clip's model has two towers, and a matrix [96, 32] for q, k and v; MLP width 128."""
    base = write_base("open_clip", tmp_path / "base")
    base_count = sum(weight.numel() for weight in open_base("open_clip", base).module.parameters())
    cost = compute_cost(
        make_moe("open_clip", base, [write_lora("open_clip", base, tmp_path / "e")])
    )
    assert cost.parameters.base == base_count
    assert cost.flops_per_token.base == 2 * (96 * 32 + 32 * 32 + 2 * 32 * 128)
