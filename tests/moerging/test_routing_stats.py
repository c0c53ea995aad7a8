"""Routing statistics: shares, entropy and load balance, computed by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hubmerge.moerging.layer import MoeLinear, TokenRouting
from hubmerge.moerging.routing_stats import RoutingStats
from tests.moerging.builders import random_layer, random_tokens

E = 4


def identity_layer(top_k: int = 1) -> MoeLinear:
    """A layer whose scores equal its inputs: an identity router with signed scores."""
    layer = random_layer(experts=E, width=E, out=E, routing=TokenRouting(top_k, signed=True))
    with torch.no_grad():
        layer.router.copy_(torch.eye(E))
    return layer


def make_tokens(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_shares_and_entropy_by_hand() -> None:
    """Weights of e^s over their sum: ln 3 to 0 is 3/4 to 1/4; equal scores are half each."""
    layer = identity_layer(top_k=2).eval()
    stats = RoutingStats({"fc": layer})
    layer(make_tokens([math.log(3), 0, -9, -9], [-9, 5, 5, -9]))
    summary = stats.pop_summary()
    assert summary.share.tolist() == [pytest.approx([0.375, 0.375, 0.25, 0])]
    first_entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert summary.entropy == pytest.approx((first_entropy + math.log(2)) / 2)


def test_tokens_of_all_batches_count_equally() -> None:
    layer = identity_layer().eval()
    stats = RoutingStats({"fc": layer})
    layer(make_tokens([1, 0, 0, 0]))
    layer(make_tokens([0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]).view(1, 3, E))
    summary = stats.pop_summary()
    assert summary.share.tolist() == [[0.25, 0.5, 0.25, 0]]
    assert summary.entropy == 0


def test_summary_and_reset_clear_the_counts() -> None:
    layer = identity_layer().eval()
    stats = RoutingStats({"fc": layer})
    layer(make_tokens([1, 0, 0, 0]))
    stats.pop_summary()
    layer(make_tokens([0, 0, 0, 1]))
    assert stats.pop_summary().share.tolist() == [[0, 0, 0, 1]]
    layer(make_tokens([1, 0, 0, 0]))
    stats.reset()
    layer(make_tokens([0, 1, 0, 0]))
    assert stats.pop_summary().share.tolist() == [[0, 1, 0, 0]]


def test_unused_layers() -> None:
    layers = {"used": identity_layer().eval(), "idle": identity_layer().eval()}
    stats = RoutingStats(layers)
    assert stats.unused_layers == ["used", "idle"]
    layers["used"](make_tokens([1, 0, 0, 0]))
    assert stats.unused_layers == ["idle"]
    stats.reset()
    assert stats.unused_layers == ["used", "idle"]


def test_training_is_not_counted_and_evaluation_is_not_balanced() -> None:
    layer = identity_layer()
    stats = RoutingStats({"fc": layer}, track_balance=True)
    layer.eval()(make_tokens([1, 0, 0, 0]))
    layer.train()(make_tokens([0, 9, 0, 0], [0, 0, 9, 0]))
    layer.eval()(make_tokens([1, 0, 0, 0]))
    assert stats.pop_summary().share.tolist() == [[1, 0, 0, 0]]
    p = math.exp(9) / (math.exp(9) + 3)
    assert stats.balance_loss().item() == pytest.approx(E * 2 * 0.5 * (p + (1 - p) / 3) / 2)


@settings(max_examples=30)
@given(top_k=st.integers(1, E), seed=st.integers(0, 99), signed=st.booleans())
def test_shares_of_every_layer_sum_to_1(top_k: int, seed: int, signed: bool) -> None:
    routing = TokenRouting(top_k, signed)
    layers = {str(n): random_layer(E, routing=routing, seed=seed + n).eval() for n in range(3)}
    stats = RoutingStats(layers)
    for layer in layers.values():
        layer(random_tokens(2, 7, layer.in_features, seed=seed))
    summary = stats.pop_summary()
    assert summary.share.shape == (3, E)
    assert summary.share.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert 0 <= summary.entropy <= math.log(top_k) + 1e-6


@pytest.mark.parametrize("top_k", [1, 2])
def test_balance_loss_of_even_load_and_of_collapse(top_k: int) -> None:
    layer = identity_layer(top_k).train()
    stats = RoutingStats({"fc": layer}, track_balance=True)
    layer(50 * torch.eye(E) + 25 * torch.eye(E).roll(1, 0))
    assert stats.balance_loss().item() == pytest.approx(1)
    layer(50 * torch.eye(E)[:1].expand(9, E))
    assert stats.balance_loss().item() == pytest.approx(E / top_k)


def test_balance_loss_is_the_mean_over_layers() -> None:
    layers = {"even": identity_layer().train(), "one": identity_layer().train()}
    stats = RoutingStats(layers, track_balance=True)
    layers["even"](50 * torch.eye(E))
    layers["one"](50 * torch.eye(E)[:1].expand(9, E))
    assert stats.balance_loss().item() == pytest.approx((1 + E) / 2)


def test_balance_loss_spreads_tokens() -> None:
    """Its gradient makes the overloaded expert less likely."""
    layer = identity_layer().train()
    stats = RoutingStats({"fc": layer}, track_balance=True)
    x = torch.eye(E)[:1].expand(9, E)
    layer(x)
    (grad,) = torch.autograd.grad(stats.balance_loss(), layer.router)
    scores = ((layer.router - grad) @ x[0]).softmax(0)
    assert scores[0] < torch.eye(E)[0].softmax(0)[0]


class Recomputed(nn.Module):
    """A layer whose activations may be recomputed in the backward pass."""

    def __init__(self, layer: MoeLinear, recompute: bool) -> None:
        super().__init__()
        self.layer, self.recompute = layer, recompute

    def forward(self, x: Tensor) -> Tensor:
        if not self.recompute:
            return cast(Tensor, self.layer(x))
        return cast(Tensor, checkpoint(self.layer, x, use_reentrant=False))


def test_balance_loss_with_gradient_checkpointing_has_the_same_gradients() -> None:
    gradients = []
    for recomputed in (False, True):
        layer = identity_layer(2).train()
        stats = RoutingStats({"fc": layer}, track_balance=True)
        network = Recomputed(layer, recomputed)
        for _ in range(2):  # the first forward must not affect the second
            layer.zero_grad()
            y = network(random_tokens(6, E))
            torch.autograd.backward(y.square().sum() + 0.1 * stats.balance_loss())
        gradients.append(layer.router.grad)
    plain, checkpointed = gradients
    assert plain is not None
    assert checkpointed is not None
    assert torch.equal(plain, checkpointed)
