"""The one door to the makers of units: a unit and the results of what it needs -> its result."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from hubmerge.hub.environment import connect
from hubmerge.reproduce.unit import Result, Shop, Unit

# Kind -> the module below units/ and the function; loaded when first needed, as they are heavy.
MAKERS = {
    "base": ("training", "make_base"),
    "train": ("training", "train"),
    "scores": ("scores", "score_expert"),
    "base scores": ("scores", "score_base"),
    "merge": ("merges", "merge"),
    "mixture": ("moe", "mixture"),
    "policies": ("policies", "policies"),
    "difficulty": ("difficulty", "difficulty"),
    "loss shares": ("difficulty", "loss_shares"),
    "forgotten": ("difficulty", "forgotten"),
}


def perform(unit: Unit, inputs: Mapping[str, Result], shop: Shop) -> Result:
    """Make one unit in this process; its result is plain JSON, weights go to the Hub.

    Raises HubmergeError for what the user can mend.
    """
    with connect(shop.hub) as hub:
        import torch

        torch.set_num_threads(unit.cpus)
        module, function = MAKERS[unit.kind]
        make = getattr(import_module(f"hubmerge.reproduce.units.{module}"), function)
        from hubmerge.reproduce.units.work import Work

        result: Result = make(Work(hub, shop, unit, inputs))
        return result
