"""The template variables of the page: text, charts and tables of each recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hubmerge.cards.number_format import MISSING
from hubmerge.refs import printable
from hubmerge.reports.chart_data import ChartData, chart_data, to_json
from hubmerge.reports.claim_intervals import draw_intervals
from hubmerge.reports.number_format import (
    format_cell,
    format_claim,
    format_duration,
    format_p,
    format_threshold,
)
from hubmerge.reports.svg import static_svg, swatch
from hubmerge.reports.verdicts import WORDS
from hubmerge.results import Cell, Chart, Claim, Results, Table


def sections(all_results: Sequence[Results]) -> list[dict[str, Any]]:
    """The variables of each recipe's section, in this order, with unique element ids."""
    taken: dict[str, int] = {}
    return [_section(results, _unique_id(_slug(_name(results)), taken)) for results in all_results]


def _section(results: Results, section_id: str) -> dict[str, Any]:
    return {
        "id": section_id,
        "recipe": printable(results.recipe),
        "profile": printable(results.profile),
        "title": printable(results.title),
        "where": printable(results.paper.where),
        "statement": printable(results.paper.statement),
        "verdict": results.verdict,
        "verdict_word": WORDS[results.verdict],
        "explanation": printable(results.explanation),
        "notes": [printable(note) for note in results.notes],
        "claims": list(_claims(results.claims)),
        "charts": [
            _chart(chart, f"{section_id}-chart-{number}")
            for number, chart in enumerate(results.charts, start=1)
        ],
        "tables": [_table(table) for table in results.tables],
        "setting": list(_flatten(results.setting)),
        "provenance": list(_provenance(results)),
        "duration": format_duration(results.provenance.seconds),
    }


def _claims(claims: Sequence[Claim]) -> Iterator[dict[str, Any]]:
    for claim, interval in zip(claims, draw_intervals(claims), strict=True):
        yield {
            "name": printable(claim.name),
            "statement": printable(claim.statement),
            "paper": printable(claim.paper) or MISSING,
            "measured": format_claim(claim),
            "seeds": len(claim.values),
            "p_value": format_p(claim),
            "threshold": format_threshold(claim),
            "verdict": claim.verdict,
            "verdict_word": WORDS[claim.verdict],
            "interval": interval,
        }


def _chart(raw_chart: Chart, chart_id: str) -> dict[str, Any]:
    chart = chart_data(raw_chart)
    lines = {(line.name, line.style): swatch(chart, line.style) for line in chart.lines}
    return {
        "id": chart_id,
        "title": chart.title,
        "is_split": chart.is_split,
        "y_label": chart.y_label,
        "description": _describe_chart(chart),
        "error_note": _describe_errors(chart),
        "static_svg": static_svg(chart),
        "json": json_for_script(to_json(chart)),
        "legend": [(name, svg) for (name, _), svg in lines.items()],
        "data": _data_table(chart),
    }


def _describe_chart(chart: ChartData) -> str:
    """The alternative text of a chart: the axes, and the highest point of each series."""
    kind = "Bars" if chart.kind == "bar" else "Lines"
    sentences = [f"{kind}: {chart.y_label} against {chart.x_label}."]
    for line in chart.lines:
        if line.marks:
            best = max(line.marks, key=lambda mark: mark.mean)
            name = _full_name(chart, line.group, line.name)
            sentences.append(f"{name}: highest at {best.label}, {best.text}.")
    return " ".join(sentences)


def _describe_errors(chart: ChartData) -> str:
    """What the bands or whiskers of a chart mean."""
    count = len(chart.seeds)
    if count < 2:
        return "One seed."
    kind = "Whiskers" if chart.kind == "bar" else "Bands"
    return f"{kind}: one standard error of the mean over {count} seeds."


def _data_table(chart: ChartData) -> dict[str, Any]:
    """Every number of a chart: a row per x value, a column per series."""
    columns = [{mark.x: mark for mark in line.marks} for line in chart.lines]
    has_seeds = len(chart.seeds) > 1
    return {
        "columns": [
            chart.x_label,
            *(_full_name(chart, line.group, line.name) for line in chart.lines),
        ],
        "rows": [
            (
                label,
                [
                    (mark.text, " ".join(mark.value_texts) if has_seeds else "", mark.note)
                    if (mark := column.get(x))
                    else (MISSING, "", "")
                    for column in columns
                ],
            )
            for x, label in chart.x_labels.items()
        ],
    }


def _full_name(chart: ChartData, group: str, name: str) -> str:
    return f"{group}: {name}" if chart.is_split and group else name


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": printable(table.title),
        "columns": [printable(column) for column in table.columns],
        "rows": [
            [(printable(format_cell(cell)), isinstance(cell, Cell)) for cell in row]
            for row in table.rows
        ],
    }


def _flatten(setting: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """The setting as pairs of name and text; nested names are dotted paths."""
    for name, value in setting.items():
        path = f"{prefix}{printable(str(name))}"
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{path}.")
        elif isinstance(value, list | tuple):
            yield path, ", ".join(printable(str(item)) for item in value) or MISSING
        else:
            yield path, printable(str(value))


def _provenance(results: Results) -> Iterator[tuple[str, str]]:
    provenance = results.provenance
    units = sum(provenance.units.values())
    kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in provenance.units.items())
    yield "code", printable(provenance.code)
    yield "hubmerge", printable(provenance.hubmerge)
    yield from (
        (printable(name), printable(version)) for name, version in provenance.versions.items()
    )
    yield "units", f"{units} ({kinds})" if kinds else str(units)
    yield "time of all units", format_duration(provenance.seconds)
    if provenance.machine:
        yield "machine", printable(provenance.machine)


def json_for_script(text: str) -> Markup:
    """Equivalent JSON that is safe inside a script element: it cannot end or begin an element."""
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def _name(results: Results) -> str:
    return f"{results.recipe}-{results.profile}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "recipe"


def _unique_id(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"
