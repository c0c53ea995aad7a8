"""What a routing tells: tasks by experts, layer by layer; in words, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from hubmerge.cards.markdown import inert, listed, plain
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.routing import Routing
from hubmerge.scores import shown_names

CSV, PICTURE = "routing.csv", "routing.png"
_COLUMNS = ("task", "layer", "expert", "share")
_MOST_NAMED, _MOST_EXPERTS = 12, 12


def own_experts(routing: Routing, trained_for: Sequence[str | None]) -> list[list[int]]:
    """[task]: the places of the experts that were trained for it, none where that is not known.

    `trained_for` has the task id of each expert, in their order.
    """
    if len(trained_for) != len(routing.experts):
        return [[] for _ in routing.tasks]
    return [[i for i, its in enumerate(trained_for) if its == task] for task in routing.tasks]


def own_words(routing: Routing, trained_for: Sequence[str | None]) -> str:
    """The weight that a task's own expert gets, and how mixed the routing is, as Markdown."""
    names, experts = shown_names(routing.tasks), len(routing.experts)
    own = zip(routing.tasks, _own_shares(routing, trained_for), strict=True)
    said = [f"{names[task]} {percent(share)} %" for task, share in own if share is not None]
    bits = sorted(f"{entropy:.2f}" for entropy in routing.entropies)
    spread = bits[0] if bits[0] == bits[-1] else f"{bits[0]} to {bits[-1]}"
    weight = (
        f"On {routing.split}, as a mean over {len(routing.layers)} layers, a task's own expert "
        f"gets this share of its routing weight: {listed(said, _MOST_NAMED)}."
        if said
        else "No expert is known to be a task's own."
    )
    return plain(
        f"{weight} Were all alike, each of {experts} experts would get {percent(1 / experts)} %. "
        f"The entropy of a layer's mean weights is {spread} bits, of at most "
        f"{math.log2(experts):.2f}."
    )


def shown_experts(routing: Routing) -> list[str]:
    """The experts that have a column in the table."""
    return list(routing.experts[:_MOST_EXPERTS])


def mean_rows(routing: Routing, trained_for: Sequence[str | None]) -> list[list[str]]:
    """One row per task: its name, what each shown expert gets in %, its own expert, the entropy."""
    names, own = shown_names(routing.tasks), _own_shares(routing, trained_for)
    return [
        [
            names[task],
            *(percent(share) for share in means[:_MOST_EXPERTS]),
            MISSING if mine is None else percent(mine),
            f"{entropy:.2f}",
        ]
        for task, means, mine, entropy in zip(
            routing.tasks, routing.over_layers, own, routing.entropies, strict=True
        )
    ]


def map_words(routing: Routing) -> str:
    """What the picture shows, for those who cannot see it, as Markdown."""
    names = shown_names(routing.tasks)
    heaviest, task, layer, expert = max(
        (share, names[task], layer, expert)
        for task, layers in zip(routing.tasks, routing.share, strict=True)
        for layer, row in zip(routing.layers, layers, strict=True)
        for expert, share in zip(routing.experts, row, strict=True)
    )
    return plain(
        f"Heat maps of the mean routing weight on {routing.split}, one for each of "
        f"{listed(list(names.values()), _MOST_NAMED)}: {len(routing.layers)} layers by "
        f"{len(routing.experts)} experts. The largest weight is {percent(heaviest)} %, of {task} "
        f"to {expert} in {layer}."
    )


def routing_csv(routing: Routing) -> str:
    """Every number of the picture, a line each; shares in [0, 1], six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    experts = [inert(expert) for expert in routing.experts]
    for task, layers in zip(routing.tasks, routing.share, strict=True):
        for layer, row in zip(routing.layers, layers, strict=True):
            place = inert(task), inert(layer)
            writer.writerows(
                (*place, expert, f"{share:.6g}") for expert, share in zip(experts, row, strict=True)
            )
    return text.getvalue()


def _own_shares(routing: Routing, trained_for: Sequence[str | None]) -> list[float | None]:
    """[task]: the mean over layers of what its own experts get together."""
    own = own_experts(routing, trained_for)
    return [
        math.fsum(means[place] for place in places) if places else None
        for means, places in zip(routing.over_layers, own, strict=True)
    ]
