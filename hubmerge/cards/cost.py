"""What a mixture costs, beside its base and one merged model."""

from __future__ import annotations

from hubmerge.cards.number_format import MISSING, percent
from hubmerge.routing import Cost


def cost_rows(cost: Cost) -> list[dict[str, str]]:
    """One row per model: parameters and multiply-adds a token, each also as times the base's."""
    sizes, flops = cost.parameters, cost.flops_per_token
    return [
        _row("base", sizes.base, flops.base, cost),
        _row("one merged model", sizes.merged, flops.merged, cost),
        _row("**this mixture**", sizes.mixture, flops.mixture, cost),
    ]


def trained_words(cost: Cost) -> str:
    """How many of the parameters training changed."""
    trained, whole = cost.parameters.trained, cost.parameters.mixture
    share = f", {percent(trained / whole)} % of the mixture's" if whole else ""
    return f"Training changed {trained:,} parameters{share}."


def _row(name: str, size: int, flops: int, cost: Cost) -> dict[str, str]:
    return {
        "name": name,
        "parameters": f"{size:,}",
        "larger": _times(size, cost.parameters.base),
        "flops": f"{flops:,}",
        "slower": _times(flops, cost.flops_per_token.base),
    }


def _times(number: int, base: int) -> str:
    return f"{number / base:.3f}" if base else MISSING
