"""The claims of a recipe as small SVGs: each mean with its interval and the claim's threshold."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from hubmerge.reports.svg import element
from hubmerge.results import Claim

_WIDTH, _HEIGHT, _MARGIN = 160, 28, 8


def draw_intervals(claims: Sequence[Claim]) -> list[Markup]:
    """An SVG per claim with its 95 % interval over seeds; one scale for claims of one unit."""
    return [
        _draw_interval(claim, _largest_distance([c for c in claims if c.unit == claim.unit]))
        for claim in claims
    ]


def _largest_distance(claims: Sequence[Claim]) -> float:
    """The largest distance of a value or an interval's end from its threshold; 1 without values."""
    return max((abs(d) for claim in claims for d in _distances(claim)), default=0.0) or 1.0


def _distances(claim: Claim) -> list[float]:
    """Distances from the threshold: of the low end, the mean, the high end, and each seed."""
    if not math.isfinite(claim.mean):
        return []
    low, high = claim.interval or (claim.mean, claim.mean)
    values = [low, claim.mean, high, *claim.values]
    return [value - claim.threshold for value in values]


def _draw_interval(claim: Claim, largest_distance: float) -> Markup:
    half = _WIDTH / 2 - _MARGIN
    middle = _HEIGHT / 2

    def x(distance: float) -> float:
        return round(_WIDTH / 2 + half * distance / largest_distance, 1)

    shapes = [
        element("rect", x=_WIDTH / 2, y=0, width=_WIDTH / 2, height=_HEIGHT, class_="claimed"),
        element("path", d=f"M{_WIDTH / 2:g} 0V{_HEIGHT}", class_="threshold"),
    ]
    if distances := _distances(claim):
        low, mean, high, *seeds = map(x, distances)
        shapes += [
            element("circle", cx=seed, cy=middle + 8, r=1.8, class_="seed") for seed in seeds
        ]
        shapes += [
            element("path", d=f"M{low:g} {middle - 2:g}H{high:g}", class_="interval-line"),
            element("circle", cx=mean, cy=middle - 2, r=4, class_="mean"),
        ]
    return element(
        "svg", *shapes, class_=f"interval {claim.verdict}", viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        aria_hidden="true", focusable="false",
    )  # fmt: skip
