"""Results as Markdown: the tables of a recipe's README."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hubmerge.cards.markdown import break_comments, escape_markdown
from hubmerge.cards.number_format import MISSING
from hubmerge.redaction import redact_tokens
from hubmerge.reports.number_format import format_cell, format_claim, format_p
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.results import Claim, Results, Table


def recipe_readme_block(results: Results) -> str:
    """The verdict, the claims, the tables and the notes as Markdown, with all names escaped."""
    parts = [
        _verdict(results),
        "\n".join(_claims(results.claims)),
        *map(_titled_table, results.tables),
        *(f"*{escape_markdown(note)}*" for note in results.notes),
    ]
    return break_comments(redact_tokens("\n\n".join(part for part in parts if part))) + "\n"


def _verdict(results: Results) -> str:
    explanation = f" {escape_markdown(results.explanation)}" if results.explanation else ""
    return f"**{symbol_and_word(results.verdict)}.**{explanation}"


def _claims(claims: Sequence[Claim]) -> Iterator[str]:
    if claims:
        rows = [
            (
                _claim_text(claim),
                format_claim(claim),
                format_p(claim),
                symbol_and_word(claim.verdict),
            )
            for claim in claims
        ]
        head = ("the paper", "ours (95 % interval)", "p", "verdict")
        yield from _lines(head, ("---", "---:", "---:", "---"), rows)


def _claim_text(claim: Claim) -> str:
    paper = f" (paper: {escape_markdown(claim.paper)})" if claim.paper else ""
    return f"{escape_markdown(claim.statement)}{paper}"


def _titled_table(table: Table) -> str:
    rows = "\n".join(_table(table))
    return f"**{escape_markdown(table.title)}**\n\n{rows}"


def _table(table: Table) -> Iterator[str]:
    head = [escape_markdown(column) for column in table.columns]
    rows = [[escape_markdown(format_cell(cell)) or MISSING for cell in row] for row in table.rows]
    yield from _lines(head, ["---", *["---:"] * (len(head) - 1)], rows)


def _lines(
    head: Sequence[str], rule: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    return (f"| {' | '.join(row)} |" for row in (head, rule, *rows))
