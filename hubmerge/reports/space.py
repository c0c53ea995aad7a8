"""The page where it is to be read: as a file, or in a folder that is a static Space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from hubmerge.durable import write_whole
from hubmerge.errors import UsageError
from hubmerge.reports.page import render_page
from hubmerge.results import Results

PAGE, README = "index.html", "README.md"
_MARK = "Made by `hubmerge report`"


def write_page(told: Sequence[Results], out: Path) -> Path:
    """Write the page to a .html file, or into a folder as a Space; returns the page's file.

    Raises UsageError for a name that is neither, and for a folder whose README is somebody's.
    """
    is_file = out.suffix.lower() in (".html", ".htm") and not out.is_dir()
    if not is_file:
        _check_folder(out)
    page = out if is_file else out / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    write_whole(page, render_page(told).encode(), mode=0o644)
    if not is_file:
        write_whole(out / README, _readme(told).encode(), mode=0o644)
    return page


def _check_folder(out: Path) -> None:
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise UsageError(
            f"--out {out} is no page.", "Name it with .html, or name a folder for a static Space."
        )
    readme = out / README
    if readme.is_file() and _MARK not in readme.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(
            f"{readme} is not from `hubmerge report`, and would be lost.", "Name another folder."
        )


def _readme(told: Sequence[Results]) -> str:
    """What a Space is told by: https://huggingface.co/docs/hub/spaces-sdks-static."""
    front = {
        "title": "hubmerge reproduction",
        "sdk": "static",
        "app_file": PAGE,
        "license": "apache-2.0",
        "pinned": False,
    }
    words = f"{len(told)} {'recipe' if len(told) == 1 else 'recipes'} of arXiv 2506.14126"
    said = yaml.safe_dump(front, sort_keys=False)
    return f"---\n{said}---\n\n# hubmerge reproduction\n\n{_MARK}: {words}, in one page.\n"
