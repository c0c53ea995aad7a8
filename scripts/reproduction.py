"""Copy the results of recipes into the repository, and write their pages.

    python scripts/reproduction.py build/recipes     # copy the results of a run, write the pages
    python scripts/reproduction.py                   # judge the claims again, write the pages
    python scripts/reproduction.py --check           # only report the pages that differ
    python scripts/reproduction.py --summary FOLDER  # print the table of a run, write nothing

A recipe's folder gets results.json, its figures and expected.json; its README and
docs/reproduction.md are written from these and from recipe.yaml. Claims are made again from the
rows of results.json, so that a change of recipe.yaml or of the rule needs no run.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from hubmerge.reports.figures import write_figures
from hubmerge.reports.markdown_tables import recipe_readme_block
from hubmerge.reports.number_format import format_claim, format_duration, format_p
from hubmerge.reports.verdicts import symbol_and_word
from hubmerge.reproduce.expected import NAME as EXPECTED
from hubmerge.reproduce.expected import write_expected
from hubmerge.reproduce.results_from_units import claims_from_rows
from hubmerge.results import (
    RESULTS_JSON,
    Results,
    overall_verdict,
    read_results,
    write_results,
)
from hubmerge.specs.recipe import Recipe, read_recipe
from recipes.studies.pages import insert_table, markdown_table

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "recipes"
PAGE = ROOT / "docs" / "reproduction.md"
PROFILE = "mini"  # the profile whose results are in the repository
ORDER = (
    "fft-vision", "lora-vision", "moe-vision", "early-stop", "fft-nlp", "lora-nlp", "model-scale",
    "lora-rank", "difficulty", "prune-hardest", "forgetting", "per-task-steps", "anneal-modes",
    "smollm",
)  # fmt: skip


def import_results(work: Path) -> list[str]:
    """Copy the results of every recipe that was run in a folder; returns the missing recipes."""
    results_by_recipe = {name: results for name in ORDER if (results := _read_run(work, name))}
    if not results_by_recipe:
        raise SystemExit(f"There are no results of recipes in {work}.")
    for name, results in results_by_recipe.items():
        write_results(RECIPES / name, results)
        write_expected(RECIPES / name, results)
        write_figures(results, RECIPES / name)
    return [name for name in ORDER if name not in results_by_recipe]


def judge_saved_results() -> None:
    """Write results.json and expected.json again with claims made from the rows."""
    for name in ORDER:
        recipe = read_recipe(RECIPES / name)
        if results := read_saved_results(recipe):
            write_results(recipe.folder, judged_by_recipe(recipe, results))
            write_expected(recipe.folder, judged_by_recipe(recipe, results))


def judged_by_recipe(recipe: Recipe, results: Results) -> Results:
    """The results with the texts and the claims that recipe.yaml has now."""
    claims = claims_from_rows(recipe, results.profile, results.rows)
    return replace(
        results,
        claims=claims,
        verdict=overall_verdict([claim.verdict for claim in claims]),
        explanation=" ".join(recipe.explanation.split()),
    )


def render_pages() -> dict[Path, str]:
    """Path -> content of every page as it would be written now."""
    recipes = [read_recipe(RECIPES / name) for name in ORDER]
    results_by_recipe = {recipe.name: read_saved_results(recipe) for recipe in recipes}
    pages = {
        recipe.folder / "README.md": render_readme(recipe, results_by_recipe[recipe.name])
        for recipe in recipes
    }
    table = render_overview([(recipe, results_by_recipe[recipe.name]) for recipe in recipes])
    pages[PAGE] = insert_table(PAGE.read_text(encoding="utf-8"), "recipes", table)
    return pages


def _read_run(work: Path, name: str) -> Results | None:
    path = work / f"{name}-{PROFILE}" / RESULTS_JSON
    results = read_results(path) if path.is_file() else None
    if results and (results.recipe, results.profile) != (name, PROFILE):
        raise SystemExit(f"{path} is of {results.recipe}, profile {results.profile}.")
    return results


def read_saved_results(recipe: Recipe) -> Results | None:
    """The results of a recipe in the repository, None if it was never run."""
    return read_results(recipe.folder) if (recipe.folder / RESULTS_JSON).is_file() else None


def render_readme(recipe: Recipe, results: Results | None) -> str:
    """The page of one recipe."""
    where = recipe.where if recipe.where.startswith("beyond") else f"{recipe.where} of the paper"
    run = f"hubmerge run recipes/{recipe.name}"
    commands = [f"{run}                            # offline, on CPUs"]
    if "paper" in recipe.suites:
        commands.append(f"{run} --profile paper --dry-run  # cost of the paper's run")
    lines = [
        f"# {recipe.title}",
        f"{where[0].upper()}{where[1:]} (arXiv 2506.14126). {recipe.statement.strip()}",
        "\n".join(["```sh", *commands, "```"]),
    ]
    if results is None:
        lines.append("Not run yet; `make reproduce` runs it.")
        return "\n\n".join(lines) + "\n"
    for chart in results.charts:
        lines.append(f"![{chart.title}]({chart.name}.png)")
    lines.append(recipe_readme_block(results).strip())
    seeds = results.setting["seeds"]
    lines.append(
        f"Profile {results.profile}, {len(seeds)} seeds. Claims: the mean with its 95 % interval "
        "by Student's t, and the one-sided p value, corrected by Holm for all claims of the "
        "recipe. Tables: mean ± standard error over the seeds. "
        f"{sum(results.provenance.units.values())} units, "
        f"{format_duration(results.provenance.seconds)} of computing. Every row is in "
        f"[results.json]({RESULTS_JSON}); CI compares reruns with [{EXPECTED}]({EXPECTED})."
    )
    lines.append("Written by scripts/reproduction.py from results.json and recipe.yaml.")
    return "\n\n".join(lines) + "\n"


def render_overview(results_by_recipe: list[tuple[Recipe, Results | None]]) -> str:
    """A line for each claim: the paper, ours with its interval, p, verdict, minutes."""
    lines = []
    for recipe, results in results_by_recipe:
        link = f"[{recipe.name}](../recipes/{recipe.name})"
        if results is None:
            lines.append([link, recipe.where, "", "", "not run", ""])
            continue
        lines.append([
            f"**{link}**", recipe.where, "", "", f"**{symbol_and_word(results.verdict)}**",
            f"{results.provenance.seconds / 60:.0f}",
        ])  # fmt: skip
        for claim in results.claims:
            word = symbol_and_word(claim.verdict)
            p = format_p(claim)
            lines.append([claim.statement, claim.paper, format_claim(claim), p, word, ""])
    head = ["recipe and claim", "paper", "ours (95 % interval)", "p", "verdict", "minutes"]
    return markdown_table(head, lines)


def main() -> None:
    """Copy results, write pages or check them."""
    words = sys.argv[1:]
    if words == ["--check"]:
        stale = [
            path
            for path, text in render_pages().items()
            if not path.is_file() or path.read_text() != text
        ]
        if stale:
            raise SystemExit("\n".join(f"{path.relative_to(ROOT)} is stale" for path in stale))
        return
    if words[:1] == ["--summary"] and len(words) == 2:
        recipes = [read_recipe(RECIPES / name) for name in ORDER]
        work = Path(words[1])
        print(render_overview([(recipe, _read_run(work, recipe.name)) for recipe in recipes]))
        return
    if len(words) > 1 or any(word.startswith("-") for word in words):
        raise SystemExit(__doc__)
    if words:
        for name in import_results(Path(words[0])):
            print(f"{name} was not run in {words[0]}")
    judge_saved_results()
    for path, text in render_pages().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
