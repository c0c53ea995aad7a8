from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import hubmerge


@pytest.mark.parametrize("name", hubmerge.__all__)
def test_every_public_name_exists_and_is_documented(name: str) -> None:
    assert getattr(hubmerge, name).__doc__ or name == "METHODS"


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(hubmerge.__file__).read_text())
    typed = {
        a.asname for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for a in node.names
    }
    assert typed - {None} == set(hubmerge.__all__)


def test_a_misspelt_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="merg"):
        hubmerge.merg  # noqa: B018


def test_the_library_merges_without_the_command_line(tmp_path: Path) -> None:
    for name, value in (("base", 0.0), ("a", 1.0), ("b", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"w": np.full(4, value, np.float32)}, tmp_path / name / "model.safetensors")
    opened = {name: hubmerge.open_checkpoint(tmp_path / name) for name in ("base", "a", "b")}
    average = hubmerge.method("average")
    plan = hubmerge.MergePlan(
        base=opened["base"],
        experts=(hubmerge.Expert(opened["a"], "a"), hubmerge.Expert(opened["b"], "b")),
        method=average,
        params=hubmerge.parse_params(average, {}),
    )
    hubmerge.merge(plan, tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors")["w"].tolist() == [2.0] * 4
