"""Routers that start where each task's rows lie: means worked out by hand."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hubmerge.moerging.centroids import start_at_centroids
from hubmerge.moerging.layer import MixtureLinear, Routing


class Two(nn.Module):
    """Two mixtures, one after the other; the first doubles what it is given, as its base."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.first = doubling(experts)
        self.second = doubling(experts)

    def forward(self, x: Tensor) -> Tensor:
        seen: Tensor = self.second(self.first(x))
        return seen


@dataclass(frozen=True)
class Made:
    """As much of a mixture as a start needs."""

    network: Two
    config: Any = field(default=None)

    @property
    def layers(self) -> dict[str, MixtureLinear]:
        return {"first": self.network.first, "second": self.network.second}


def doubling(experts: int) -> MixtureLinear:
    base = nn.Linear(2, 2, bias=False)
    base.load_state_dict({"weight": 2 * torch.eye(2)})
    A, B = torch.ones(experts, 1, 2), torch.ones(experts, 2, 1)
    rows = torch.ones(experts, 2)
    return MixtureLinear(base, A, B, torch.full((experts,), 7.0), rows, Routing(1, signed=True))


def started(*tasks: list[list[float]]) -> Made:
    """A router of each task's rows; those of a task come one by one."""
    made: Any = Made(Two(len(tasks)))

    def show(rows: list[list[float]]) -> None:
        for row in rows:
            made.network(torch.tensor([row], dtype=torch.float32))

    start_at_centroids(made, [partial(show, rows) for rows in tasks])
    told: Made = made
    return told


def test_directions_from_the_mean_over_all_to_each() -> None:
    """Means (2, 0), (0, 2), (1, 4), over all (1, 2): what is left is (1, -2), (-1, 0), (0, 2)."""
    made = started([[1, 0], [3, 0]], [[0, 2]], [[1, 4]])
    wanted = torch.tensor([[1 / 5**0.5, -2 / 5**0.5], [-1, 0], [0, 1]])
    for layer in made.layers.values():
        torch.testing.assert_close(layer.router.detach(), wanted)


def test_experts_have_no_say_and_are_there_again() -> None:
    """What reaches the second layer is what the base alone makes of the rows."""
    made = started([[1, 0]], [[0, 1]])
    wanted = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 2**0.5
    torch.testing.assert_close(made.layers["second"].router.detach(), wanted)
    assert all(layer.scale.tolist() == [7, 7] for layer in made.layers.values())
    assert all(layer.router.requires_grad for layer in made.layers.values())
    assert not any(layer._forward_pre_hooks for layer in made.layers.values())


def test_an_expert_at_the_common_mean_gets_zeros() -> None:
    made = started([[1, 0]], [[0, 1]], [[0.5, 0.5]])
    assert made.layers["first"].router[2].tolist() == [0, 0]
    alone = started([[3, 4]])
    assert alone.layers["first"].router.tolist() == [[0, 0]]
