"""hubmerge report, of what recipes found: the page, the figures, a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from hubmerge.cards.number_format import MISSING
from hubmerge.cli.session import Session
from hubmerge.cli.tables import table
from hubmerge.errors import UsageError, check_all, raise_together
from hubmerge.reports.number_format import ours
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.results import NAME, Results, read_results


def is_results(text: str) -> bool:
    """Whether an argument is results of a recipe: a JSON file, or a folder with a results.json."""
    path = Path(text)
    is_json = path.suffix == ".json" and path.is_file()
    return is_json or path.name == NAME or (path / NAME).is_file()


def report_results(
    session: Session, places: Sequence[str], out: Path | None, figures: Path | None
) -> None:
    """Show what recipes found; `out` is the page to write, `figures` the folder of figures."""
    told = _read([Path(place) for place in places])
    if figures:
        from hubmerge.reports.figures import draw, figure_folder

        for results in told:
            draw(results, figure_folder(results, figures))
    if out:
        from hubmerge.reports.space import write_page

        page = write_page(told, out)
    session.show(_table(told), _data(told))
    if out:
        session.say(f"Page: {page}")
    if figures:
        session.say(f"Figures: {figures}")


def _read(places: Sequence[Path]) -> list[Results]:
    """The results, all problems at once; each recipe at each profile once."""
    told: list[Results] = []
    check_all(*(lambda place=place: told.append(read_results(place)) for place in places))
    counts = Counter(f"{results.recipe} ({results.profile})" for results in told)
    again = [f"{name} is given more than once." for name, count in counts.items() if count > 1]
    raise_together(UsageError, again, "Give the results of a recipe at a profile once.")
    return told


def _table(told: Sequence[Results]) -> object:
    """A line for each claim, below a line for its recipe."""
    rows = []
    for results in told:
        verdict = symbol_and_word(results.verdict)
        rows.append((results.recipe, results.paper.where, "", "", verdict))
        rows += [
            ("", claim.says, claim.paper or MISSING, ours(claim), symbol_and_word(claim.verdict))
            for claim in results.claims
        ]
    return table(("recipe", "claim", "paper", "ours>", "verdict"), rows)


def _data(told: Sequence[Results]) -> list[dict[str, object]]:
    return [
        {
            "recipe": results.recipe,
            "profile": results.profile,
            "where": results.paper.where,
            "verdict": results.verdict,
            "because": results.because,
            "claims": [
                {
                    "name": claim.name,
                    "says": claim.says,
                    "paper": claim.paper,
                    "mean": claim.mean,
                    "stderr": claim.stderr,
                    "values": list(claim.values),
                    "unit": claim.unit,
                    "verdict": claim.verdict,
                }
                for claim in results.claims
            ],
        }
        for results in told
    ]
