"""The tables of docs/early-stopping.md, from results.json.

python -m recipes.studies.early_stopping.tables
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from recipes.studies.early_stopping.run import (
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
from recipes.studies.early_stopping.stops import BANDS, PATIENCES, RULES

PAGE = Path(__file__).parents[3] / "docs" / "early-stopping.md"
NAMES = {"average": "average", "task_arithmetic": "task arithmetic", "ties": "ties", "dare": "dare"}
TEST_IMAGES = 1000
"""Of each task."""
Settings = Mapping[str, Mapping[str, Any]]


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def stderr(accuracies: Sequence[float], count: int) -> float:
    """Binomial standard error of the mean over tasks."""
    return math.sqrt(math.fsum(a * (1 - a) / count for a in accuracies)) / len(accuracies)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Markdown, first column to the left and the others to the right."""
    lines = [columns, ["---"] + ["---:"] * (len(columns) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def format_percent(value: float) -> str:
    return f"{100 * value:.1f}"


def mean_merged(results: Mapping[str, Any]) -> float:
    """Mean over methods and tasks: the number by which defaults are chosen."""
    return mean([mean(entry["accuracies"]) for entry in results["merged"].values()])


def stops_table(settings: Settings) -> str:
    """Where each rule stops, in the order of the tasks."""
    rows = [
        [name, *(" ".join(map(str, measured[name]["steps"])) for measured in settings.values())]
        for name in RULES
    ]
    return markdown_table(["rule", *settings], rows)


def validation_table(settings: Settings, names: Sequence[str]) -> str:
    """Accuracy of the stops on validation: experts over all settings, merges of each and of all."""
    rows = []
    for name in names:
        results = [measured[name] for measured in settings.values()]
        steps = mean([mean(entry["steps"]) for entry in results])
        experts = mean([mean(entry["validation"]["experts"]) for entry in results])
        merges = [mean_merged(entry["validation"]) for entry in results]
        rows.append([name, f"{steps:.0f}", *map(format_percent, (experts, *merges, mean(merges)))])
    columns = [f"merges, {name}" for name in settings]
    return markdown_table(["stop", "mean step", "experts", *columns, "merges, all"], rows)


def patience_table(settings: Settings) -> str:
    """The noise rule on validation: experts and merges, means over settings."""
    rows = [[f"band {band:g}", *(_pair(settings, band, p) for p in PATIENCES)] for band in BANDS]
    return markdown_table(["", *(f"patience {p}" for p in PATIENCES)], rows)


def _pair(settings: Settings, band: float, patience: int) -> str:
    results = [
        measured[f"noise {band:g} x {patience}"]["validation"] for measured in settings.values()
    ]
    experts, merges = (
        mean([mean(s["experts"]) for s in results]),
        mean([mean_merged(s) for s in results]),
    )
    return f"{format_percent(experts)} / {format_percent(merges)}"


def test_table(measured: Mapping[str, Any]) -> str:
    """One setting on the test split."""
    rows = []
    for name in TESTED:
        results = measured[name]["test"]
        merges = [results["merged"][method]["accuracies"] for method in GRID]
        cells = [_with_error(accuracies) for accuracies in (results["experts"], *merges)]
        rows.append([name, *cells, format_percent(mean([mean(entry) for entry in merges]))])
    rows.append([f"{BEST_COMMON}, by method", "", *_best(measured)])
    return markdown_table(["stop", "experts", *NAMES.values(), "mean of merges"], rows)


def test_table_of_all(settings: Settings) -> str:
    """The test split, mean over the settings."""
    rows = []
    for name in TESTED:
        results = [measured[name]["test"] for measured in settings.values()]
        cells = [mean([mean(entry["experts"]) for entry in results])]
        cells += [
            mean([mean(entry["merged"][method]["accuracies"]) for entry in results])
            for method in GRID
        ]
        rows.append([name, *map(format_percent, (*cells, mean(cells[1:])))])
    best = [measured[BEST_COMMON] for measured in settings.values()]
    cells = [mean([mean(entry[method]["test"]) for entry in best]) for method in GRID]
    rows.append([f"{BEST_COMMON}, by method", "", *map(format_percent, (*cells, mean(cells)))])
    return markdown_table(["stop", "experts", *NAMES.values(), "mean of merges"], rows)


def _best(measured: Mapping[str, Any]) -> list[str]:
    best = measured[BEST_COMMON]
    cells = [f"{_with_error(best[m]['test'])} ({best[m]['step']})" for m in GRID]
    return [*cells, format_percent(mean([mean(best[method]["test"]) for method in GRID]))]


def _with_error(accuracies: Sequence[float]) -> str:
    return f"{format_percent(mean(accuracies))} ± {format_percent(stderr(accuracies, TEST_IMAGES))}"


def render_tables(settings: Settings) -> dict[str, str]:
    """Every table by its name on the page."""
    plateaus = [name for name in RULES if name.startswith("plateau")]
    others = [CONSTANT.format(PLATEAU), *map(COOLED.format, COOLED_STOPS)]
    others += [f"step {step}" for step in COMMON]
    on_validation = {
        "stops": stops_table(settings),
        "thresholds": validation_table(settings, plateaus),
        "patience": patience_table(settings),
        "others": validation_table(settings, others),
    }
    tests = {f"test {name}": test_table(measured) for name, measured in settings.items()}
    return on_validation | {"test all": test_table_of_all(settings)} | tests


def main() -> None:
    """Insert every table between its markers on the page."""
    page = PAGE.read_text()
    for name, text in render_tables(json.loads(RESULTS.read_text())["settings"]).items():
        marks = rf"(<!-- {re.escape(name)}:begin -->\n).*?(<!-- {re.escape(name)}:end -->)"
        page, count = re.subn(marks, rf"\1{text}\n\2", page, flags=re.S)
        assert count == 1, f"{PAGE.name} has {count} places for the table {name!r}"
    PAGE.write_text(page)


if __name__ == "__main__":
    main()
