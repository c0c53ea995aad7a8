"""hubmerge merge --as-lora: folders, options, and the result as an input again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.task_vector import TaskVector
from tests.command_line import run_command
from tests.weights.adapters import save_adapter, write_base

pytestmark = pytest.mark.usefixtures("running_hub")

f32 = np.float32
A, B = f32([[1, 0, 0]]), f32([[2], [0]])


@pytest.fixture(autouse=True)
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, and two adapters whose changes have the singular values 2 and 1."""
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "base", {"q.weight": np.arange(6, dtype=f32).reshape(2, 3)})
    for name, a, b in (("one", A, B), ("two", f32([[0, 1, 0]]), f32([[0], [1]]))):
        save_adapter(
            tmp_path / name,
            {"q.lora_A.weight": a, "q.lora_B.weight": b},
            base_model_name_or_path=str(tmp_path / "base"),
            task_type="CAUSAL_LM",
        )
    return tmp_path


def merge(*words: object, code: int = 0) -> Any:
    """Merge the two adapters, or other models, by task arithmetic; returns the JSON or stderr."""
    named = [word for word in words if str(word).startswith("./")] or ["./one", "./two"]
    options = [word for word in words if word not in named]
    result = run_command("merge", *named, "--method", "task_arithmetic", *options, "--json")
    assert result.exit_code == code, result.stderr
    return json.loads(result.stdout) if code == 0 else " ".join(result.stderr.split())


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_result_is_an_adapter_with_manifest_and_card(models: Path) -> None:
    data = merge("--as-lora", 2, "--out", "out")
    files = read_files(models / "out")
    assert set(files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "hubmerge.json",
    }  # fmt: skip
    config = json.loads(files["adapter_config.json"])
    assert (config["r"], config["lora_alpha"], config["target_modules"]) == (2, 2, ["q"])
    assert (config["task_type"], config["base_model_name_or_path"]) == (
        "CAUSAL_LM", str(models / "base"),
    )  # fmt: skip
    vector = TaskVector(open_checkpoint(models / "base"), open_checkpoint(models / "out"))
    np.testing.assert_allclose(vector.delta("q.weight"), [[2, 0, 0], [0, 1, 0]], atol=1e-6)
    manifest = json.loads(files["hubmerge.json"])
    assert manifest["layout"] == "peft"
    assert manifest["params"] == {"scale": 1.0, "as_lora": 2} == data["params"]
    assert manifest["training"]["lora"] == data["lora"]
    assert data["lora"] == {
        "rank": 2, "kept": 1.0, "attainable": 1.0, "modules": {"q": 1.0}, "left_out": {},
    }  # fmt: skip
    assert "PeftModel.from_pretrained" in files["README.md"].decode()
    assert "--as-lora 2" in files["README.md"].decode()


def test_a_lower_rank_keeps_less_and_says_so(models: Path) -> None:
    result = run_command("merge", "./one", "./two", "--method", "task_arithmetic",
                         "--as-lora", 1, "--out", "out")  # fmt: skip
    printed = " ".join(result.stdout.split())
    assert "a LoRA of rank 1 that keeps 80.00 % of the squared change" in printed
    assert "without a limit on the rank it were 100.00 %" in printed
    card = (models / "out" / "README.md").read_text()
    assert "## What the adapter keeps" in card
    assert "| q | 80.00 % |" in card


def test_a_rerun_has_the_same_bytes_and_writes_nothing(models: Path) -> None:
    first = merge("--as-lora", 2, "--out", "out")
    written = (models / "out" / "adapter_model.safetensors").stat().st_mtime_ns
    again = merge("--as-lora", 2, "--out", "out")
    assert again == first
    assert (models / "out" / "adapter_model.safetensors").stat().st_mtime_ns == written
    merge("--as-lora", 2, "--out", "other")
    assert read_files(models / "other") == read_files(models / "out")
    assert "not empty" in merge("--as-lora", 1, "--out", "out", code=1)
    assert "not empty" in merge("--out", "out", code=1)
    merge("--as-lora", 1, "--out", "out", "--replace")


def test_a_dry_run_names_the_rank_and_writes_nothing(models: Path) -> None:
    result = run_command("merge", "./one", "./two", "--method", "average", "--as-lora", 9,
                         "--out", "out", "--dry-run")  # fmt: skip
    assert result.exit_code == 0, result.stderr
    assert "as a LoRA of rank 2 of at most 1 modules" in " ".join(result.stdout.split())
    assert "No module of the result needs more than rank 2" in result.stderr
    assert not (models / "out").exists()


def test_a_rank_beyond_need_is_lowered_with_a_note(models: Path) -> None:
    data = merge("--as-lora", 400, "--out", "out")
    assert data["lora"]["rank"] == 2
    assert data["params"]["as_lora"] == 400
    assert "needs more than rank 2" in " ".join(data["notes"])
    assert "needs more than rank 2" in (models / "out" / "README.md").read_text()


def test_everything_that_an_adapter_cannot_be_is_reported_at_once(models: Path) -> None:
    message = merge("--as-lora", 0, "--dtype", "F8_E4M3", "--tied", "untie", "--vocabulary",
                    "union", "--out", "out", code=2)  # fmt: skip
    for part in ("4 problems", "at least 1", "--dtype F8_E4M3", "--tied untie", "add tokens",
                 "Write --as-lora 16", "Give --tied base"):  # fmt: skip
        assert part in message
    refused = merge("--as-lora", 2, "--allow-nonfinite", code=2)
    assert "Leave one of the two out" in refused
    assert "is to be merged" in merge("--as-lora", 2, "--out", "one", "--replace", code=2)
    assert not (models / "out").exists()


def test_factors_can_be_written_in_half_precision(models: Path) -> None:
    merge("--as-lora", 2, "--dtype", "bfloat16", "--out", "out")
    adapter = open_checkpoint(models / "out")
    assert {tensor.dtype for tensor in adapter.index.values()} == {"BF16"}
    vector = TaskVector(open_checkpoint(models / "base"), adapter)
    np.testing.assert_allclose(vector.delta("q.weight"), [[2, 0, 0], [0, 1, 0]], atol=0.01)


def test_the_result_can_be_merged_and_verified(models: Path) -> None:
    merge("--as-lora", 2, "--out", "out")
    merge("./out", "./one", "--as-lora", 2, "--out", "twice")
    vector = TaskVector(open_checkpoint(models / "base"), open_checkpoint(models / "twice"))
    np.testing.assert_allclose(vector.delta("q.weight"), [[4, 0, 0], [0, 1, 0]], atol=1e-5)
    whole = merge("./out", "./one", "--out", "whole")
    assert "lora" not in whole
    values = open_checkpoint(models / "whole").read("q.weight")
    np.testing.assert_allclose(values, [[4, 1, 2], [3, 5, 5]], atol=1e-5)
    assert run_command("verify", "./twice").exit_code == 0


def test_bases_without_a_configuration_have_no_known_layers(models: Path) -> None:
    write_base(models / "full", {"q.weight": np.ones((2, 3), f32)})
    message = merge("./full", "./one", "--base", models / "base", "--as-lora", 2, code=1)
    assert "has no config.json, which says which of its matrices are layers" in message
