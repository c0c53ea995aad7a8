"""Record the routing of each task while a mixture of experts is validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hubmerge.moerging.cost import compute_cost
from hubmerge.moerging.moe_model import MoeModel
from hubmerge.moerging.routing_stats import RoutingStats, RoutingSummary
from hubmerge.routing import ROUTING_JSON, Routing
from hubmerge.tasks.data import Split


class RoutingRecorder:
    """The routing of each task in the last validation."""

    def __init__(self, moe: MoeModel, stats: RoutingStats, splits: Sequence[Split]) -> None:
        self._moe, self._stats, self._splits = moe, stats, splits
        self._summaries: dict[int, RoutingSummary] = {}  # index of the task -> its routing
        stats.reset()

    def record(self, index: int, total: Callable[[Tensor], Tensor]) -> None:
        """Store the routing of the task that all processes have just validated."""
        self._summaries[index] = self._stats.pop_summary(total)

    def metrics(self) -> Mapping[str, float]:
        """For trackers: the mean entropy in bits, and the load of each expert."""
        summaries = list(self._summaries.values())
        entropy = sum(summary.entropy for summary in summaries) / len(summaries)
        names = [expert.name for expert in self._moe.config.experts]
        loads = torch.stack([summary.share.mean(dim=0) for summary in summaries]).mean(dim=0)
        return {
            "routing_entropy_bits": entropy / math.log(2),
            **{f"load/{name}": load for name, load in zip(names, loads.tolist(), strict=True)},
        }

    def write_routing(self, folder: Path) -> None:
        """Write routing.json into the folder of the mixture."""
        shares = [self._summaries[index].share.tolist() for index in range(len(self._splits))]
        routing = Routing(
            split=self._splits[0].name,
            tasks=tuple(split.task.id for split in self._splits),
            experts=tuple(expert.name for expert in self._moe.config.experts),
            layers=tuple(self._moe.layers),
            share=tuple(tuple(map(tuple, share)) for share in shares),
            cost=compute_cost(self._moe),
        )
        (folder / ROUTING_JSON).write_bytes(routing.to_bytes())
