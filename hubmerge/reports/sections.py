"""What the page is filled with: plain words and pictures of each recipe."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from markupsafe import Markup

from hubmerge.cards.number_format import MISSING
from hubmerge.refs import printable
from hubmerge.reports.chart_data import Picture, picture, to_json
from hubmerge.reports.claim_intervals import intervals
from hubmerge.reports.number_format import beyond, cell_words, duration, ours
from hubmerge.reports.svg import still, swatch
from hubmerge.reports.verdicts import WORDS
from hubmerge.results import Cell, Chart, Claim, Results, Table

_SHORT_DIGEST = 12


def sections(told: Sequence[Results]) -> list[dict[str, Any]]:
    """One for each recipe, in their order; their ids in the page differ."""
    taken: dict[str, int] = {}
    return [_section(results, _fresh(_slug(_name(results)), taken)) for results in told]


def _section(results: Results, place: str) -> dict[str, Any]:
    return {
        "id": place,
        "recipe": printable(results.recipe),
        "profile": printable(results.profile),
        "title": printable(results.title),
        "where": printable(results.paper.where),
        "says": printable(results.paper.says),
        "verdict": results.verdict,
        "words": WORDS[results.verdict],
        "because": printable(results.because),
        "notes": [printable(note) for note in results.notes],
        "claims": list(_claims(results.claims)),
        "charts": [
            _chart(chart, f"{place}-chart-{number}")
            for number, chart in enumerate(results.charts, start=1)
        ],
        "tables": [_table(table) for table in results.tables],
        "setting": list(_flat(results.setting)),
        "provenance": list(_provenance(results)),
        "seconds": duration(results.provenance.seconds),
    }


def _claims(claims: Sequence[Claim]) -> Iterator[dict[str, Any]]:
    for claim, strip in zip(claims, intervals(claims), strict=True):
        yield {
            "name": printable(claim.name),
            "says": printable(claim.says),
            "paper": printable(claim.paper) or MISSING,
            "ours": ours(claim),
            "seeds": len(claim.values),
            "beyond": beyond(claim),
            "verdict": claim.verdict,
            "words": WORDS[claim.verdict],
            "strip": strip,
        }


def _chart(chart: Chart, place: str) -> dict[str, Any]:
    shown = picture(chart)
    lines = {(line.name, line.style): swatch(shown, line.style) for line in shown.lines}
    return {
        "id": place,
        "title": shown.title,
        "is_split": shown.is_split,
        "y_label": shown.y_label,
        "words": _description(shown),
        "band": _band_words(shown),
        "still": still(shown),
        "json": script_text(to_json(shown)),
        "legend": [(name, drawn) for (name, _), drawn in lines.items()],
        "data": _data(shown),
    }


def _description(shown: Picture) -> str:
    """What a chart shows for who does not see it: the axes, and each series where it is highest."""
    kind = "Bars" if shown.kind == "bar" else "Lines"
    said = [f"{kind}: {shown.y_label} against {shown.x_label}."]
    for line in shown.lines:
        if line.marks:
            best = max(line.marks, key=lambda mark: mark.mean)
            said.append(f"{_full_name(shown, line.group, line.name)}: highest at {best.label}, "
                        f"{best.words}.")  # fmt: skip
    return " ".join(said)


def _band_words(shown: Picture) -> str:
    count = len(shown.seeds)
    if count < 2:
        return "One seed."
    kind = "Whiskers" if shown.kind == "bar" else "Bands"
    return f"{kind}: one standard error of the mean over {count} seeds."


def _data(shown: Picture) -> dict[str, Any]:
    """Every number of a chart: a row for each place, a column for each series."""
    columns = [{mark.x: mark for mark in line.marks} for line in shown.lines]
    several = len(shown.seeds) > 1
    return {
        "columns": [
            shown.x_label,
            *(_full_name(shown, line.group, line.name) for line in shown.lines),
        ],
        "rows": [
            (
                label,
                [
                    (mark.words, " ".join(mark.said) if several else "", mark.note)
                    if (mark := column.get(x))
                    else (MISSING, "", "")
                    for column in columns
                ],
            )
            for x, label in shown.places.items()
        ],
    }


def _full_name(shown: Picture, group: str, name: str) -> str:
    return f"{group}: {name}" if shown.is_split and group else name


def _table(table: Table) -> dict[str, Any]:
    return {
        "title": printable(table.title),
        "columns": [printable(column) for column in table.columns],
        "rows": [
            [(printable(cell_words(cell)), isinstance(cell, Cell)) for cell in row]
            for row in table.rows
        ],
    }


def _flat(setting: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """The setting as names and words; what is nested is named by its path."""
    for name, value in setting.items():
        path = f"{before}{printable(str(name))}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}.")
        elif isinstance(value, list | tuple):
            yield path, ", ".join(printable(str(one)) for one in value) or MISSING
        else:
            yield path, printable(str(value))


def _provenance(results: Results) -> Iterator[tuple[str, str]]:
    made = results.provenance
    units = sum(made.units.values())
    kinds = ", ".join(f"{count} {printable(kind)}" for kind, count in made.units.items())
    yield "code", printable(made.code)
    yield "hubmerge", printable(made.hubmerge)
    yield from ((printable(name), printable(version)) for name, version in made.versions.items())
    yield "units", f"{units} ({kinds})" if kinds else str(units)
    yield "time of all units", duration(made.seconds)
    if made.machine:
        yield "machine", printable(made.machine)


def script_text(said: str) -> Markup:
    """JSON that is the same JSON inside a script element, and can neither end nor begin one."""
    for letter in "<>&":
        said = said.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(said)


def _name(results: Results) -> str:
    return f"{results.recipe}-{results.profile}"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-") or "recipe"


def _fresh(name: str, taken: dict[str, int]) -> str:
    taken[name] = taken.get(name, 0) + 1
    return name if taken[name] == 1 else f"{name}-{taken[name]}"
