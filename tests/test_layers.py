"""The layers of the architecture: a file imports only from layers below its own."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hubmerge"
LAYERS = [
    {
        "errors",
        "durable",
        "progress",
        "kinds",
        "metric_names",
        "front_matter",
        "model_class",
        "model_files",
        "redaction",
        "ticks",
        "typed_json",
        "validation_errors",
    },
    {"byte_sizes", "cores", "garbage_collection", "seed_statistics", "source"},
    {"refs", "specs", "file_digests", "recipe_ids", "training_curve"},
    {"manifest"},
    {"server"},
    {"weights", "tasks", "hub", "scores", "trials", "routing", "forgetting"},
    {"merging", "results"},
    {"lock", "mergekit"},
    {"lock_numbers"},
    {"lock_file"},
    {"models", "cards", "retention"},
    {"learners", "moerging", "reports"},
    {"evaluation", "predictions", "calibration"},
    {"row_values"},
    {"training", "selection", "difficulty"},
    {"opening"},
    {"runs", "trainer_runs"},
    {"choosing", "callbacks"},
    {"flows"},
    {"reproduce"},
    {"cli"},
]
# A file may also import from its own package, and specs may import refs.
SIDEWAYS = {("specs", "refs")}
LIGHT = (
    "errors",
    "durable",
    "kinds",
    "metric_names",
    "front_matter",
    "model_class",
    "model_files",
    "redaction",
    "ticks",
    "typed_json",
    "validation_errors",
    "byte_sizes",
    "cores",
    "garbage_collection",
    "file_digests",
    "refs",
    "specs",
    "scores",
    "routing",
    "forgetting",
    "manifest",
    "recipe_ids",
    "source",
    "training_curve",
    "lock",
    "lock_file",
    "lock_numbers",
    "trials",
    "retention",
    "hub",
    "server",
    "cards",
    "results",
    "seed_statistics",
    "reports",
    "trainer_runs",
    "cli",
)
HEAVY = {"torch", "transformers", "peft", "datasets", "open_clip", "evaluate", "accelerate"}
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def layer_of(name: str) -> int:
    return next(number for number, packages in enumerate(LAYERS) if name in packages)


@cache
def imported(path: Path, everywhere: bool = True) -> set[str]:
    """The modules that a file imports; with everywhere=False only those at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def packages_used(path: Path) -> set[str]:
    inner = {name.split(".")[1] for name in imported(path) if name.startswith("hubmerge.")}
    return inner & {name for packages in LAYERS for name in packages}


def imports_from_above(path: Path) -> set[str]:
    """The packages of its own layer or above that a file imports from."""
    own = package_of(path)
    if own.startswith("__"):
        return set()
    return {
        other
        for other in packages_used(path) - {own}
        if layer_of(other) >= layer_of(own) and (own, other) not in SIDEWAYS
    }


def test_imports_go_downward() -> None:
    above = {str(path.relative_to(PACKAGE)): imports_from_above(path) for path in FILES}
    assert {path: packages for path, packages in above.items() if packages} == {}


def test_every_file_has_a_layer() -> None:
    packages = {package_of(path) for path in FILES if not package_of(path).startswith("__")}
    assert packages == {name for packages in LAYERS for name in packages}


def packages_importing(module: str) -> set[str]:
    return {
        package_of(path)
        for path in FILES
        if any(name == module or name.startswith(f"{module}.") for name in imported(path))
    }


def test_only_hub_imports_huggingface_hub() -> None:
    assert packages_importing("huggingface_hub") == {"hub"}


def test_only_the_command_line_and_hub_read_the_environment() -> None:
    reads = re.compile(r"os\.environ|getenv")
    switch = PACKAGE / "merging" / "kernels.py"  # without effect on any byte, also in programs
    readers = {
        package_of(path)
        for path in FILES
        if path != switch and reads.search(path.read_text(encoding="utf-8"))
    }
    assert readers <= {"cli", "hub"}


MATHS = (
    "methods", "ties", "trim", "bracket", "deltas", "params", "softening", "gram", "spherical",
    "sparse", "spectral", "tensor_ranks", "random_masks",
)  # fmt: skip
# None of these can open a file or a connection.
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
    "threading",  # memory for each thread
    "hubmerge.weights.dtypes",
    "hubmerge.weights.lora",
    "hubmerge.weights.array_blocks",
    "hubmerge.merging",  # kernels, which get arrays and return arrays
    *(f"hubmerge.merging.{name}" for name in MATHS),
}


@pytest.mark.parametrize("path", [
    *(PACKAGE / "merging" / f"{name}.py" for name in MATHS),
    PACKAGE / "weights" / "dtypes.py",
    PACKAGE / "weights" / "array_blocks.py",
    PACKAGE / "weights" / "lora.py",
], ids=lambda path: path.stem)  # fmt: skip
def test_a_merge_method_uses_no_files_and_no_hub(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
    assert not calls & {"open", "exec", "eval", "__import__"}
    also = {"ml_dtypes", "hubmerge.errors"} if path.parent.name == "weights" else set()
    assert imported_modules(tree) <= MAY_IMPORT | also


def imported_modules(tree: ast.Module) -> set[str]:
    """The modules that a file imports or imports from, without the imported names."""
    sources = {n.module or "." for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    plain = [n for n in ast.walk(tree) if isinstance(n, ast.Import)]
    return sources | {alias.name for node in plain for alias in node.names}


@pytest.mark.parametrize("name", LIGHT)
def test_light_packages_import_nothing_heavy_at_the_top_level(name: str) -> None:
    for path in FILES:
        if package_of(path) == name:
            top_level = {module.split(".")[0] for module in imported(path, everywhere=False)}
            assert not top_level & HEAVY, path


def test_nothing_unpickles_or_trusts_remote_code() -> None:
    for path in FILES:
        if "trust_remote_code" in path.read_text():
            tree = ast.parse(path.read_text())
            for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
                values = [k.value for k in call.keywords if k.arg == "trust_remote_code"]
                assert all(isinstance(v, ast.Constant) and v.value is False for v in values), path
        assert not imported(path) & {"pickle", "dill", "joblib", "marshal", "shelve"}, path
        assert "torch.load(" not in path.read_text()
