"""Tell every card in model_cards/ anew from the manifest, the scores and the lock beside it.

With --check, only say which are not what they would be told as. `--from build/demo` first takes
manifests, scores, locks and the report's numbers from a finished demo.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hubmerge.cards import routing, selection
from hubmerge.cards.card import CardInput, render_card
from hubmerge.cards.plain_merge import plain_merges
from hubmerge.lock import NAME as LOCK
from hubmerge.manifest import NAME, Manifest, parse_manifest
from hubmerge.opening.publication import add_figures, lock_beside
from hubmerge.routing import NAME as ROUTING
from hubmerge.routing import routing_beside
from hubmerge.scores import ScoreLog

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
PUBLISHED = ("ties-chosen", "ties-last", "moe-step128")


def told(folder: Path) -> dict[str, str]:
    """What is told of one folder, by file: its card, and what it shows in numbers as CSV.

    The pictures are not compared, as another matplotlib draws other bytes.
    """
    manifest = parse_manifest((folder / NAME).read_bytes(), str(folder))
    lock = lock_beside(folder, manifest)
    scores, routed = ScoreLog(folder / "scores.jsonl").read(), routing_beside(folder)
    told = {"README.md": render_card(CardInput(manifest, scores, lock=lock, routing=routed))}
    if lock:
        told[selection.CSV] = selection.selection_csv(lock)
    if routed:
        told[routing.CSV] = routing.routing_csv(routed)
    return told


def stale(folder: Path) -> list[str]:
    """Which files of a folder are not what they would be told as, or are missing."""
    wrong = [name for name, text in told(folder).items() if _text(folder / name) != text]
    pictures = [selection.CURVES, selection.HEAT_MAP] if (folder / LOCK).is_file() else []
    pictures += [routing.PICTURE] if (folder / ROUTING).is_file() else []
    return wrong + [name for name in pictures if not (folder / name).is_file()]


def tell(folder: Path) -> None:
    """Write the card of one folder and what it shows."""
    for name, text in told(folder).items():
        (folder / name).write_text(text)
    add_figures(folder, parse_manifest((folder / NAME).read_bytes(), str(folder)))


def take(demo: Path) -> None:
    """Copy what the published cards are told from out of a demo's folder."""
    scores = ScoreLog(demo / "scores.jsonl").read()
    merges = {name: parse_manifest((demo / name / NAME).read_bytes(), name) for name in PUBLISHED}
    for name, manifest in merges.items():
        folder = CARDS / f"demo-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(demo / name / NAME, folder)
        for beside in (LOCK, ROUTING):
            if (demo / name / beside).is_file():
                shutil.copy(demo / name / beside, folder)
        recipes = _rivals(CardInput(manifest, scores, lock=lock_beside(folder, manifest)))
        wanted = _digests(manifest) | {merge.digest for merge in merges.values()}
        ScoreLog(folder / "scores.jsonl").append(
            score for score in scores if score.model in wanted or score.recipe in recipes
        )
    shutil.copy(demo / "accuracy-per-step.png", ROOT / "docs" / "demo")
    shutil.copy(demo / "report.json", ROOT / "docs" / "demo")


def _rivals(told: CardInput) -> set[str]:
    """The recipes that a card compares with: last steps, best common step, plain merges."""
    merges = plain_merges(told) if told.manifest.kind == "moe" else []
    plain = (score.recipe for merge in merges for score in merge.scores)
    return {recipe for recipe in (told.last_recipe, told.uniform_recipe, *plain) if recipe}


def _digests(manifest: Manifest) -> set[str]:
    return {manifest.digest, manifest.base.digest, *(e.digest for e in manifest.experts)}


def _text(path: Path) -> str | None:
    return path.read_text() if path.is_file() else None


def main() -> None:
    """Write or check."""
    if "--from" in sys.argv:
        take(Path(sys.argv[sys.argv.index("--from") + 1]))
    folders = sorted(path.parent for path in CARDS.glob(f"*/{NAME}"))
    found = {folder: files for folder in folders if (files := stale(folder))}
    if "--check" in sys.argv:
        names = ", ".join(f"{folder.name}/{name}" for folder in found for name in found[folder])
        sys.exit(f"Stale: {names}. Run `make cards`." if found else 0)
    for folder in found:
        tell(folder)


if __name__ == "__main__":
    main()
