"""Which code measures: a digest that changes when a result could, and for no comment."""

from __future__ import annotations

import ast
import gc
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hubmerge.reproduce.folder_digest import digest_of

_PACKAGE = Path(__file__).parents[1]
_BASE = _PACKAGE / "mini" / "base"  # what the embedded Hub has from the start
_DECIDING = ("torch", "numpy", "transformers", "peft", "open_clip_torch", "accelerate", "datasets")
# Rooms that only tell, keep or serve what others measured.
_TELLING = {"cli", "cards", "reports", "retention", "server", "results.py"}
_MEASURING = ("perform.py", "units")  # of this room, where the rest plans and runs
_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code_version() -> str:
    """Sixteen hex digits of what measures here: our code, the base we ship, the libraries."""
    said = [digest_of_code(_PACKAGE), digest_of(_BASE), *sorted(versions().items())]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def versions() -> dict[str, str]:
    """The libraries that decide bits, and which of them is installed."""
    found = {}
    for name in _DECIDING:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def digest_of_code(package: Path) -> str:
    """The digest of a package's measuring files: their names and syntax trees.

    Docstrings, comments and layout do not count. Data are not in it: of tasks and bases the units'
    parameters have digests or commits.
    """
    digest = hashlib.sha256()
    with _without_collection():
        for path in measuring(package):
            tree = ast.parse(path.read_bytes())
            said = "\0".join(_words(tree))
            digest.update(f"{path.relative_to(package).as_posix()}\0{said}\n".encode())
    return digest.hexdigest()[:16]


def measuring(package: Path) -> list[Path]:
    """The files whose code decides what units come to."""
    return sorted(path for path in package.rglob("*.py") if _measures(path.relative_to(package)))


def _measures(path: Path) -> bool:
    room, *inside = path.parts
    if room == "reproduce":
        return inside[0] in _MEASURING
    return room not in _TELLING


def _words(tree: ast.AST) -> Iterator[str]:
    """The tree as words: what is empty is left out, as other Pythons do not know all fields."""
    left: list[object] = [tree]
    while left:
        node = left.pop()
        if isinstance(node, ast.AST):
            yield type(node).__name__
            left.append(")")
            for name in node._fields:
                value = getattr(node, name, None)
                if name == "body" and isinstance(node, _DOCUMENTED) and _documents(node.body):
                    value = node.body[1:]
                if (
                    name != "ctx" and value is not None and value != []
                ):  # ctx follows from its place
                    left += (value, name)
        elif isinstance(node, list):
            left.append("]")
            left += node
        else:
            yield ascii(node)


def _documents(body: list[ast.stmt]) -> bool:
    """Whether a body begins with a docstring."""
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )


@contextmanager
def _without_collection() -> Iterator[None]:
    """Trees are many small objects and no garbage: looking for some takes longer than parsing."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
