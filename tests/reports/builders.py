"""Builders of small synthetic results: curves, bars, ranks and claims."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

from hubmerge.results import (
    Axis,
    Cell,
    Chart,
    ChartPoint,
    Claim,
    Paper,
    Provenance,
    Results,
    Series,
    Table,
    judge_claims,
)

STEPS = [2**k for k in range(12)]
METHODS = ("experts", "Average", "TA", "TIES", "DARE", "early stop")
PEAKS = {"experts": 14, "Average": 10, "TA": 8.2, "TIES": 7, "DARE": 7.5, "early stop": 9}
HOSTILE = '</script><img src=x onerror="alert(1)"> | \x1b[31m {{ 7 * 7 }} \u202e'


def fixed_noise(*parts: object) -> float:
    """A pseudo-random number in [-1, 1], determined by the arguments."""
    return 2 * int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) / 2**32 - 1


def curve(method: str, group: str = "", lift: float = 0.0) -> Series:
    def height(step: int, seed: int) -> float:
        distance = math.log2(step) - PEAKS[method]
        top = 0.9 if method == "experts" else 0.65 + lift + 0.008 * len(method)
        fall = 0.0022 if method == "experts" else 0.0016
        return top - fall * distance * distance + 0.012 * fixed_noise(method, group, step, seed)

    points = tuple(
        ChartPoint(
            float(step),
            {str(seed): height(step, seed) for seed in range(3)},
            note="" if method == "experts" else f"scale {0.3 + 0.05 * (step % 7):.2f}",
        )
        for step in STEPS
    )
    return Series(method, points, group)


def by_steps() -> Chart:
    return Chart(
        name="accuracy",
        title="Merged accuracy against steps of the experts, full fine-tuning",
        x=Axis("expert training steps", "steps", "log2"),
        y=Axis("test accuracy, mean of four tasks", "percent"),
        series=tuple(curve(method) for method in METHODS),
    )


def by_rank() -> Chart:
    return Chart(
        name="rank",
        title="Higher rank merges better and falls less",
        x=Axis("expert training steps", "steps", "log2"),
        y=Axis("test accuracy", "percent"),
        series=tuple(
            curve(method, f"rank {rank}", lift=0.01 * math.log2(rank))
            for rank in (2, 4, 8, 16, 32)
            for method in ("Average", "TA", "TIES")
        ),
    )


def by_time() -> Chart:
    """The share of ten bins in the loss over training: ordered lines."""

    def share(bin_: int, step: int, seed: int) -> float:
        progress = math.log2(step) / 11
        return 0.1 + (bin_ - 5.5) * 0.03 * progress * (1 + 0.1 * fixed_noise(bin_, step, seed))

    return Chart(
        name="loss-share",
        title="Share of the training loss of each tenth of the examples",
        x=Axis("training steps", "steps", "log2"),
        y=Axis("share of the training loss", "share"),
        series=tuple(
            Series(
                str(b),
                tuple(
                    ChartPoint(float(n), {str(s): share(b, n, s) for s in range(3)}) for n in STEPS
                ),
            )
            for b in range(1, 11)
        ),
    )


def by_bin() -> Chart:
    def share(method: int, bin_: int, seed: int) -> float:
        return 0.01 + 0.002 * bin_**2 + 0.01 * method + 0.004 * fixed_noise(method, bin_, seed)

    return Chart(
        name="forgotten",
        title="Forgotten examples per difficulty bin",
        x=Axis("difficulty bin, easy to hard", "number", "category"),
        y=Axis("forgotten of the bin", "share"),
        kind="bar",
        series=tuple(
            Series(
                name,
                tuple(
                    ChartPoint(float(b), {str(s): share(m, b, s) for s in range(3)})
                    for b in range(1, 11)
                ),
            )
            for m, name in enumerate(("Average", "TA", "TIES"))
        ),
    )


def by_policy() -> Chart:
    gains = {"last step": 0.0, "early stop": 0.021, "best uniform": 0.017, "per task": -0.006}
    return Chart(
        name="gains",
        title="Gain over merging last steps",
        x=Axis("policy", "number", "category"),
        y=Axis("gain", "points"),
        kind="bar",
        series=(Series("TA", tuple(
            ChartPoint(name, {str(s): gain + 0.004 * fixed_noise(name, s) for s in range(3)})
            for name, gain in gains.items()
        )),),
    )  # fmt: skip


def claims() -> tuple[Claim, ...]:
    raw = (
        Claim("ta-falls", "Task arithmetic peaks before the last step.", (0.021, 0.031, 0.025),
              paper="+2.9"),
        Claim("ties-falls", "TIES peaks before the last step.", (0.012, -0.001, 0.011),
              paper="+2.0"),
        Claim("average-rises", "Average gains from longer training.", (-0.011, -0.006, -0.018),
              paper="more than 0"),
        Claim("hard-share", "The hardest 30 % are over half of the forgotten.", (0.61,),
              unit="percent", paper="over 50 %", threshold=0.5),
    )  # fmt: skip
    return judge_claims(raw, [True] * len(raw))


def results(
    recipe: str = "fft-vision",
    charts: Callable[[], tuple[Chart, ...]] = lambda: (by_steps(), by_bin()),
    **changes: object,
) -> Results:
    fields: dict[str, object] = {
        "recipe": recipe,
        "profile": "mini",
        "title": "Merged accuracy against steps, full fine-tuning",
        "paper": Paper(
            "figure 1, left",
            "Experts get better until 2048 steps; merges of them are best near 256 and then fall.",
        ),
        "setting": {
            "tasks": ["mnist", "fashion", "hebrew", "texture"],
            "steps": STEPS,
            "seeds": [0, 1, 2],
            "optimiser": {"name": "AdamW", "lr": 5e-4, "weight_decay": 0.1},
        },
        "notes": ("The four tasks were chosen after seeing the eight-task result.",),
        "charts": charts(),
        "tables": (
            Table(
                "best",
                "Best uniform step",
                ("method", "step", "best", "last"),
                (
                    ("TA", "256", Cell((0.70, 0.704, 0.708)), Cell((0.67, 0.68, 0.66))),
                    ("TIES", "128", Cell((0.689, 0.69, 0.70)), Cell((0.65,))),
                ),
            ),
        ),
        "claims": claims(),
        "verdict": "partly",
        "explanation": "TA falls as in the paper, TIES by less than the noise. Average falls too.",
        "provenance": Provenance(
            "0.4.0", "5f" * 32, {"torch": "2.14.1", "numpy": "2.4"},
            {"train": 12, "merge": 144, "evaluate": 156}, 4521.5, "2 cores",
        ),
        "rows": ({"secret": "rows are not embedded"},),
    }  # fmt: skip
    return Results(**(fields | changes))  # type: ignore[arg-type]


def thirteen_recipes() -> list[Results]:
    """Thirteen recipes, as many as the paper has figures and tables."""
    verdicts = ("reproduced", "partly", "not")
    return [
        results(
            f"recipe-{number}",
            lambda: (by_steps(), by_bin(), by_rank(), by_policy()),
            verdict=verdicts[number % 3],
        )
        for number in range(13)
    ]
