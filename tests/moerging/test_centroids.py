"""Routers initialised from centroids, with means computed by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hubmerge.moerging.centroids import init_from_centroids
from hubmerge.moerging.layer import MoeLinear, TokenRouting


class TwoLayers(nn.Module):
    """Two layers with experts in sequence; the base of each doubles its input."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.first = doubling_layer(experts)
        self.second = doubling_layer(experts)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.second(self.first(x))
        return output


@dataclass(frozen=True)
class SmallMoe:
    """The parts of a MoeModel that the initialisation needs."""

    network: TwoLayers
    config: Any = field(default=None)

    @property
    def layers(self) -> dict[str, MoeLinear]:
        return {"first": self.network.first, "second": self.network.second}


def doubling_layer(experts: int) -> MoeLinear:
    base = nn.Linear(2, 2, bias=False)
    base.load_state_dict({"weight": 2 * torch.eye(2)})
    A, B = torch.ones(experts, 1, 2), torch.ones(experts, 2, 1)
    rows = torch.ones(experts, 2)
    return MoeLinear(base, A, B, torch.full((experts,), 7.0), rows, TokenRouting(1, signed=True))


def initialised(*tasks: list[list[float]]) -> SmallMoe:
    """A model initialised from each task's rows, one row per forward."""
    moe: Any = SmallMoe(TwoLayers(len(tasks)))

    def run_task(rows: list[list[float]]) -> None:
        for row in rows:
            moe.network(torch.tensor([row], dtype=torch.float32))

    init_from_centroids(moe, [partial(run_task, rows) for rows in tasks])
    initialised_moe: SmallMoe = moe
    return initialised_moe


def test_directions_from_the_overall_mean_to_each_mean() -> None:
    """Means (2, 0), (0, 2), (1, 4), over all (1, 2): what is left is (1, -2), (-1, 0), (0, 2)."""
    moe = initialised([[1, 0], [3, 0]], [[0, 2]], [[1, 4]])
    expected = torch.tensor([[1 / 5**0.5, -2 / 5**0.5], [-1, 0], [0, 1]])
    for layer in moe.layers.values():
        torch.testing.assert_close(layer.router.detach(), expected)


def test_experts_are_disabled_and_restored() -> None:
    """The second layer gets the output of the base alone."""
    moe = initialised([[1, 0]], [[0, 1]])
    expected = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(moe.layers["second"].router.detach(), expected)
    assert all(layer.scale.tolist() == [7, 7] for layer in moe.layers.values())
    assert all(layer.router.requires_grad for layer in moe.layers.values())
    assert not any(layer._forward_pre_hooks for layer in moe.layers.values())


def test_expert_at_the_overall_mean_gets_zeros() -> None:
    moe = initialised([[1, 0]], [[0, 1]], [[0.5, 0.5]])
    assert moe.layers["first"].router[2].tolist() == [0, 0]
    alone = initialised([[3, 4]])
    assert alone.layers["first"].router.tolist() == [[0, 0]]
