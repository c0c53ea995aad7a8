"""The table of coverage in docs/selection.md, from the worlds that were simulated.

    python -m tests.selection.coverage_tables build/coverage

Every file of `coverage_study` gives a file in benchmarks/results for each number of folds, and the
table is made of those with two. Gains are judged again by what `hubmerge select` uses today, so no
world need be simulated again when an interval changes.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hubmerge.selection import noise
from hubmerge.selection.cross_fit import FOLDS
from hubmerge.selection.fold_gain import fold_gain
from hubmerge.selection.folds import pool_trials
from hubmerge.selection.noise import Interval
from hubmerge.trials import Trial
from recipes.studies.pages import insert_table, markdown_table

from .builders import make_trial

ROOT = Path(__file__).parents[2]
PAGE, RESULTS = ROOT / "docs" / "selection.md", ROOT / "benchmarks" / "results"
_SETTINGS = ("rows", "correlation", "height", "budget")
HEAD = (
    "examples a task", "correlation", "true gain", "worlds", "conclusive", "loss", "covers",
    "bias", "covers if halves were independent", "same examples: conclusive", "covers", "bias",
    "maximum: conclusive", "known: conclusive", "merges",
)  # fmt: skip
World = Mapping[str, Any]


def summarize(worlds: Sequence[World], folds: int) -> dict[str, Any]:
    """Return shares of worlds and means in points, for the worlds with so many folds."""
    known = [world for world in worlds if str(folds) in world["fits"]]
    fits = [world["fits"][str(folds)] for world in known]
    pairs = [_pooled_pair(fit["differences"]) for fit in fits]
    gains = [_points(fold_gain(ours, theirs, 0)) for ours, theirs in pairs]
    narrow = [_points(noise.interval(ours, theirs, 0)) for ours, theirs in pairs]
    same = [world["same_rows"] for world in known]
    truths, locked = [fit["true_gain"] for fit in fits], [world["true_gain"] for world in known]
    errors = [gain[0] - truth for gain, truth in zip(gains, truths, strict=True)]
    return {
        **{name: known[0][name] for name in _SETTINGS},
        "any_two": known[0].get("any_two", False),
        "folds": folds,
        "worlds": len(known),
        "true_gain": _mean(locked),
        "true_gain_of_folds": _mean(truths),
        "conclusive": _share(gains, lambda gain: gain[1] > 0),
        "loss": _share(gains, lambda gain: gain[2] < 0),
        "covers": _covered(gains, truths),
        "covers_locked": _covered(gains, locked),
        "covers_if_independent": _covered(narrow, truths),
        "conclusive_if_independent": _share(narrow, lambda gain: gain[1] > 0),
        "bias": _mean(errors),
        "bias_stderr": _stderr(errors),
        "bias_locked": _mean(gain[0] - truth for gain, truth in zip(gains, locked, strict=True)),
        "half_width": _mean((high - low) / 2 for _, low, high in gains),
        "same_rows_conclusive": _share(same, lambda gain: gain[1] > 0),
        "same_rows_covers": _covered(same, locked),
        "same_rows_bias": _mean(gain[0] - truth for gain, truth in zip(same, locked, strict=True)),
        "maximum_conclusive": _share(known, lambda world: world["maximum_low"] > 0),
        "known_conclusive": _share(known, lambda world: world["known"][1] > 0),
        "known_true_gain": _mean(world["known_truth"] for world in known),
        "merges": _mean(world["merges"] for world in known),
        "fold_merges": _mean(fit["merges"] for fit in fits),
    }


def _pooled_pair(differences: Mapping[str, Sequence[str]]) -> tuple[Trial, Trial]:
    """Return pooled trials with these differences for each search: the choices and the rivals."""
    return (
        _pooled(differences, "chosen", str.maketrans("+=-", "110")),
        _pooled(differences, "rival", str.maketrans("+=-", "011")),
    )


def _pooled(differences: Mapping[str, Sequence[str]], name: str, bits: dict[int, int]) -> Trial:
    searches = range(len(next(iter(differences.values()))))
    rows = [
        {task: signs[n].translate(bits) for task, signs in differences.items()} for n in searches
    ]
    return pool_trials([make_trial(name, **rows_of_search) for rows_of_search in rows])


def _points(gain: Interval) -> list[float]:
    return [100 * value for value in gain]


def _covered(gains: Iterable[Sequence[float]], truths: Iterable[float]) -> float:
    pairs = list(zip(gains, truths, strict=True))
    return _share(pairs, lambda pair: pair[0][1] <= pair[1] <= pair[0][2])


def _share(values: Iterable[Any], condition: Callable[[Any], bool]) -> float:
    return _mean(map(condition, values))


def _mean(values: Iterable[float]) -> float:
    known = [*values]
    return round(math.fsum(known) / len(known), 4)


def _stderr(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    return round(math.sqrt(squares) / max(len(values), 1), 4)


def table_line(row: Mapping[str, Any]) -> list[str]:
    """Return the cells of one row of the table."""
    budget = f" (budget of {row['budget']})" if row["budget"] else ""
    pairs = " of any two" if row.get("any_two") else ""
    locked = f" ({_percent(row['covers_locked'])})" if row["height"] else ""
    return [
        f"{row['rows']}{budget}", f"{row['correlation']:g}{pairs}", f"{row['true_gain']:.1f}",
        str(row["worlds"]), _percent(row["conclusive"]), _percent(row["loss"]),
        _percent(row["covers"]) + locked, f"{row['bias']:+.2f} ± {row['bias_stderr']:.2f}",
        _percent(row["covers_if_independent"]), _percent(row["same_rows_conclusive"]),
        _percent(row["same_rows_covers"]), f"{row['same_rows_bias']:+.2f}",
        _percent(row["maximum_conclusive"]), _percent(row["known_conclusive"]),
        f"{row['merges']:.0f} + {row['fold_merges']:.0f}",
    ]  # fmt: skip


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def render_page(page: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Return the page with the table of these rows, those without a true gain first."""
    ordered = sorted(
        rows,
        key=lambda row: [row.get(name) or 0 for name in ("any_two", "height", *_SETTINGS)],
    )
    return insert_table(page, "coverage", markdown_table(HEAD, map(table_line, ordered)))


def main() -> None:
    """Write the results and the table."""
    (folder,) = map(Path, sys.argv[1:])
    for path in sorted(folder.glob("*.jsonl")):
        worlds = [json.loads(line) for line in path.read_text().splitlines()]
        for count in sorted({int(count) for world in worlds for count in world["fits"]}):
            suffix = "" if count == FOLDS else f"-folds-{count}"
            target = RESULTS / f"coverage-{path.stem}{suffix}.json"
            target.write_text(json.dumps(summarize(worlds, count), indent=1) + "\n")
    files = sorted(RESULTS.glob("coverage-*.json"))
    rows = [
        row for row in (json.loads(path.read_text()) for path in files) if row.get("folds") == FOLDS
    ]
    PAGE.write_text(render_page(PAGE.read_text(encoding="utf-8"), rows), encoding="utf-8")


if __name__ == "__main__":
    main()
