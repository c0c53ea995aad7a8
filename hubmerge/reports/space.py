"""Writes the page as a file, or as a folder for a static Space."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import yaml

from hubmerge.durable import write_atomic
from hubmerge.errors import UsageError
from hubmerge.reports.page import render_page
from hubmerge.results import Results

PAGE, README = "index.html", "README.md"
_SIGNATURE = "Made by `hubmerge report`"


def write_page(all_results: Sequence[Results], out: Path) -> Path:
    """Write the page to an .html file, or to a folder as a Space; returns the path of the page.

    Raises UsageError for a path that is neither, and for a folder with a README of its own.
    """
    is_file = out.suffix.lower() in (".html", ".htm") and not out.is_dir()
    if not is_file:
        _check_folder(out)
    page = out if is_file else out / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(page, render_page(all_results).encode(), mode=0o644)
    if not is_file:
        write_atomic(out / README, _readme(all_results).encode(), mode=0o644)
    return page


def _check_folder(out: Path) -> None:
    if out.is_file() or (out.suffix and not out.is_dir()):
        raise UsageError(
            f"--out {out} is neither an .html file nor a folder.",
            "Name it with .html, or name a folder for a static Space.",
        )
    readme = out / README
    if readme.is_file() and _SIGNATURE not in readme.read_text(encoding="utf-8", errors="replace"):
        raise UsageError(
            f"{readme} was not written by `hubmerge report` and would be overwritten.",
            "Name another folder.",
        )


def _readme(all_results: Sequence[Results]) -> str:
    """The README that configures a Space: https://huggingface.co/docs/hub/spaces-sdks-static."""
    front_matter = {
        "title": "hubmerge reproduction",
        "sdk": "static",
        "app_file": PAGE,
        "license": "apache-2.0",
        "pinned": False,
    }
    count = f"{len(all_results)} {'recipe' if len(all_results) == 1 else 'recipes'}"
    metadata = yaml.safe_dump(front_matter, sort_keys=False)
    return (
        f"---\n{metadata}---\n\n# hubmerge reproduction\n\n"
        f"{_SIGNATURE}: {count} of arXiv 2506.14126, in one page.\n"
    )
