"""Run one unit: from the unit and the results of the units that it needs, to its result."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

from hubmerge.hub.environment import connect
from hubmerge.reproduce.unit import Result, Unit, WorkContext

# Kind -> the module in units/ and the function; imported when first needed, as they are heavy.
MAKERS = {
    "base": ("training", "make_base"),
    "train": ("training", "train"),
    "scores": ("scores", "score_expert"),
    "base scores": ("scores", "score_base"),
    "merge": ("merges", "merge"),
    "mixture": ("moe", "train_moe"),
    "policies": ("policies", "policies"),
    "difficulty": ("difficulty", "difficulty"),
    "loss shares": ("difficulty", "loss_shares"),
    "forgotten": ("difficulty", "forgotten"),
}


def perform(unit: Unit, inputs: Mapping[str, Result], context: WorkContext) -> Result:
    """Run one unit in this process; its result is plain JSON, its weights go to the Hub.

    Raises HubmergeError for problems that the user can fix.
    """
    with connect(context.hub) as hub:
        import torch

        torch.set_num_threads(unit.cpus)
        module, function = MAKERS[unit.kind]
        make = getattr(import_module(f"hubmerge.reproduce.units.{module}"), function)
        from hubmerge.reproduce.units.work import UnitJob  # imports torch

        result: Result = make(UnitJob(hub, context, unit, inputs))
        return result
