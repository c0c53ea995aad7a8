"""The charts of a recipe as PNG and SVG: the figures of its README."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.cards.plotting import plain_style, short
from hubmerge.durable import write_whole
from hubmerge.errors import DataError, raise_together
from hubmerge.reports.chart_data import Line, Picture, picture
from hubmerge.reports.palette import MARKERS, colour, dashes
from hubmerge.reports.scales import positions, thinned, x_range, x_ticks, y_range
from hubmerge.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_KINDS = {"png": {"Software": None}, "svg": {"Date": None}}
_COLUMNS = 3
_LETTER = 0.085  # inches that a letter at an axis takes


def draw(results: Results, folder: Path) -> list[Path]:
    """Write every chart as NAME.png and NAME.svg; the same results are the same bytes.

    Lines are means over seeds in a band of one standard error, bars have it as whiskers; groups
    have a panel each where one would be crowded. Raises DataError for a chart whose name cannot
    name a file.
    """
    problems = [
        f"The chart {chart.name!r} of {results.recipe} cannot name a file."
        for chart in results.charts
        if not _is_file_name(chart.name)
    ]
    raise_together(DataError, problems, "Name charts with letters, digits, dots and dashes.")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        path for chart in results.charts for path in _write(picture(chart), folder / chart.name)
    ]


def figure_folder(results: Results, folder: Path) -> Path:
    """Where the figures of one recipe of several go; raises DataError if that is no folder name."""
    name = f"{results.recipe}-{results.profile}"
    if not _is_file_name(name):
        raise DataError(
            f"The recipe {name!r} cannot name a folder.", "Name it with letters, digits and dashes."
        )
    return folder / name


def _is_file_name(name: str) -> bool:
    """Whether a name stays in its folder, on every system."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}", name, re.ASCII) is not None


def _write(shown: Picture, name: Path) -> list[Path]:
    written = []
    with plain_style():
        figure = _drawn(shown)
        for kind, metadata in _KINDS.items():
            bytes_ = io.BytesIO()
            # Without the date and version that matplotlib would write: the same bytes every day.
            figure.savefig(bytes_, format=kind, dpi=150, metadata=metadata)
            path = name.with_name(f"{name.name}.{kind}")
            write_whole(path, bytes_.getvalue(), mode=0o644)
            written.append(path)
    return written


def _drawn(shown: Picture) -> Figure:
    from matplotlib.figure import Figure

    panels = shown.panels
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (7.5, 4.4) if len(panels) == 1 else (3.0 * columns + 0.6, 2.5 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for empty in grid.flat[len(panels) :]:
        empty.set_visible(False)
    for number, (title, lines) in enumerate(panels.items()):
        axes = grid.flat[number]
        _panel(axes, shown, lines)
        _name_places(axes, shown, inches=6.6 if len(panels) == 1 else 2.5)
        axes.set_title(short(title), fontsize=10, loc="left")
        if number + columns >= len(panels):
            axes.set_xlabel(shown.x_label, fontsize=10)
    figure.suptitle(shown.title, fontsize=11)
    figure.supylabel(shown.y_label, fontsize=10)
    _legend(figure, grid.flat[0], shown)
    return figure


def _panel(axes: Axes, shown: Picture, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        if shown.kind == "bar":
            _bars(axes, shown, line, number, len(lines))
        else:
            _curve(axes, shown, line)
    axes.set_xlim(*x_range(shown))
    axes.set_ylim(*y_range(shown))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if shown.kind == "bar":
        axes.axhline(0, color="#555555", linewidth=0.8)


def _name_places(axes: Axes, shown: Picture, inches: float) -> None:
    """Ticks on x: words that have no room stand aslant, of numbers some are left out."""
    low, high = x_range(shown)
    ticks = [(place, short(words)) for place, words in x_ticks(shown)]
    widths = [(len(words) + 1) * _LETTER * (high - low) / inches for _, words in ticks]
    named = thinned(ticks, widths)
    if len(named) < len(ticks) and any(isinstance(x, str) for x in shown.places):
        named = ticks
        axes.tick_params(axis="x", rotation=30)
    axes.set_xticks([place for place, _ in named], [words for _, words in named], fontsize=9)


def _curve(axes: Axes, shown: Picture, line: Line) -> None:
    at = positions(shown)
    xs, means = [at[mark.x] for mark in line.marks], [mark.mean for mark in line.marks]
    ink, pattern = colour(line.style), dashes(line.style)
    axes.plot(
        xs, means, color=ink, marker=MARKERS[line.style % len(MARKERS)], markersize=4.5,
        linestyle=(0, pattern) if pattern else "-", linewidth=1.6, label=short(line.name),
    )  # fmt: skip
    low = [mark.mean - mark.error for mark in line.marks]
    high = [mark.mean + mark.error for mark in line.marks]
    axes.fill_between(xs, low, high, color=ink, alpha=0.16, linewidth=0)


def _bars(axes: Axes, shown: Picture, line: Line, number: int, lines: int) -> None:
    at = positions(shown)
    wide = 0.8 / lines
    axes.bar(
        [at[mark.x] - 0.4 + (number + 0.5) * wide for mark in line.marks],
        [mark.mean for mark in line.marks],
        width=0.92 * wide,
        yerr=[mark.error for mark in line.marks],
        color=colour(line.style),
        error_kw={"linewidth": 1, "ecolor": "#222222"},
        label=short(line.name),
    )


def _legend(figure: Figure, axes: Axes, shown: Picture) -> None:
    """Every name once, below the panels; a single one needs none."""
    handles, names = axes.get_legend_handles_labels()
    if len({line.name for line in shown.lines}) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4),
                      frameon=False, fontsize=9)  # fmt: skip
