"""Writes the charts of a recipe as PNG and SVG, for its README."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from hubmerge.cards.plotting import default_style, shorten
from hubmerge.durable import write_atomic
from hubmerge.errors import DataError, raise_together
from hubmerge.reports.chart_data import ChartData, Line, chart_data
from hubmerge.reports.palette import MARKERS, colour, dashes
from hubmerge.reports.scales import positions, x_range, x_ticks, y_range
from hubmerge.results import Results
from hubmerge.ticks import thin_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_FORMATS = {"png": {"Software": None}, "svg": {"Date": None}}
_COLUMNS = 3
_LETTER_WIDTH = 0.085  # of a tick label, in inches


def write_figures(results: Results, folder: Path) -> list[Path]:
    """Write every chart as NAME.png and NAME.svg; equal results give equal bytes.

    Lines are means over seeds with a band of one standard error, bars have whiskers of one standard
    error. Groups have one panel each if a single panel would be crowded. Raises DataError for a
    chart whose name is not a valid file name.
    """
    problems = [
        f"The chart {chart.name!r} of {results.recipe} is not a valid file name."
        for chart in results.charts
        if not _is_file_name(chart.name)
    ]
    raise_together(DataError, problems, "Name charts with letters, digits, dots and dashes.")
    folder.mkdir(parents=True, exist_ok=True)
    return [
        path
        for chart in results.charts
        for path in _write_figure(chart_data(chart), folder / chart.name)
    ]


def figure_folder(results: Results, folder: Path) -> Path:
    """The folder for the figures of one of several recipes; DataError for an invalid name."""
    name = f"{results.recipe}-{results.profile}"
    if not _is_file_name(name):
        raise DataError(
            f"The recipe {name!r} is not a valid folder name.",
            "Name it with letters, digits and dashes.",
        )
    return folder / name


def _is_file_name(name: str) -> bool:
    """Whether a name is a plain file name on every system."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,99}", name, re.ASCII) is not None


def _write_figure(chart: ChartData, name: Path) -> list[Path]:
    written = []
    with default_style():
        figure = _draw_figure(chart)
        for kind, metadata in _FORMATS.items():
            buffer = io.BytesIO()
            # Leave out matplotlib's date and version, so that the bytes are reproducible.
            figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
            path = name.with_name(f"{name.name}.{kind}")
            write_atomic(path, buffer.getvalue(), mode=0o644)
            written.append(path)
    return written


def _draw_figure(chart: ChartData) -> Figure:
    from matplotlib.figure import Figure

    panels = chart.panels
    columns = min(len(panels), _COLUMNS)
    rows = -(-len(panels) // columns)
    size = (7.5, 4.4) if len(panels) == 1 else (3.0 * columns + 0.6, 2.5 * rows + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    for empty in grid.flat[len(panels) :]:
        empty.set_visible(False)
    for number, (title, lines) in enumerate(panels.items()):
        axes = grid.flat[number]
        _draw_panel(axes, chart, lines)
        _label_x_axis(axes, chart, inches=6.6 if len(panels) == 1 else 2.5)
        axes.set_title(shorten(title), fontsize=10, loc="left")
        if number + columns >= len(panels):
            axes.set_xlabel(chart.x_label, fontsize=10)
    figure.suptitle(chart.title, fontsize=11)
    figure.supylabel(chart.y_label, fontsize=10)
    _draw_legend(figure, grid.flat[0], chart)
    return figure


def _draw_panel(axes: Axes, chart: ChartData, lines: Sequence[Line]) -> None:
    for number, line in enumerate(lines):
        if chart.kind == "bar":
            _draw_bars(axes, chart, line, number, len(lines))
        else:
            _draw_curve(axes, chart, line)
    axes.set_xlim(*x_range(chart))
    axes.set_ylim(*y_range(chart))
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if chart.kind == "bar":
        axes.axhline(0, color="#555555", linewidth=0.8)


def _label_x_axis(axes: Axes, chart: ChartData, inches: float) -> None:
    """Label the x axis; if labels do not fit, words are rotated and numbers are thinned out."""
    low, high = x_range(chart)
    ticks = [(position, shorten(label)) for position, label in x_ticks(chart)]
    widths = [(len(label) + 1) * _LETTER_WIDTH * (high - low) / inches for _, label in ticks]
    labels = thin_ticks(ticks, widths)
    if len(labels) < len(ticks) and any(isinstance(x, str) for x in chart.x_labels):
        labels = ticks
        axes.tick_params(axis="x", rotation=30)
    axes.set_xticks([x for x, _ in labels], [label for _, label in labels], fontsize=9)


def _draw_curve(axes: Axes, chart: ChartData, line: Line) -> None:
    x_of = positions(chart)
    xs, means = [x_of[mark.x] for mark in line.marks], [mark.mean for mark in line.marks]
    ink, pattern = colour(line.style), dashes(line.style)
    axes.plot(
        xs, means, color=ink, marker=MARKERS[line.style % len(MARKERS)], markersize=4.5,
        linestyle=(0, pattern) if pattern else "-", linewidth=1.6, label=shorten(line.name),
    )  # fmt: skip
    low = [mark.mean - mark.error for mark in line.marks]
    high = [mark.mean + mark.error for mark in line.marks]
    axes.fill_between(xs, low, high, color=ink, alpha=0.16, linewidth=0)


def _draw_bars(axes: Axes, chart: ChartData, line: Line, number: int, lines: int) -> None:
    x_of = positions(chart)
    width = 0.8 / lines
    axes.bar(
        [x_of[mark.x] - 0.4 + (number + 0.5) * width for mark in line.marks],
        [mark.mean for mark in line.marks],
        width=0.92 * width,
        yerr=[mark.error for mark in line.marks],
        color=colour(line.style),
        error_kw={"linewidth": 1, "ecolor": "#222222"},
        label=shorten(line.name),
    )


def _draw_legend(figure: Figure, axes: Axes, chart: ChartData) -> None:
    """Each name once, below the panels; no legend for a single name."""
    handles, names = axes.get_legend_handles_labels()
    if len({line.name for line in chart.lines}) > 1:
        figure.legend(handles, names, loc="outside lower center", ncols=min(len(names), 4),
                      frameon=False, fontsize=9)  # fmt: skip
