"""Account of who routes where: shares, entropy and load balance, worked out by hand."""

from __future__ import annotations

import math
from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hubmerge.moerging.layer import MixtureLinear, Routing
from hubmerge.moerging.routing_stats import Book
from tests.moerging.worlds import random_layer, random_tokens

E = 4


def plain(top_k: int = 1) -> MixtureLinear:
    """A layer whose scores are its inputs: the router is the identity, and scores are signed."""
    layer = random_layer(experts=E, width=E, out=E, routing=Routing(top_k, signed=True))
    with torch.no_grad():
        layer.router.copy_(torch.eye(E))
    return layer


def tokens(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


def test_shares_and_entropy_by_hand() -> None:
    """Weights of e^s over their sum: ln 3 to 0 is 3/4 to 1/4; equal scores are half each."""
    layer = plain(top_k=2).eval()
    book = Book({"fc": layer})
    layer(tokens([math.log(3), 0, -9, -9], [-9, 5, 5, -9]))
    told = book.take()
    assert told.share.tolist() == [pytest.approx([0.375, 0.375, 0.25, 0])]
    one = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert told.entropy == pytest.approx((one + math.log(2)) / 2)


def test_tokens_count_alike_whatever_batch_they_came_in() -> None:
    layer = plain().eval()
    book = Book({"fc": layer})
    layer(tokens([1, 0, 0, 0]))
    layer(tokens([0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]).view(1, 3, E))
    told = book.take()
    assert told.share.tolist() == [[0.25, 0.5, 0.25, 0]]
    assert told.entropy == 0


def test_what_was_taken_is_forgotten() -> None:
    layer = plain().eval()
    book = Book({"fc": layer})
    layer(tokens([1, 0, 0, 0]))
    book.take()
    layer(tokens([0, 0, 0, 1]))
    assert book.take().share.tolist() == [[0, 0, 0, 1]]
    layer(tokens([1, 0, 0, 0]))
    book.forget()
    layer(tokens([0, 1, 0, 0]))
    assert book.take().share.tolist() == [[0, 1, 0, 0]]


def test_layers_that_nothing_has_passed() -> None:
    layers = {"seen": plain().eval(), "idle": plain().eval()}
    book = Book(layers)
    assert book.idle == ["seen", "idle"]
    layers["seen"](tokens([1, 0, 0, 0]))
    assert book.idle == ["idle"]
    book.forget()
    assert book.idle == ["seen", "idle"]


def test_training_is_not_counted_and_evaluation_is_not_balanced() -> None:
    layer = plain()
    book = Book({"fc": layer}, balances=True)
    layer.eval()(tokens([1, 0, 0, 0]))
    layer.train()(tokens([0, 9, 0, 0], [0, 0, 9, 0]))
    layer.eval()(tokens([1, 0, 0, 0]))
    assert book.take().share.tolist() == [[1, 0, 0, 0]]
    p = math.exp(9) / (math.exp(9) + 3)
    assert book.balance().item() == pytest.approx(E * 2 * 0.5 * (p + (1 - p) / 3) / 2)


@settings(max_examples=30, deadline=None)
@given(top_k=st.integers(1, E), seed=st.integers(0, 99), signed=st.booleans())
def test_shares_of_every_layer_sum_to_1(top_k: int, seed: int, signed: bool) -> None:
    routing = Routing(top_k, signed)
    layers = {str(n): random_layer(E, routing=routing, seed=seed + n).eval() for n in range(3)}
    book = Book(layers)
    for layer in layers.values():
        layer(random_tokens(2, 7, layer.in_features, seed=seed))
    told = book.take()
    assert told.share.shape == (3, E)
    assert told.share.sum(dim=1).tolist() == pytest.approx([1, 1, 1])
    assert 0 <= told.entropy <= math.log(top_k) + 1e-6


@pytest.mark.parametrize("top_k", [1, 2])
def test_an_even_load_is_1_and_a_collapse_is_E(top_k: int) -> None:
    layer = plain(top_k).train()
    book = Book({"fc": layer}, balances=True)
    layer(50 * torch.eye(E) + 25 * torch.eye(E).roll(1, 0))
    assert book.balance().item() == pytest.approx(1)
    layer(50 * torch.eye(E)[:1].expand(9, E))
    assert book.balance().item() == pytest.approx(E / top_k)


def test_balance_is_the_mean_over_layers() -> None:
    layers = {"even": plain().train(), "one": plain().train()}
    book = Book(layers, balances=True)
    layers["even"](50 * torch.eye(E))
    layers["one"](50 * torch.eye(E)[:1].expand(9, E))
    assert book.balance().item() == pytest.approx((1 + E) / 2)


def test_balance_draws_the_router_apart() -> None:
    """Its gradient makes the crowded expert less likely."""
    layer = plain().train()
    book = Book({"fc": layer}, balances=True)
    x = torch.eye(E)[:1].expand(9, E)
    layer(x)
    (grad,) = torch.autograd.grad(book.balance(), layer.router)
    scores = ((layer.router - grad) @ x[0]).softmax(0)
    assert scores[0] < torch.eye(E)[0].softmax(0)[0]


class Recomputed(nn.Module):
    """A layer in a block whose activations may be computed again on the way back."""

    def __init__(self, layer: MixtureLinear, again: bool) -> None:
        super().__init__()
        self.layer, self.again = layer, again

    def forward(self, x: Tensor) -> Tensor:
        if not self.again:
            return cast(Tensor, self.layer(x))
        return cast(Tensor, checkpoint(self.layer, x, use_reentrant=False))


def test_balance_under_gradient_checkpointing_has_the_same_gradients() -> None:
    found = []
    for again in (False, True):
        layer = plain(2).train()
        book = Book({"fc": layer}, balances=True)
        network = Recomputed(layer, again)
        for _ in range(2):  # the second forward must not see what is left of the first
            layer.zero_grad()
            y = network(random_tokens(6, E))
            torch.autograd.backward(y.square().sum() + 0.1 * book.balance())
        found.append(layer.router.grad)
    one, other = found
    assert one is not None
    assert other is not None
    assert torch.equal(one, other)
