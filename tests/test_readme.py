"""The README is run: every ```bash block in order, in one shell, in an empty folder and home."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import datasets

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
VISION = ROOT / "hubmerge" / "mini" / "vision"


def test_every_command_of_the_readme_works(tmp_path: Path, home: Path) -> None:
    photos(tmp_path / "photos")
    script = "\n".join(["set -euo pipefail", *re.findall(r"```bash\n(.*?)```", README, re.DOTALL)])
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("HUBMERGE_HOME")
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True,
        timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "mnist-step32" / "hubmerge.json").is_file()
    assert "Upcycling score" in (tmp_path / "merged" / "mine" / "README.md").read_text()


def test_the_readmes_numbers_are_those_of_the_demo() -> None:
    table = README.split("<!-- demo:begin -->")[1].split("<!-- demo:end -->")[0].strip()
    report = json.loads((ROOT / "docs" / "demo" / "report.json").read_text())
    assert table == demo_table(report)


def demo_table(report: dict[str, dict[str, list[dict[str, float]]]]) -> str:
    """The demo's report as the README shows it."""
    curves = report["curves"]
    lines = ["| step | " + " | ".join(curves) + " |", "|---:" * (len(curves) + 1) + "|"]
    by_step: dict[float, list[str]] = {}
    for points in curves.values():
        for p in points:
            cell = f"{100 * p['accuracy']:.1f} ± {100 * p['stderr']:.1f}"
            by_step.setdefault(p["step"], []).append(cell)
    lines += [f"| {step} | " + " | ".join(cells) + " |" for step, cells in by_step.items()]
    return "\n".join(lines)


def test_the_commands_page_is_true() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/help_pages.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_model_cards_are_what_their_manifests_and_scores_tell() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/model_cards.py", "--check"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def photos(folder: Path) -> None:
    """A user's own images: sixty pictures of three classes, in train/ only."""
    rows = datasets.load_dataset(
        "parquet", data_files=str(VISION / "fashion-train.parquet"), split="train"
    )
    names = rows.features["label"].names
    chosen = [
        row for row in rows.select(range(400)) if names[row["label"]] in ("bag", "coat", "dress")
    ]
    for number, row in enumerate(chosen[:60]):
        path = folder / "train" / names[row["label"]]
        path.mkdir(parents=True, exist_ok=True)
        row["image"].save(path / f"{number}.png")
