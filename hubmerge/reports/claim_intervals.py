"""The claims of a recipe as a picture: each mean in its interval, beside what it is held to."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup

from hubmerge.reports.svg import tag
from hubmerge.results import Claim

_WIDTH, _HEIGHT, _EDGE = 160, 28, 8


def intervals(claims: Sequence[Claim]) -> list[Markup]:
    """A strip for each claim, those of one unit on one scale: two standard errors to each side."""
    return [_strip(claim, _reach([c for c in claims if c.unit == claim.unit])) for claim in claims]


def _reach(claims: Sequence[Claim]) -> float:
    """The farthest that anything of these claims is from their thresholds."""
    return max((abs(end) for claim in claims for end in _ends(claim)), default=0.0) or 1.0


def _ends(claim: Claim) -> list[float]:
    """Distances from the threshold: of the interval's ends, the mean, and each seed."""
    if not math.isfinite(claim.mean):
        return []
    error = 2 * claim.stderr
    found = [claim.mean - error, claim.mean, claim.mean + error, *claim.values]
    return [value - claim.threshold for value in found]


def _strip(claim: Claim, reach: float) -> Markup:
    half = _WIDTH / 2 - _EDGE
    middle = _HEIGHT / 2

    def x(distance: float) -> float:
        return round(_WIDTH / 2 + half * distance / reach, 1)

    drawn = [
        tag("rect", x=_WIDTH / 2, y=0, width=_WIDTH / 2, height=_HEIGHT, class_="claimed"),
        tag("path", d=f"M{_WIDTH / 2:g} 0V{_HEIGHT}", class_="held"),
    ]
    if ends := _ends(claim):
        low, mean, high, *seeds = (x(end) for end in ends)
        drawn += [tag("circle", cx=seed, cy=middle + 8, r=1.8, class_="seed") for seed in seeds]
        drawn += [
            tag("path", d=f"M{low:g} {middle - 2:g}H{high:g}", class_="reach"),
            tag("circle", cx=mean, cy=middle - 2, r=4, class_="mean"),
        ]
    return tag(
        "svg", *drawn, class_=f"interval {claim.verdict}", viewBox=f"0 0 {_WIDTH} {_HEIGHT}",
        aria_hidden="true", focusable="false",
    )  # fmt: skip
