"""The floors of the architecture: a file imports only from floors below its own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hubmerge"
FLOORS = [
    {"errors", "durable", "progress", "kinds", "front_matter"},
    {"refs", "specs", "server"},
    {"weights", "tasks", "hub", "scores", "trials", "routing", "forgetting"},
    {"merging", "manifest", "results"},
    {"lock"},
    {"models", "cards", "retention"},
    {"learners", "moerging", "reports"},
    {"evaluation", "predictions"},
    {"training", "selection", "difficulty"},
    {"opening"},
    {"runs"},
    {"choosing"},
    {"flows"},
    {"reproduce"},
    {"cli"},
]
# A file may also use its own room, and refs is the alphabet specs is written in.
SIDEWAYS = {("specs", "refs")}
LIGHT = (
    "errors",
    "durable",
    "kinds",
    "front_matter",
    "refs",
    "specs",
    "scores",
    "routing",
    "forgetting",
    "manifest",
    "lock",
    "trials",
    "retention",
    "hub",
    "server",
    "cards",
    "results",
    "reports",
    "cli",
)
HEAVY = {"torch", "transformers", "peft", "datasets", "open_clip", "evaluate", "accelerate"}
FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor(name: str) -> int:
    return next(number for number, rooms in enumerate(FLOORS) if name in rooms)


def imported(path: Path, everywhere: bool = True) -> set[str]:
    """Modules a file imports; with everywhere=False only those at its top, met at import time."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def rooms_used(path: Path) -> set[str]:
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("hubmerge.")}
    return inner & {name for rooms in FLOORS for name in rooms}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    mine = room(path)
    if mine.startswith("__"):
        return
    above = {
        other
        for other in rooms_used(path) - {mine}
        if floor(other) >= floor(mine) and (mine, other) not in SIDEWAYS
    }
    assert not above, f"{mine} imports from its own floor or above: {above}"


def test_every_file_has_a_floor() -> None:
    rooms = {room(path) for path in FILES if not room(path).startswith("__")}
    assert rooms == {name for rooms in FLOORS for name in rooms}


def users(module: str) -> set[str]:
    return {
        room(path)
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imported(path))
    }


def test_only_hub_imports_huggingface_hub() -> None:
    assert users("huggingface_hub") == {"hub"}


def test_only_the_command_line_and_hub_read_the_environment() -> None:
    reads = re.compile(r"os\.environ|getenv")
    readers = {room(path) for path in FILES if reads.search(path.read_text(encoding="utf-8"))}
    assert readers <= {"cli", "hub"}


MATHS = ("methods", "ties", "trim", "deltas", "params", "softening")
# Nothing here can open a file or a connection, or tell one file from another.
MAY_IMPORT = {
    "__future__",
    "collections.abc",
    "dataclasses",
    "hashlib",
    "json",
    "typing",
    "numpy",
    "numpy.typing",
    "pydantic",
    "hubmerge.weights.dtypes",
    "hubmerge.weights.array_blocks",
    *(f"hubmerge.merging.{name}" for name in MATHS),
}


@pytest.mark.parametrize("path", [
    *(PACKAGE / "merging" / f"{name}.py" for name in MATHS),
    PACKAGE / "weights" / "dtypes.py",
    PACKAGE / "weights" / "array_blocks.py",
], ids=lambda path: path.stem)  # fmt: skip
def test_a_merge_method_knows_no_files_and_no_hub(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
    assert not calls & {"open", "exec", "eval", "__import__"}
    also = {"ml_dtypes", "hubmerge.errors"} if path.parent.name == "weights" else set()
    assert modules(tree) <= MAY_IMPORT | also


def modules(tree: ast.Module) -> set[str]:
    """The modules a file imports or imports from, without the names it takes out of them."""
    found = {n.module or "." for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    plain = [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
    return found | {alias.name for node in plain for alias in node.names}


@pytest.mark.parametrize("name", LIGHT)
def test_the_light_rooms_import_nothing_heavy_at_their_top(name: str) -> None:
    for path in FILES:
        if room(path) == name:
            tops = {module.split(".")[0] for module in imported(path, everywhere=False)}
            assert not tops & HEAVY, path


def test_nothing_unpickles_or_trusts_remote_code() -> None:
    for path in FILES:
        calls = [
            node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)
        ]
        for call in calls:
            trusts = [k.value for k in call.keywords if k.arg == "trust_remote_code"]
            assert all(isinstance(v, ast.Constant) and v.value is False for v in trusts), path
        assert not imported(path) & {"pickle", "dill", "joblib", "marshal", "shelve"}, path
        assert "torch.load(" not in path.read_text()
