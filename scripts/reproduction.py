"""Keep what recipes found: copy it from where they ran, and tell every page of it anew.

    python scripts/reproduction.py build/recipes     # take the results of a finished run
    python scripts/reproduction.py                   # tell the pages anew
    python scripts/reproduction.py --check           # only say which are not as they would be told
    python scripts/reproduction.py --summary FOLDER  # print the table of a run, and keep nothing

A recipe's folder gets results.json, its figures and expected.json; its README and
docs/reproduction.md are told from these and from recipe.yaml.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

from hubmerge.reports.figures import draw
from hubmerge.reports.markdown_tables import recipe_readme_block
from hubmerge.reports.number_format import duration, said
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.reproduce.expected import NAME as EXPECTED
from hubmerge.reproduce.expected import write_expected
from hubmerge.results import NAME, Claim, Results, mean, read_results, write_results
from hubmerge.specs.recipe import Recipe, read_recipe
from recipes.pages import markdown, placed

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PAGE = ROOT / "docs" / "reproduction.md"
KEPT = "mini"  # the profile whose results are kept
ORDER = (
    "fft-vision", "lora-vision", "moe-vision", "early-stop", "fft-nlp", "lora-nlp", "model-scale",
    "lora-rank", "difficulty", "prune-hardest", "forgetting", "per-task-steps", "anneal-modes",
)  # fmt: skip


def take(work: Path) -> list[str]:
    """Copy the results of every recipe that was run there; returns the recipes that were not."""
    found = {name: results for name in ORDER if (results := _ran(work, name))}
    if not found:
        raise SystemExit(f"There are no results of recipes in {work}.")
    for name, results in found.items():
        write_results(RECIPES / name, results)
        write_expected(RECIPES / name, results)
        draw(results, RECIPES / name)
    return [name for name in ORDER if name not in found]


def pages() -> dict[Path, str]:
    """Every page as it would be told now."""
    recipes = [read_recipe(RECIPES / name) for name in ORDER]
    told = {recipe.name: results_of(recipe) for recipe in recipes}
    found = {recipe.folder / "README.md": readme(recipe, told[recipe.name]) for recipe in recipes}
    table = overview([(recipe, told[recipe.name]) for recipe in recipes])
    found[PAGE] = placed(PAGE.read_text(encoding="utf-8"), "recipes", table)
    return found


def _ran(work: Path, name: str) -> Results | None:
    found = work / f"{name}-{KEPT}" / NAME
    results = read_results(found) if found.is_file() else None
    if results and (results.recipe, results.profile) != (name, KEPT):
        raise SystemExit(f"{found} is of {results.recipe}, profile {results.profile}.")
    return results


def results_of(recipe: Recipe) -> Results | None:
    """What was kept of a recipe, None if it was never run."""
    return read_results(recipe.folder) if (recipe.folder / NAME).is_file() else None


def readme(recipe: Recipe, results: Results | None) -> str:
    """The page of one recipe."""
    where = recipe.where if recipe.where.startswith("beyond") else f"{recipe.where} of the paper"
    lines = [
        f"# {recipe.title}",
        f"{where[0].upper()}{where[1:]} (arXiv 2506.14126). {recipe.says.strip()}",
        "```sh\n"
        f"hubmerge run recipes/{recipe.name}                            # offline, on CPUs\n"
        f"hubmerge run recipes/{recipe.name} --profile paper --dry-run  # what the paper's takes\n"
        "```",
    ]
    if results is None:
        lines.append("Not run yet; `make reproduce` runs it.")
        return "\n\n".join(lines) + "\n"
    for chart in results.charts:
        lines.append(f"![{chart.title}]({chart.name}.png)")
    lines.append(recipe_readme_block(results).strip())
    seeds = results.setting["seeds"]
    lines.append(
        f"Profile {results.profile}, {len(seeds)} seeds, mean ± standard error over them; "
        f"{sum(results.provenance.units.values())} units, "
        f"{duration(results.provenance.seconds)} of computing. Every row is in "
        f"[results.json]({NAME}), the bands that CI holds a rerun to in [{EXPECTED}]({EXPECTED})."
    )
    lines.append("Told by scripts/reproduction.py from results.json and recipe.yaml.")
    return "\n\n".join(lines) + "\n"


def overview(told: list[tuple[Recipe, Results | None]]) -> str:
    """A line for each claim: the paper, ours (mean and standard deviation), verdict, minutes."""
    lines = []
    for recipe, results in told:
        link = f"[{recipe.name}](../recipes/{recipe.name})"
        if results is None:
            lines.append([link, recipe.where, "", "not run", ""])
            continue
        lines.append([
            f"**{link}**", recipe.where, "", f"**{symbol_and_word(results.verdict)}**",
            f"{results.provenance.seconds / 60:.0f}",
        ])  # fmt: skip
        for claim in results.claims:
            word = symbol_and_word(claim.verdict)
            lines.append([claim.says, claim.paper, measured(claim), word, ""])
    head = ["recipe and claim", "paper", "ours, mean ± standard deviation", "verdict", "minutes"]
    return markdown(head, lines)


def measured(claim: Claim) -> str:
    """The mean over seeds and their standard deviation, in points or percent."""
    middle = said(mean(claim.values), claim.unit)
    if len(claim.values) < 2:
        return middle
    squares = math.fsum((value - mean(claim.values)) ** 2 for value in claim.values)
    spread = math.sqrt(squares / (len(claim.values) - 1))
    return f"{middle} ± {said(spread, claim.unit).lstrip('+')}"


def main() -> None:
    """Take, tell or check."""
    words = sys.argv[1:]
    if words == ["--check"]:
        stale = [p for p, text in pages().items() if not p.is_file() or p.read_text() != text]
        if stale:
            raise SystemExit("\n".join(f"{path.relative_to(ROOT)} is stale" for path in stale))
        return
    if words[:1] == ["--summary"] and len(words) == 2:
        recipes = [read_recipe(RECIPES / name) for name in ORDER]
        print(overview([(one, _ran(Path(words[1]), one.name)) for one in recipes]))
        return
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise SystemExit(__doc__)
    if words:
        for name in take(Path(words[0])):
            print(f"{name} was not run in {words[0]}")
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
