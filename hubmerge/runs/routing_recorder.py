"""Where the tokens of each task go in a mixture at hand, seen while it is validated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from hubmerge.moerging.cost import cost
from hubmerge.moerging.moe_model import Mixture
from hubmerge.moerging.routing_stats import Book, Told
from hubmerge.routing import NAME, Routing
from hubmerge.tasks.data import Split


class Traffic:
    """What the last validation showed of the routing, task by task."""

    def __init__(self, mixture: Mixture, book: Book, splits: Sequence[Split]) -> None:
        self._mixture, self._book, self._splits = mixture, book, splits
        self._told: dict[int, Told] = {}
        book.forget()

    def record(self, index: int, total: Callable[[Tensor], Tensor]) -> None:
        """The rows of the task at that place have just been answered, by all processes."""
        self._told[index] = self._book.take(total)

    def logged(self) -> Mapping[str, float]:
        """What trackers are told: the mean entropy in bits, and the load of each expert."""
        told = list(self._told.values())
        names = [expert.name for expert in self._mixture.config.experts]
        load = torch.stack([one.share.mean(dim=0) for one in told]).mean(dim=0).tolist()
        return {
            "routing_entropy_bits": sum(one.entropy for one in told) / len(told) / math.log(2),
            **{f"load/{name}": share for name, share in zip(names, load, strict=True)},
        }

    def write(self, folder: Path) -> None:
        """Write routing.json beside the mixture."""
        shares = [self._told[place].share.tolist() for place in range(len(self._splits))]
        routing = Routing(
            split=self._splits[0].name,
            tasks=tuple(split.task.id for split in self._splits),
            experts=tuple(expert.name for expert in self._mixture.config.experts),
            layers=tuple(self._mixture.layers),
            share=tuple(tuple(map(tuple, share)) for share in shares),
            cost=cost(self._mixture),
        )
        (folder / NAME).write_bytes(routing.to_bytes())
