"""Adapters out, on a Hub: merges of whole experts and of locks as LoRA, and extracted experts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.hub.client import Hub
from hubmerge.lock import LOCK_FILE as LOCK
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.task_vector import TaskVector
from tests import locks
from tests.end_to_end.conftest import REPOS, Command

EXPERTS = ("demo/mnist@step8", "demo/hebrew@step8")
ADAPTER = "adapter_model.safetensors"


def changes(base: Path, folder: Path) -> dict[str, np.ndarray]:
    vector = TaskVector(open_checkpoint(base), open_checkpoint(folder))
    return {name: vector.delta(name) for name in vector.names()}


@pytest.fixture
def base(api: HfApi, tmp_path: Path) -> Path:
    return Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))


def test_a_merge_of_whole_experts_as_an_adapter(
    hubmerge: Command, base: Path, api: HfApi, tmp_path: Path
) -> None:
    """At full rank its matrices are those of the merge; it is pushed, evaluated and rebuilt."""
    whole, lora = tmp_path / "whole", tmp_path / "lora"
    assert hubmerge("merge", *EXPERTS, "--method", "ties", "--out", whole).code == 0
    words = ("merge", *EXPERTS, "--method", "ties", "--as-lora", 64, "--push", "as-lora/ties@v1")
    result = hubmerge(*words, "--out", lora, "--json")
    assert result.code == 0, result.err
    assert "Changed, but not in the adapter" in result.err
    assert "visual.proj" in result.data["lora"]["left_out"]
    assert result.data["lora"]["kept"] == pytest.approx(result.data["lora"]["attainable"])
    ours, theirs = changes(base, lora), changes(base, whole)
    modules = {f"{path}.weight" for path in result.data["lora"]["modules"]}
    modules |= {f"{path}.in_proj_weight" for path in result.data["lora"]["modules"]}
    assert any(name.endswith("in_proj_weight") and ours[name].any() for name in ours)
    for name, change in theirs.items():
        expected = change if name in modules else 0
        np.testing.assert_allclose(ours[name], expected, atol=1e-6, err_msg=name)
    assert hubmerge(*words, "--out", lora, "--json").data["commit"] == result.data["commit"]
    assert api.model_info("as-lora/ties", revision="v1").card_data["library_name"] == "peft"
    scores = hubmerge("eval", "as-lora/ties@v1", "--split", "validation", "--json")
    assert {score["task"].split("@")[0] for score in scores.data} == {"mini-mnist", "mini-hebrew"}
    verified = hubmerge("verify", "as-lora/ties", "--rebuild")
    assert verified.code == 0, verified.out
    assert f"rebuilt {ADAPTER}" in verified.out


@pytest.mark.slow
def test_a_lock_as_an_adapter(hubmerge: Command, api: HfApi, hub: Hub, tmp_path: Path) -> None:
    lock = locks.write_lock(locks.make_lock(hub, REPOS), tmp_path / "in" / LOCK)
    out = tmp_path / "out"
    words = ("merge", "--lock", lock, "--locked", "--as-lora", 4, "--out", out)
    assert hubmerge(*words).code == 0
    assert (out / LOCK).read_bytes() == lock.read_bytes()
    written = (out / ADAPTER).stat().st_mtime_ns
    assert hubmerge(*words).code == 0
    assert (out / ADAPTER).stat().st_mtime_ns == written
    verified = hubmerge("verify", out, "--rebuild")
    assert verified.code == 0, verified.out
    assert "pick 'coordinate'" in verified.out
    card = (out / "README.md").read_text()
    assert "hubmerge merge --lock hubmerge.lock --as-lora 4 --locked" in card
    hubmerge("eval", out, "--split", "test")
    hubmerge("card", out)
    card = (out / "README.md").read_text()
    assert (
        "hubmerge merge --lock hubmerge.lock --policy last --as-lora 4 --out ./last-merge" in card
    )


def test_an_extracted_expert(hubmerge: Command, base: Path, tmp_path: Path) -> None:
    out, words = tmp_path / "out", ("extract", "demo/mnist@step8", "--rank", "4")
    plan = hubmerge(*words, "--out", out, "--dry-run")
    assert plan.code == 0, plan.err
    assert "as a LoRA of rank 4 of at most 24 modules" in plan.out
    assert not out.exists()
    result = hubmerge(*words, "--out", out, "--push", "as-lora/mnist", "--json")
    assert result.code == 0, result.err
    manifest = json.loads((out / "hubmerge.json").read_text())
    assert (manifest["kind"], manifest["layout"], manifest["step"]) == ("expert", "peft", 8)
    assert [expert["label"] for expert in manifest["experts"]] == ["demo/mnist@step8"]
    assert manifest["training"]["lora"] == result.data["lora"]
    assert 0 < result.data["lora"]["kept"] < result.data["lora"]["attainable"] < 1
    assert {min(t.shape) for t in load_file(out / ADAPTER).values()} == {4}
    card = (out / "README.md").read_text()
    assert "# LoRA of demo/mnist at step 8" in card
    assert "base_model_relation: adapter" in card
    written = (out / ADAPTER).stat().st_mtime_ns
    assert hubmerge(*words, "--out", out, "--push", "as-lora/mnist", "--json").data == result.data
    assert (out / ADAPTER).stat().st_mtime_ns == written
    assert hubmerge(*words, "--out", tmp_path / "again").code == 0
    assert (tmp_path / "again" / ADAPTER).read_bytes() == (out / ADAPTER).read_bytes()
    scores = hubmerge("eval", "as-lora/mnist", "--split", "validation", "--json")
    assert [score["task"].split("@")[0] for score in scores.data] == ["mini-mnist"]
    assert hubmerge("verify", "as-lora/mnist").code == 0
    assert "Extract it again with" in hubmerge("verify", out, "--rebuild").err
    merged = hubmerge("merge", "as-lora/mnist", EXPERTS[1], "--method", "average", "--as-lora", 2,
                      "--out", tmp_path / "merged")  # fmt: skip
    assert merged.code == 0, merged.err
    experts = ("as-lora/mnist", "demo/hebrew@step8")
    mixture = hubmerge("moerge", *experts, "--extract-rank", 4, "--train-steps", 0, "--dry-run")
    assert mixture.code == 0, mixture.err


def test_what_cannot_be_extracted_is_refused(hubmerge: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    both = hubmerge("extract", "demo/mnist@step8", "--rank", "0", "--tied", "untie", "--out", out)
    assert both.code == 2
    assert "2 problems" in both.err
    own = hubmerge("extract", "demo/mnist@step8", "--rank", "2", "--push", "demo/mnist")
    assert own.code == 3
    assert "holds a trained expert on main" in own.err
    hubmerge("extract", "demo/mnist@step8", "--rank", "2", "--out", out)
    twice = hubmerge("extract", out, "--rank", "1")
    assert twice.code == 2
    assert f"hubmerge merge {out} --method average --as-lora 1" in twice.err
    same = hubmerge("extract", "hubmerge/tiny-clip", "--rank", "2", "--base", "hubmerge/tiny-clip")
    assert same.code == 1
    assert "changes nothing" in same.err
