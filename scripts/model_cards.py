"""Write every card in model_cards/ from the manifest, the scores and the lock in its folder.

With --check, only report the files that differ. `--from build/demo` first copies manifests, scores,
and locks from a finished demo and demo-moe, `--from build/demo-llm/seed0` from a finished demo-llm.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hubmerge.cards import routing, selection
from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.plain_merge import find_plain_merges
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.manifest import MANIFEST_JSON, Manifest, parse_manifest
from hubmerge.opening.publication import add_figures, read_folder_lock
from hubmerge.routing import ROUTING_JSON as ROUTING
from hubmerge.routing import read_routing
from hubmerge.scores import ScoreLog

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
PUBLISHED = ("ties-chosen", "ties-last", "moe-step128", "smollm-task_arithmetic-chosen")


def render_files(folder: Path) -> dict[str, str]:
    """File name -> content of one folder: its card, and the numbers of its figures as CSV.

    Figures are not included, as their bytes depend on the version of matplotlib.
    """
    manifest = parse_manifest((folder / MANIFEST_JSON).read_bytes(), str(folder))
    lock = read_folder_lock(folder, manifest)
    scores, routing_shares = ScoreLog(folder / "scores.jsonl").read(), read_routing(folder)
    card_input = CardInput(manifest, scores, lock=lock, routing=routing_shares)
    files = {"README.md": render_card(card_input)}
    if lock:
        files[selection.CSV] = selection.selection_csv(lock)
    if routing_shares:
        files[routing.CSV] = routing.routing_csv(routing_shares)
    return files


def stale_files(folder: Path) -> list[str]:
    """The files of a folder that are missing or differ from what would be written now."""
    stale = [
        name for name, text in render_files(folder).items() if _read_text(folder / name) != text
    ]
    pictures = [selection.CURVES, selection.HEAT_MAP] if (folder / LOCK).is_file() else []
    pictures += [routing.PICTURE] if (folder / ROUTING).is_file() else []
    return stale + [name for name in pictures if not (folder / name).is_file()]


def write_files(folder: Path) -> None:
    """Write the card of one folder with its CSV files and figures."""
    for name, text in render_files(folder).items():
        (folder / name).write_text(text)
    add_figures(folder, parse_manifest((folder / MANIFEST_JSON).read_bytes(), str(folder)))


def import_demo(demo: Path) -> None:
    """Copy the inputs of the published cards from the folder of a demo."""
    scores = ScoreLog(demo / "scores.jsonl").read()
    merges = {
        name: parse_manifest((demo / name / MANIFEST_JSON).read_bytes(), name)
        for name in PUBLISHED
        if (demo / name / MANIFEST_JSON).is_file()
    }
    for name, manifest in merges.items():
        folder = CARDS / f"demo-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(demo / name / MANIFEST_JSON, folder)
        for file in (LOCK, ROUTING):
            if (demo / name / file).is_file():
                shutil.copy(demo / name / file, folder)
        recipes = _compared_recipes(
            CardInput(manifest, scores, lock=read_folder_lock(folder, manifest))
        )
        models = _digests(manifest) | {merge.digest for merge in merges.values()}
        ScoreLog(folder / "scores.jsonl").append(
            score for score in scores if score.model in models or score.recipe in recipes
        )


def _compared_recipes(card_input: CardInput) -> set[str]:
    """The recipe ids that a card compares with: last steps, best common step, plain merges."""
    merges = find_plain_merges(card_input) if card_input.manifest.is_moe else []
    plain = (score.recipe for merge in merges for score in merge.scores)
    return {
        recipe for recipe in (card_input.last_recipe, card_input.uniform_recipe, *plain) if recipe
    }


def _digests(manifest: Manifest) -> set[str]:
    return {manifest.digest, manifest.base.digest, *(e.digest for e in manifest.experts)}


def _read_text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def main() -> None:
    """Write or check all cards."""
    if "--from" in sys.argv:
        import_demo(Path(sys.argv[sys.argv.index("--from") + 1]))
    folders = sorted(path.parent for path in CARDS.glob(f"*/{MANIFEST_JSON}"))
    stale = {folder: files for folder in folders if (files := stale_files(folder))}
    if "--check" in sys.argv:
        names = ", ".join(f"{folder.name}/{name}" for folder in stale for name in stale[folder])
        sys.exit(f"Stale: {names}. Run `make cards`." if stale else 0)
    for folder in stale:
        write_files(folder)


if __name__ == "__main__":
    main()
