"""The weights of a mixture: a router, an adapter per expert, and nothing from anywhere else."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.layout import ADAPTER
from hubmerge.weights.moe_config import ROUTER
from hubmerge.weights.moe_layout import settings_in
from hubmerge.weights.task_vector import TaskVector
from tests.weights.adapters import put_base
from tests.weights.mixtures import put_mixture

NAMES = ("experts/hebrew/adapter_model.safetensors", "experts/mnist/adapter_model.safetensors",
         "router.safetensors")  # fmt: skip


@pytest.fixture
def mixture(tmp_path: Path) -> Path:
    return put_mixture(tmp_path / "mixture")


def test_the_router_and_each_experts_tensors_by_its_folder(mixture: Path) -> None:
    found = open_checkpoint(mixture)
    assert found.kind == "moe"
    assert found.names() == (
        "fc.router.weight",
        "experts/mnist/base_model.model.fc.lora_A.weight",
        "experts/mnist/base_model.model.fc.lora_B.weight",
        "experts/hebrew/base_model.model.fc.lora_A.weight",
        "experts/hebrew/base_model.model.fc.lora_B.weight",
    )
    assert (found.weight_names(), found.weight_files()) == (
        NAMES, tuple(mixture / name for name in NAMES),
    )  # fmt: skip
    alone = load_file(mixture / "experts/hebrew" / ADAPTER)["base_model.model.fc.lora_B.weight"]
    read = found.read("experts/hebrew/base_model.model.fc.lora_B.weight")
    np.testing.assert_array_equal(read, alone)


def test_the_digest_is_over_paths(mixture: Path, tmp_path: Path) -> None:
    lines = [f"{hashlib.sha256((mixture / n).read_bytes()).hexdigest()}  {n}\n" for n in NAMES]
    wanted = hashlib.sha256("".join(lines).encode()).hexdigest()
    assert open_checkpoint(mixture).digest() == wanted
    swapped = put_mixture(tmp_path / "swapped")
    first, second = swapped / NAMES[0], swapped / NAMES[1]
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)
    assert open_checkpoint(swapped).digest() != wanted


def test_the_settings_of_a_mixture_and_its_experts(mixture: Path) -> None:
    assert settings_in(mixture) == (
        "moe_config.json",
        "experts/mnist/adapter_config.json",
        "experts/hebrew/adapter_config.json",
    )


def test_an_expert_is_an_adapter_alone(mixture: Path, tmp_path: Path) -> None:
    base = put_base(tmp_path / "base", {"fc.weight": np.zeros((3, 2), np.float32)})
    expert = open_checkpoint(mixture / "experts/mnist")
    tensors = load_file(mixture / "experts/mnist" / ADAPTER)
    a, b = (tensors[f"base_model.model.fc.lora_{part}.weight"] for part in "AB")
    assert expert.kind == "lora"
    np.testing.assert_array_equal(TaskVector(base, expert).delta("fc.weight"), b @ a)


def test_all_that_is_missing_is_told_at_once(mixture: Path) -> None:
    (mixture / ROUTER).unlink()
    (mixture / "experts/mnist/adapter_config.json").unlink()
    (mixture / "experts/hebrew" / ADAPTER).unlink()
    with pytest.raises(CheckpointError, match="3 problems") as caught:
        open_checkpoint(mixture)
    for name in (ROUTER, "mnist/adapter_config.json", f"hebrew/{ADAPTER}"):
        assert f"{name} cannot be read: No such file" in caught.value.message


def test_experts_are_the_configurations(mixture: Path) -> None:
    (mixture / "experts/mnist").rename(mixture / "experts/other")
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        open_checkpoint(mixture)
    assert "experts/mnist is not the folder of an expert" in caught.value.message
    assert "holds 'other', which is no expert of the mixture" in caught.value.message


def test_without_a_folder_of_experts(mixture: Path) -> None:
    (mixture / "experts").rename(mixture / "elsewhere")
    with pytest.raises(CheckpointError, match="experts is not a folder of experts"):
        open_checkpoint(mixture)


def test_words_beside_experts_do_no_harm(mixture: Path) -> None:
    (mixture / "experts/README.md").write_text("Two experts.")
    (mixture / "experts/mnist/README.md").write_text("One of them.")
    assert len(open_checkpoint(mixture).index) == 5


@pytest.mark.parametrize("place", ["experts", "experts/mnist", f"experts/mnist/{ADAPTER}", ROUTER])
def test_links_out_of_the_folder_are_not_followed(place: str, mixture: Path) -> None:
    kept = mixture.parent / "kept"
    (mixture / place).rename(kept)
    (mixture / place).symlink_to(kept)
    with pytest.raises(CheckpointError, match=r"link|not a folder of|not the folder of"):
        open_checkpoint(mixture)


def test_links_of_the_hugging_face_cache_are_followed(mixture: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "models--o--n" / "blobs"
    blobs.mkdir(parents=True)
    snapshot = blobs.parent / "snapshots" / ("a" * 40)
    before = open_checkpoint(mixture)
    for file in [path for path in mixture.rglob("*") if path.is_file()]:
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        link = snapshot / file.relative_to(mixture)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(blob)
        link.symlink_to(os.path.relpath(blob, link.parent))
    found = open_checkpoint(snapshot)
    assert (found.names(), found.weight_names()) == (before.names(), NAMES)
    assert found.read("fc.router.weight").shape == (2, 2)


def test_a_router_cannot_stand_for_an_experts_tensor(mixture: Path) -> None:
    name = "experts/mnist/base_model.model.fc.lora_A.weight"
    save_file({name: np.zeros((1, 2), np.float32)}, mixture / ROUTER)
    with pytest.raises(CheckpointError, match=r"1 tensor .*which another file has as well"):
        open_checkpoint(mixture)


def test_a_mixture_is_neither_base_nor_expert(mixture: Path, tmp_path: Path) -> None:
    base = put_base(tmp_path / "base", {"fc.weight": np.zeros((3, 2), np.float32)})
    found = open_checkpoint(mixture)
    with pytest.raises(CheckpointError, match="is a mixture, which no change") as caught:
        TaskVector(base, found)
    assert "plain adapter" in caught.value.hint
    with pytest.raises(CheckpointError, match="is a mixture, and a base is a whole model"):
        TaskVector(found, base)
