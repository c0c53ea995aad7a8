"""Results as Markdown: the tables of a recipe's README, and of the page of all recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubmerge.cards.markdown import no_marker, plain, without_tokens
from hubmerge.cards.number_format import MISSING
from hubmerge.reports.number_format import cell_words, duration, ours
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.results import Claim, Results, Table


def recipe_readme_block(results: Results) -> str:
    """The verdict, the claims and each table, as Markdown that names cannot break."""
    parts = [
        _verdict(results),
        "\n".join(_claims(results.claims)),
        *map(_titled, results.tables),
        *(f"*{plain(note)}*" for note in results.notes),
    ]
    return no_marker(without_tokens("\n\n".join(part for part in parts if part))) + "\n"


def overview_block(told: Sequence[Results]) -> str:
    """One table of recipes: where in the paper, the verdict, each claim, minutes of computing."""
    head = ("recipe", "in the paper", "verdict", "claims", "time")
    rows = [
        (
            plain(results.recipe),
            plain(results.paper.where),
            symbol_and_word(results.verdict),
            ", ".join(f"{plain(claim.name)} {ours(claim)}" for claim in results.claims),
            duration(results.provenance.seconds),
        )
        for results in told
    ]
    return without_tokens("\n".join(_lines(head, ("---",) * 4 + ("---:",), rows))) + "\n"


def _verdict(results: Results) -> str:
    because = f" {plain(results.because)}" if results.because else ""
    return f"**{symbol_and_word(results.verdict)}.**{because}"


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    if claims:
        rows = [(_says(claim), ours(claim), symbol_and_word(claim.verdict)) for claim in claims]
        yield from _lines(("the paper", "ours", "verdict"), ("---", "---:", "---"), rows)


def _says(claim: Claim) -> str:
    paper = f" (paper: {plain(claim.paper)})" if claim.paper else ""
    return f"{plain(claim.says)}{paper}"


def _titled(table: Table) -> str:
    rows = "\n".join(_table(table))
    return f"**{plain(table.title)}**\n\n{rows}"


def _table(table: Table) -> Iterator[str]:
    head = [plain(column) for column in table.columns]
    rows = [[plain(cell_words(cell)) or MISSING for cell in row] for row in table.rows]
    yield from _lines(head, ["---", *["---:"] * (len(head) - 1)], rows)


def _lines(
    head: Sequence[str], rule: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in (head, rule, *rows))
