"""hubmerge report for results of recipes: the page, the figures, the table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hubmerge.cards.number_format import MISSING
from hubmerge.cli.session import Session
from hubmerge.cli.tables import make_table
from hubmerge.errors import UsageError, check_all, raise_together
from hubmerge.reports.number_format import format_claim, format_p
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.results import RESULTS_JSON, Results, read_results


def is_results_path(text: str) -> bool:
    """Whether an argument is a file of results, or a folder with a results.json."""
    path = Path(text)
    is_json = path.suffix == ".json" and path.is_file()
    return is_json or path.name == RESULTS_JSON or (path / RESULTS_JSON).is_file()


def report_results(
    session: Session, paths: Sequence[str], out: Path | None, figures: Path | None
) -> None:
    """Print the claims; `out` is the page to write, `figures` the folder for the charts."""
    all_results = _read_all([Path(path) for path in paths])
    if figures:
        from hubmerge.reports.figures import figure_folder, write_figures

        for results in all_results:
            write_figures(results, figure_folder(results, figures))
    if out:
        from hubmerge.reports.space import write_page

        page = write_page(all_results, out)
    session.print_result(_claims_table(all_results), _to_json(all_results))
    if out:
        session.print_message(f"Page: {page}")
    if figures:
        session.print_message(f"Figures: {figures}")


def _read_all(paths: Sequence[Path]) -> list[Results]:
    """The results; raises every problem at once, also a recipe given twice at one profile."""
    all_results: list[Results] = []
    check_all(*(lambda path=path: all_results.append(read_results(path)) for path in paths))
    counts = Counter(f"{results.recipe} ({results.profile})" for results in all_results)
    twice = [f"{name} is given more than once." for name, count in counts.items() if count > 1]
    raise_together(UsageError, twice, "Give each recipe and profile once.")
    return all_results


def _claims_table(all_results: Sequence[Results]) -> object:
    """A row for each claim, below a row for its recipe."""
    rows = []
    for results in all_results:
        verdict = symbol_and_word(results.verdict)
        rows.append((results.recipe, results.paper.where, "", "", "", verdict))
        rows += [
            (
                "",
                claim.statement,
                claim.paper or MISSING,
                format_claim(claim),
                format_p(claim),
                symbol_and_word(claim.verdict),
            )
            for claim in results.claims
        ]
    return make_table(("recipe", "claim", "paper", "ours, 95 % interval>", "p>", "verdict"), rows)


def _to_json(all_results: Sequence[Results]) -> list[dict[str, object]]:
    return [
        {
            "recipe": results.recipe,
            "profile": results.profile,
            "where": results.paper.where,
            "verdict": results.verdict,
            "explanation": results.explanation,
            "claims": [
                {
                    "name": claim.name,
                    "statement": claim.statement,
                    "paper": claim.paper,
                    "mean": claim.mean,
                    "stderr": claim.stderr,
                    "interval": claim.interval,
                    "p_value": claim.p_value,
                    "values": list(claim.values),
                    "unit": claim.unit,
                    "verdict": claim.verdict,
                }
                for claim in results.claims
            ],
        }
        for results in all_results
    ]
