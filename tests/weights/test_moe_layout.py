"""The weights of a mixture of experts: a router, and an adapter per expert."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.moe_config import ROUTER_WEIGHTS
from hubmerge.weights.moe_layout import config_file_names
from hubmerge.weights.task_vector import TaskVector
from tests.weights.adapters import write_base
from tests.weights.moes import write_moe

NAMES = ("experts/hebrew/adapter_model.safetensors", "experts/mnist/adapter_model.safetensors",
         "router.safetensors")  # fmt: skip


@pytest.fixture
def moe(tmp_path: Path) -> Path:
    return write_moe(tmp_path / "moe")


def test_tensors_of_router_and_experts(moe: Path) -> None:
    checkpoint = open_checkpoint(moe)
    assert checkpoint.kind == "moe"
    assert checkpoint.names() == (
        "fc.router.weight",
        "experts/mnist/base_model.model.fc.lora_A.weight",
        "experts/mnist/base_model.model.fc.lora_B.weight",
        "experts/hebrew/base_model.model.fc.lora_A.weight",
        "experts/hebrew/base_model.model.fc.lora_B.weight",
    )
    assert checkpoint.weight_file_names() == NAMES
    alone = load_file(moe / "experts/hebrew" / ADAPTER_WEIGHTS)["base_model.model.fc.lora_B.weight"]
    read = checkpoint.read("experts/hebrew/base_model.model.fc.lora_B.weight")
    np.testing.assert_array_equal(read, alone)


def test_digest_is_over_paths(moe: Path, tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256((moe / n).read_bytes()).hexdigest()}  {n}\n" for n in NAMES]
    expected = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert open_checkpoint(moe).digest() == expected
    swapped = write_moe(tmp_path / "swapped")
    first, second = swapped / NAMES[0], swapped / NAMES[1]
    first_bytes, second_bytes = first.read_bytes(), second.read_bytes()
    first.write_bytes(second_bytes)
    second.write_bytes(first_bytes)
    assert open_checkpoint(swapped).digest() != expected


def test_configuration_files_of_moe_and_experts(moe: Path) -> None:
    assert config_file_names(moe) == (
        "moe_config.json",
        "experts/mnist/adapter_config.json",
        "experts/hebrew/adapter_config.json",
    )


def test_expert_alone_is_an_adapter(moe: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", {"fc.weight": np.zeros((3, 2), np.float32)})
    expert = open_checkpoint(moe / "experts/mnist")
    tensors = load_file(moe / "experts/mnist" / ADAPTER_WEIGHTS)
    a, b = (tensors[f"base_model.model.fc.lora_{part}.weight"] for part in "AB")
    assert expert.kind == "lora"
    np.testing.assert_array_equal(TaskVector(base, expert).delta("fc.weight"), b @ a)


def test_all_missing_files_are_reported_at_once(moe: Path) -> None:
    (moe / ROUTER_WEIGHTS).unlink()
    (moe / "experts/mnist/adapter_config.json").unlink()
    (moe / "experts/hebrew" / ADAPTER_WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match="3 problems") as caught:
        open_checkpoint(moe)
    for name in (ROUTER_WEIGHTS, "mnist/adapter_config.json", f"hebrew/{ADAPTER_WEIGHTS}"):
        assert f"{name} cannot be read: No such file" in caught.value.message


def test_expert_folders_must_match_the_configuration(moe: Path) -> None:
    (moe / "experts/mnist").rename(moe / "experts/other")
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        open_checkpoint(moe)
    assert "experts/mnist is not a folder of an expert" in caught.value.message
    assert "holds 'other', which is not in its configuration" in caught.value.message


def test_experts_folder_is_missing(moe: Path) -> None:
    (moe / "experts").rename(moe / "elsewhere")
    with pytest.raises(CheckpointError, match="experts is not a folder of experts"):
        open_checkpoint(moe)


def test_text_files_among_experts_are_ignored(moe: Path) -> None:
    (moe / "experts/README.md").write_text("Two experts.")
    (moe / "experts/mnist/README.md").write_text("One of them.")
    assert len(open_checkpoint(moe).index) == 5


@pytest.mark.parametrize(
    "path", ["experts", "experts/mnist", f"experts/mnist/{ADAPTER_WEIGHTS}", ROUTER_WEIGHTS]
)
def test_links_out_of_the_folder_are_not_followed(path: str, moe: Path) -> None:
    target = moe.parent / "kept"
    (moe / path).rename(target)
    (moe / path).symlink_to(target)
    with pytest.raises(CheckpointError, match=r"link|not a folder of"):
        open_checkpoint(moe)


def test_links_of_the_hugging_face_cache_are_followed(moe: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = blobs.parent / "snapshots" / ("a" * 40)
    before = open_checkpoint(moe)
    for file in [path for path in moe.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(moe)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    checkpoint = open_checkpoint(snapshot)
    assert (checkpoint.names(), checkpoint.weight_file_names()) == (before.names(), NAMES)
    assert checkpoint.read("fc.router.weight").shape == (2, 2)


def test_router_must_not_have_a_tensor_of_an_expert(moe: Path) -> None:
    name = "experts/mnist/base_model.model.fc.lora_A.weight"
    save_file({name: np.zeros((1, 2), np.float32)}, moe / ROUTER_WEIGHTS)
    with pytest.raises(CheckpointError, match=r"1 tensor .*which another file has as well"):
        open_checkpoint(moe)


def test_moe_is_neither_base_nor_expert(moe: Path, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", {"fc.weight": np.zeros((3, 2), np.float32)})
    checkpoint = open_checkpoint(moe)
    with pytest.raises(
        CheckpointError, match="is a mixture of experts, which is not one change"
    ) as caught:
        TaskVector(base, checkpoint)
    assert "plain adapter" in caught.value.hint
    with pytest.raises(
        CheckpointError, match="is a mixture of experts, and a base must be a full model"
    ):
        TaskVector(checkpoint, base)
