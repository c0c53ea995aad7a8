"""Which files of the server may import what, and what importing the package loads."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hubmerge.server

FOLDER = Path(hubmerge.server.__file__).parent
STORE = {
    "blobs", "card_rules", "commit_writer", "content", "discussion_store", "disk", "garbage",
    "git", "http_errors", "multipart_store", "names", "reachability",
    "pushes", "quarantine", "redirects", "refs", "repository", "shards", "snapshot", "store",
    "tokens", "trees", "uploads", "xorbs",
}  # fmt: skip


def imports(file: Path) -> set[str]:
    modules = set[str]()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module or "")
        if isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    return modules


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: str(file.stem))
def test_a_file_imports_only_what_it_may(file: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(file)}
    outside = {n for n in imports(file) if n.startswith("hubmerge") and "server" not in n}
    names = {name.removeprefix("hubmerge.") for name in outside}
    assert names <= {"errors", "durable", "front_matter", "validation_errors"}
    assert not tops & {"huggingface_hub", "torch", "requests"}
    assert "environ" not in file.read_text()
    assert "getenv" not in file.read_text()
    if file.stem in STORE:
        assert not tops & {"starlette", "uvicorn"}
        inside = {n.split(".")[2] for n in imports(file) if n.startswith("hubmerge.server.")}
        assert inside <= STORE
    if file.stem not in {
        "content", "git", "pushes", "quarantine", "reachability", "refs", "smart_http", "trees",
    }:  # fmt: skip
        assert "dulwich" not in tops


PAGES = FOLDER / "pages"


@pytest.mark.parametrize("file", sorted(PAGES.glob("*.py")), ids=lambda file: str(file.stem))
def test_a_page_imports_only_what_it_may(file: Path) -> None:
    tops = {name.partition(".")[0] for name in imports(file)}
    assert not tops & {"huggingface_hub", "torch", "requests", "dulwich", "numpy"}
    assert "os.environ" not in file.read_text()


def test_the_app_starts_without_what_only_pages_need() -> None:
    code = "import sys, hubmerge.server.app; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=FOLDER.parents[1], text=True)
    assert not set(loaded.split()) & {"jinja2", "markdown_it", "nh3", "pydantic"}


def test_the_package_is_light() -> None:
    code = "import sys, hubmerge.server; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], cwd=FOLDER.parents[1], text=True)
    assert not set(loaded.split()) & {"starlette", "uvicorn", "dulwich", "yaml", "torch"}
