"""routing.json of a mixture at hand: which task's tokens go to which expert, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hubmerge.moerging.book import Book
from hubmerge.moerging.cost import cost
from hubmerge.moerging.mixture import Mixture
from hubmerge.routing import NAME, Routing
from hubmerge.training.loop import Watched


def write_routing(mixture: Mixture, book: Book, watched: Sequence[Watched], folder: Path) -> None:
    """Route all validation rows, task by task, and write what was seen beside the mixture."""
    shares = []
    for one in watched:
        book.forget()
        _routed(one)
        shares.append(book.take().share)
    routing = Routing(
        split=watched[0].examples.split.name,
        tasks=tuple(one.examples.split.task.id for one in watched),
        experts=tuple(expert.name for expert in mixture.config.experts),
        layers=tuple(mixture.layers),
        share=tuple(tuple(map(tuple, share.tolist())) for share in shares),
        cost=cost(mixture),
    )
    (folder / NAME).write_bytes(routing.to_bytes())


def logged(mixture: Mixture, book: Book) -> Mapping[str, float]:
    """What trackers are told of the validation rows just routed: entropy, and load per expert."""
    told = book.take()
    load = told.share.mean(dim=0).tolist()
    names = [expert.name for expert in mixture.config.experts]
    return {
        "routing_entropy_bits": told.entropy / math.log(2),
        **{f"load/{name}": share for name, share in zip(names, load, strict=True)},
    }


@torch.inference_mode()
def _routed(watched: Watched) -> None:
    learner = watched.learner
    network, device = learner.network, next(learner.network.parameters()).device
    was_training = network.training
    network.eval()
    for batch, _ in watched.examples.batches(learner.collate):
        learner.answers(network, {name: tensor.to(device) for name, tensor in batch.items()})
    network.train(was_training)
