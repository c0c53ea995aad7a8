"""The tables of docs/early-stopping.md, told from results.json alone.

python -m recipes.early_stopping.tables
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.early_stopping.run import (
    BEST_COMMON,
    COMMON,
    CONSTANT,
    COOLED,
    COOLED_STOPS,
    GRID,
    PLATEAU,
    RESULTS,
    TESTED,
)
from recipes.early_stopping.stops import BANDS, PATIENCES, RULES

PAGE = Path(__file__).parents[2] / "docs" / "early-stopping.md"
NAMES = {"average": "average", "task_arithmetic": "task arithmetic", "ties": "ties", "dare": "dare"}
TEST_IMAGES = 1000
"""Of each task."""
Settings = Mapping[str, Mapping[str, Any]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def stderr(accuracies: Sequence[float], count: int) -> float:
    """Binomial standard error of the mean over tasks."""
    return math.sqrt(math.fsum(a * (1 - a) / count for a in accuracies)) / len(accuracies)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, first column to the left and the others to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean_merged(said: Mapping[str, Any]) -> float:
    """Mean over methods and tasks: the one number by which defaults are chosen."""
    return mean([mean(one["accuracies"]) for one in said["merged"].values()])


def stops(settings: Settings) -> str:
    """Where each rule stops, in the order of the tasks."""
    rows = [
        [name, *(" ".join(map(str, found[name]["steps"])) for found in settings.values())]
        for name in RULES
    ]
    return table(["rule", *settings], rows)


def validation(settings: Settings, names: Sequence[str]) -> str:
    """What stops are worth on validation: experts over all settings, merges for each and all."""
    rows = []
    for name in names:
        said = [found[name] for found in settings.values()]
        steps = mean([mean(one["steps"]) for one in said])
        experts = mean([mean(one["validation"]["experts"]) for one in said])
        merges = [mean_merged(one["validation"]) for one in said]
        rows.append([name, f"{steps:.0f}", *map(percent, (experts, *merges, mean(merges)))])
    columns = [f"merges, {name}" for name in settings]
    return table(["stop", "mean step", "experts", *columns, "merges, all"], rows)


def patience(settings: Settings) -> str:
    """The noise rule's choice on validation: experts and merges, means over settings."""
    rows = [[f"band {band:g}", *(_pair(settings, band, p) for p in PATIENCES)] for band in BANDS]
    return table(["", *(f"patience {p}" for p in PATIENCES)], rows)


def _pair(settings: Settings, band: float, patience: int) -> str:
    said = [found[f"noise {band:g} x {patience}"]["validation"] for found in settings.values()]
    experts, merges = mean([mean(s["experts"]) for s in said]), mean([mean_merged(s) for s in said])
    return f"{percent(experts)} / {percent(merges)}"


def tested(found: Mapping[str, Any]) -> str:
    """One setting on the test split."""
    rows = []
    for name in TESTED:
        said = found[name]["test"]
        merges = [said["merged"][method]["accuracies"] for method in GRID]
        cells = [_with_error(accuracies) for accuracies in (said["experts"], *merges)]
        rows.append([name, *cells, percent(mean([mean(one) for one in merges]))])
    rows.append([f"{BEST_COMMON}, by method", "", *_best(found)])
    return table(["stop", "experts", *NAMES.values(), "mean of merges"], rows)


def tested_together(settings: Settings) -> str:
    """The test split, mean over the settings."""
    rows = []
    for name in TESTED:
        said = [found[name]["test"] for found in settings.values()]
        cells = [mean([mean(one["experts"]) for one in said])]
        cells += [
            mean([mean(one["merged"][method]["accuracies"]) for one in said]) for method in GRID
        ]
        rows.append([name, *map(percent, (*cells, mean(cells[1:])))])
    best = [found[BEST_COMMON] for found in settings.values()]
    cells = [mean([mean(one[method]["test"]) for one in best]) for method in GRID]
    rows.append([f"{BEST_COMMON}, by method", "", *map(percent, (*cells, mean(cells)))])
    return table(["stop", "experts", *NAMES.values(), "mean of merges"], rows)


def _best(found: Mapping[str, Any]) -> list[str]:
    best = found[BEST_COMMON]
    cells = [f"{_with_error(best[m]['test'])} ({best[m]['step']})" for m in GRID]
    return [*cells, percent(mean([mean(best[method]["test"]) for method in GRID]))]


def _with_error(accuracies: Sequence[float]) -> str:
    return f"{percent(mean(accuracies))} ± {percent(stderr(accuracies, TEST_IMAGES))}"


def told(settings: Settings) -> dict[str, str]:
    """Every table by its name on the page."""
    plateaus = [name for name in RULES if name.startswith("plateau")]
    others = [CONSTANT.format(PLATEAU), *map(COOLED.format, COOLED_STOPS)]
    others += [f"step {step}" for step in COMMON]
    on_validation = {
        "stops": stops(settings),
        "thresholds": validation(settings, plateaus),
        "patience": patience(settings),
        "others": validation(settings, others),
    }
    tests = {f"test {name}": tested(found) for name, found in settings.items()}
    return on_validation | {"test all": tested_together(settings)} | tests


def main() -> None:
    """Put every table between its marks on the page."""
    page = PAGE.read_text()
    for name, text in told(json.loads(RESULTS.read_text())["settings"]).items():
        marks = rf"(<!-- {re.escape(name)}:begin -->\n).*?(<!-- {re.escape(name)}:end -->)"
        page, count = re.subn(marks, rf"\1{text}\n\2", page, flags=re.S)
        assert count == 1, f"{PAGE.name} has {count} places for the table {name!r}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
