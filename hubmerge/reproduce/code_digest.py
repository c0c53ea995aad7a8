"""A digest of the code that measures: it changes if a result could change, not with comments."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hubmerge.garbage_collection import garbage_collection_paused
from hubmerge.reproduce.folder_digest import folder_digest

_PACKAGE = Path(__file__).parents[1]
_SHIPPED_BASE = _PACKAGE / "mini" / "base"  # the model that a new embedded Hub contains
_LIBRARIES = ("torch", "numpy", "transformers", "peft", "open_clip_torch", "accelerate", "datasets")
# Packages and modules that only show, store or serve what others measured.
_NOT_MEASURING = {
    *("cli", "cards", "reports", "retention", "server"),
    *("front_matter.py", "results.py", "seed_statistics.py"),
}
_MEASURING_IN_REPRODUCE = ("perform.py", "units")  # the rest of this package plans and schedules
_HAVE_DOCSTRINGS = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@cache
def code_version() -> str:
    """Sixteen hex digits over the measuring code, the shipped base and the library versions."""
    parts = [
        package_digest(_PACKAGE),
        folder_digest(_SHIPPED_BASE),
        *sorted(library_versions().items()),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def library_versions() -> dict[str, str]:
    """The installed versions of the libraries that results depend on."""
    versions = {}
    for name in _LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def package_digest(package: Path) -> str:
    """A digest over the measuring files of a package: their names and syntax trees.

    Docstrings, comments and layout do not count. Data are not included: the parameters of units
    contain the digests of tasks and the digests or commits of bases.
    """
    digest = hashlib.sha256()
    with garbage_collection_paused():
        for path in measuring_files(package):
            tree = ast.parse(path.read_bytes())
            tokens = "\0".join(_tree_tokens(tree))
            digest.update(f"{path.relative_to(package).as_posix()}\0{tokens}\n".encode())
    return digest.hexdigest()[:16]


def measuring_files(package: Path) -> list[Path]:
    """The files whose code can change the result of a unit."""
    return sorted(
        path for path in package.rglob("*.py") if _is_measuring(path.relative_to(package))
    )


def _is_measuring(path: Path) -> bool:
    top, *inside = path.parts
    if top == "reproduce":
        return inside[0] in _MEASURING_IN_REPRODUCE
    return top not in _NOT_MEASURING


def _tree_tokens(tree: ast.AST) -> Iterator[str]:
    """The tree as tokens, without empty fields: Python versions differ in which fields exist."""
    stack: list[object] = [tree]
    while stack:
        node = stack.pop()
        if isinstance(node, ast.AST):
            yield type(node).__name__
            stack.append(")")
            for name in node._fields:
                if name == "ctx":  # follows from the position of the node
                    continue
                value = getattr(node, name, None)
                if (
                    name == "body"
                    and isinstance(node, _HAVE_DOCSTRINGS)
                    and _starts_with_docstring(node.body)
                ):
                    value = node.body[1:]
                if value is not None and value != []:
                    stack += (value, name)
        elif isinstance(node, list):
            stack.append("]")
            stack += node
        else:
            yield ascii(node)


def _starts_with_docstring(body: list[ast.stmt]) -> bool:
    """Whether a body begins with a docstring."""
    first = body[0] if body else None
    return (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
