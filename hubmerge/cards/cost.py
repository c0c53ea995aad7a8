"""The cost of a mixture compared with its base and with one merged model."""

from __future__ import annotations

from hubmerge.cards.number_format import MISSING, percent
from hubmerge.routing import MoeCost


def cost_rows(cost: MoeCost) -> list[dict[str, str]]:
    """One row per model: parameters and multiply-adds per token, and both relative to the base."""
    sizes, flops = cost.parameters, cost.flops_per_token
    return [
        _row("base", sizes.base, flops.base, cost),
        _row("one merged model", sizes.merged, flops.merged, cost),
        _row("**this mixture**", sizes.mixture, flops.mixture, cost),
    ]


def describe_trained_parameters(cost: MoeCost) -> str:
    """A sentence with the number and share of the parameters that training changed."""
    trained, total = cost.parameters.trained, cost.parameters.mixture
    share = f", {percent(trained / total)} % of the mixture's" if total else ""
    return f"Training changed {trained:,} parameters{share}."


def _row(name: str, size: int, flops: int, cost: MoeCost) -> dict[str, str]:
    return {
        "name": name,
        "parameters": f"{size:,}",
        "parameters_ratio": _ratio(size, cost.parameters.base),
        "flops": f"{flops:,}",
        "flops_ratio": _ratio(flops, cost.flops_per_token.base),
    }


def _ratio(number: int, base: int) -> str:
    return f"{number / base:.3f}" if base else MISSING
