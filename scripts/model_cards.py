"""Tell every card in model_cards/ anew from the manifest and the scores beside it.

With --check, only say which are not what they would be told as. `--from build/demo` first takes
manifests, scores and the report's numbers from a finished demo.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from hubmerge.cards.card import CardInput, render_card
from hubmerge.manifest import NAME, Manifest, parse_manifest
from hubmerge.scores import ScoreLog

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
PUBLISHED = ("ties-step256", "ties-step1024")


def told(folder: Path) -> str:
    """The card of one folder."""
    manifest = parse_manifest((folder / NAME).read_bytes(), str(folder))
    return render_card(CardInput(manifest, ScoreLog(folder / "scores.jsonl").read()))


def take(demo: Path) -> None:
    """Copy what the published cards are told from out of a demo's folder."""
    scores = ScoreLog(demo / "scores.jsonl").read()
    merges = {name: parse_manifest((demo / name / NAME).read_bytes(), name) for name in PUBLISHED}
    for name, manifest in merges.items():
        folder = CARDS / f"demo-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(demo / name / NAME, folder)
        wanted = _digests(manifest) | {merge.digest for merge in merges.values()}
        ScoreLog(folder / "scores.jsonl").append(s for s in scores if s.model in wanted)
    shutil.copy(demo / "accuracy-per-step.png", ROOT / "docs" / "demo")
    shutil.copy(demo / "report.json", ROOT / "docs" / "demo")


def _digests(manifest: Manifest) -> set[str]:
    return {manifest.digest, manifest.base.digest, *(e.digest for e in manifest.experts)}


def main() -> None:
    """Write or check."""
    if "--from" in sys.argv:
        take(Path(sys.argv[sys.argv.index("--from") + 1]))
    folders = sorted(path.parent for path in CARDS.glob(f"*/{NAME}"))
    stale = [
        f
        for f in folders
        if not (f / "README.md").is_file() or (f / "README.md").read_text() != told(f)
    ]
    if "--check" in sys.argv:
        names = ", ".join(folder.name for folder in stale)
        sys.exit(f"Stale cards: {names}. Run `make docs`." if stale else 0)
    for folder in stale:
        (folder / "README.md").write_text(told(folder))


if __name__ == "__main__":
    main()
