"""The configuration of a merge names the dtype in which the weights are written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hubmerge.errors import CheckpointError
from hubmerge.weights.dtypes import float_dtype_name
from hubmerge.weights.model_config import CONFIG_JSON, changed_config


def changed(folder: Path, config: dict[str, Any], dtype: str | None) -> Any:
    (folder / CONFIG_JSON).write_text(json.dumps(config))
    files = changed_config(folder, dtype)
    return json.loads(files[CONFIG_JSON]) if files else None


def test_every_dtype_is_changed_and_the_order_of_keys_is_kept(tmp_path: Path) -> None:
    config = {"torch_dtype": "float32", "b": 1, "text_config": {"dtype": "float16", "a": [1]}}
    new = changed(tmp_path, config, "BF16")
    assert new == {
        "torch_dtype": "bfloat16",
        "b": 1,
        "text_config": {"dtype": "bfloat16", "a": [1]},
    }
    assert list(new) == list(config)


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"dtype": "float32"}, None), ({"dtype": "float32"}, "F32"), ({"dtype": None}, "BF16"),
     ({}, "BF16")],
)  # fmt: skip
def test_nothing_else_is_changed(tmp_path: Path, config: dict[str, Any], dtype: str) -> None:
    assert changed(tmp_path, config, dtype) is None


def test_a_folder_without_a_config(tmp_path: Path) -> None:
    assert changed_config(tmp_path, "BF16") == {}


def test_a_config_that_is_no_object_is_refused(tmp_path: Path) -> None:
    (tmp_path / CONFIG_JSON).write_text("[]")
    with pytest.raises(CheckpointError, match="not an object"):
        changed_config(tmp_path, "BF16")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("BF16", "BF16"), ("bf16", "BF16"), ("bfloat16", "BF16"), ("torch.float16", "F16"),
     ("half", "F16"), ("float32", "F32"), ("float8_e4m3fn", "F8_E4M3"), ("int8", "int8")],
)  # fmt: skip
def test_names_of_dtypes(name: str, dtype: str) -> None:
    assert float_dtype_name(name) == dtype
