"""Routing weights of tasks to experts, layer by layer: in words, as a table and as CSV."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence

from hubmerge.cards.markdown import escape_formula, escape_markdown, join_names
from hubmerge.cards.number_format import MISSING, percent
from hubmerge.routing import Routing
from hubmerge.scores import display_names

CSV, PICTURE = "routing.csv", "routing.png"
_COLUMNS = ("task", "layer", "expert", "share")
_MOST_NAMED, _MOST_EXPERTS = 12, 12


def own_experts(routing: Routing, trained_for: Sequence[str | None]) -> list[list[int]]:
    """[task]: the indices of the experts that were trained for it; empty if that is unknown.

    `trained_for` has the task id of each expert, in the order of `routing.experts`.
    """
    if len(trained_for) != len(routing.experts):
        return [[] for _ in routing.tasks]
    return [
        [i for i, trained in enumerate(trained_for) if trained == task] for task in routing.tasks
    ]


def describe_routing(routing: Routing, trained_for: Sequence[str | None]) -> str:
    """The weight of each task's own expert, and the entropy of the routing, as Markdown."""
    names, experts = display_names(routing.tasks), len(routing.experts)
    own = zip(routing.tasks, _own_shares(routing, trained_for), strict=True)
    shares = [f"{names[task]} {percent(share)} %" for task, share in own if share is not None]
    bits = sorted(f"{entropy:.2f}" for entropy in routing.entropies)
    entropy = bits[0] if bits[0] == bits[-1] else f"{bits[0]} to {bits[-1]}"
    weight = (
        f"On {routing.split}, as a mean over {len(routing.layers)} layers, a task's own expert "
        f"gets this share of its routing weight: {join_names(shares, _MOST_NAMED)}."
        if shares
        else "It is not known which expert was trained for which task."
    )
    return escape_markdown(
        f"{weight} With equal weights, each of {experts} experts would get "
        f"{percent(1 / experts)} %. The entropy of a layer's mean weights is {entropy} bits, of at "
        f"most {math.log2(experts):.2f}."
    )


def shown_experts(routing: Routing) -> list[str]:
    """The experts that have a column in the table."""
    return list(routing.experts[:_MOST_EXPERTS])


def mean_rows(routing: Routing, trained_for: Sequence[str | None]) -> list[list[str]]:
    """One row per task: name, weight in % of each shown expert and of its own, entropy in bits."""
    names, own = display_names(routing.tasks), _own_shares(routing, trained_for)
    return [
        [
            names[task],
            *(percent(share) for share in means[:_MOST_EXPERTS]),
            MISSING if own_share is None else percent(own_share),
            f"{entropy:.2f}",
        ]
        for task, means, own_share, entropy in zip(
            routing.tasks, routing.mean_over_layers, own, routing.entropies, strict=True
        )
    ]


def describe_map(routing: Routing) -> str:
    """The alternative text of the picture, as Markdown."""
    names = display_names(routing.tasks)
    largest, task, layer, expert = max(
        (share, names[task], layer, expert)
        for task, layers in zip(routing.tasks, routing.share, strict=True)
        for layer, row in zip(routing.layers, layers, strict=True)
        for expert, share in zip(routing.experts, row, strict=True)
    )
    return escape_markdown(
        f"Heat maps of the mean routing weight on {routing.split}, one for each of "
        f"{join_names(list(names.values()), _MOST_NAMED)}: {len(routing.layers)} layers by "
        f"{len(routing.experts)} experts. The largest weight is {percent(largest)} %, of {task} "
        f"to {expert} in {layer}."
    )


def routing_csv(routing: Routing) -> str:
    """Every number of the picture, one per line; shares in [0, 1] with six digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    experts = [escape_formula(expert) for expert in routing.experts]
    for task, layers in zip(routing.tasks, routing.share, strict=True):
        for layer, row in zip(routing.layers, layers, strict=True):
            row_name = escape_formula(task), escape_formula(layer)
            writer.writerows(
                (*row_name, expert, f"{share:.6g}")
                for expert, share in zip(experts, row, strict=True)
            )
    return text.getvalue()


def _own_shares(routing: Routing, trained_for: Sequence[str | None]) -> list[float | None]:
    """[task]: the sum of its own experts' weights, as a mean over layers."""
    own = own_experts(routing, trained_for)
    return [
        math.fsum(means[index] for index in indices) if indices else None
        for means, indices in zip(routing.mean_over_layers, own, strict=True)
    ]
