"""The folder of a mixture of experts: round trips, and files that do not fit are rejected."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from hubmerge.errors import CheckpointError
from hubmerge.models.adapter import apply_adapter
from hubmerge.moerging.moe_model import MoeModel, read_moe
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS, RouterConfig
from tests.models.builders import change_json
from tests.moerging.networks import (
    NETWORKS,
    NetworkFolders,
    make_moe,
    open_base,
    predict,
    read_files,
    train_steps,
)

FIRST = "layers.0.attention.k_proj"  # of a ViT, by name of its module


def save_moe(moe: MoeModel, folder: Path) -> Path:
    folder.mkdir()
    moe.save(folder)
    return folder


def read_again(name: str, base: Path, folder: Path) -> MoeModel:
    moe = read_moe(open_base(name, base), open_checkpoint(base), folder)
    moe.model.module.eval()
    return moe


EACH_NETWORK = [
    pytest.param(name, marks=() if name in ("open_clip", "t5", "llama") else pytest.mark.slow)
    for name in NETWORKS
]


@pytest.mark.parametrize("name", EACH_NETWORK)
def test_trained_moe_is_the_same_after_a_round_trip(
    networks: NetworkFolders, name: str, tmp_path: Path
) -> None:
    base = networks.base(name)
    experts = [
        networks.lora(name, "mnist", 1),
        networks.lora(name, "svhn", 2, r=3, use_rslora=True),
    ]
    moe = make_moe(name, base, experts, 2, RouterConfig(signed=True, temperature=2.0))
    train_steps(name, moe)
    folder = save_moe(moe, tmp_path / "moe")
    again = read_again(name, base, folder)
    assert torch.equal(predict(name, again.model), predict(name, moe.model))
    assert again.config == moe.config
    assert read_files(save_moe(again, tmp_path / "again")) == read_files(folder)
    check_expert_alone(name, base, folder / EXPERTS_FOLDER / "svhn")


def check_expert_alone(name: str, base: Path, expert: Path) -> None:
    """An expert of a mixture opens in peft and as a mixture of one, with the same output."""
    moe = make_moe(name, base, [expert])
    expected = predict(name, apply_adapter(open_base(name, base), expert).model)
    actual = predict(name, moe.model)
    assert (actual - expected).abs().max() <= 1e-5 * expected.abs().max()
    PeftModel.from_pretrained(open_base(name, base).module, str(expert))


@pytest.mark.parametrize("name", EACH_NETWORK)
@pytest.mark.parametrize("trained", [True, False])
def test_expert_that_was_not_trained_equals_the_source(
    networks: NetworkFolders, name: str, trained: bool, tmp_path: Path
) -> None:
    sources = [networks.lora(name, f"e{n}", n, trained=trained, r=n + 2) for n in range(3)]
    folder = save_moe(make_moe(name, networks.base(name), sources, 2), tmp_path / "moe")
    for source in sources:
        assert read_files(folder / EXPERTS_FOLDER / source.name) == read_files(source)


def test_files_and_names(networks: NetworkFolders, tmp_path: Path) -> None:
    moe = make_moe("vit", networks.base("vit"), [networks.lora("vit", "a")])
    folder = save_moe(moe, tmp_path / "moe")
    assert read_files(folder).keys() == {
        *(MOE_CONFIG, ROUTER_WEIGHTS),
        *(f"{EXPERTS_FOLDER}/a/{name}" for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS)),
    }  # fmt: skip
    router = load_file(folder / ROUTER_WEIGHTS)
    config = json.loads((folder / MOE_CONFIG).read_text())
    assert router.keys() == {f"{module}.router.weight" for module in config["modules"]}
    assert {rows.dtype for rows in router.values()} == {torch.float32}
    assert router[f"{FIRST}.router.weight"].shape == (1, 32)


def test_split_parameters_are_gathered(networks: NetworkFolders, tmp_path: Path) -> None:
    """`gather` is called for every parameter, as FSDP needs it."""
    moe = make_moe("vit", networks.base("vit"), [networks.lora("vit", "a")])
    values = {id(w): w.detach().clone() for w in moe.model.module.parameters()}
    plain = save_moe(moe, tmp_path / "plain")
    with torch.no_grad():
        for layer in moe.layers.values():
            for part in (layer.lora_A, layer.lora_B, layer.router):
                part.zero_()
    folder = tmp_path / "moe"
    folder.mkdir()
    moe.save(folder, lambda parameter: values[id(parameter)])
    assert read_files(folder) == read_files(plain)


@pytest.fixture(scope="module")
def saved(networks: NetworkFolders, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of two experts for a ViT."""
    experts = [networks.lora("vit", name, n) for n, name in enumerate(("one", "two"))]
    moe = make_moe("vit", networks.base("vit"), experts, 2)
    return save_moe(moe, tmp_path_factory.mktemp("saved") / "moe")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of that mixture."""
    return shutil.copytree(saved, tmp_path / "moe")


def change_tensors(file: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(file)
    change(tensors)
    save_file({name: tensor.clone().contiguous() for name, tensor in tensors.items()}, file)


ROWS = f"{FIRST}.router.weight"
A = f"base_model.model.{FIRST}.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(ROWS), f"no finite rows of shape .2, 32. for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS][:1]}), f"no finite rows of shape .2, 32. for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS].T}), f"no finite rows of shape .2, 32. for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS] * np.nan}), f"no finite rows .* for {FIRST}"),
        (lambda t: t.update({ROWS: t[ROWS] * np.inf}), f"no finite rows .* for {FIRST}"),
        (lambda t: t.update({"more.router.weight": t[ROWS]}), "do not name the same layers"),
        (lambda t: t.update({"more": t[ROWS]}), "do not name the same layers"),
    ],
    ids=["lacking", "rows", "turned", "nan", "infinite", "more", "strange"],
)
def test_routers_that_do_not_fit(
    networks: NetworkFolders,
    folder: Path,
    change: Callable[[dict[str, Any]], None],
    sentence: str,
) -> None:
    change_tensors(folder / ROUTER_WEIGHTS, change)
    with pytest.raises(CheckpointError, match=sentence):
        read_again("vit", networks.base("vit"), folder)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop(A), "two lacks a part of its change to 1 tensor .*key.weight"),
        (lambda t: t.update({A: t[A][:, :5]}), "two does not fit the base in 1 tensor .*key"),
        (
            lambda t: t.update({A: t[A] * np.nan}),
            "two: .*k_proj.lora_A.weight has values that are",
        ),
        (lambda t: t.update({"base_model.model.x.lora_A.weight": t[A]}), "two .*x"),
    ],
    ids=["lacking", "narrow", "nan", "more"],
)
def test_experts_that_do_not_fit(
    networks: NetworkFolders,
    folder: Path,
    change: Callable[[dict[str, Any]], None],
    sentence: str,
) -> None:
    change_tensors(folder / EXPERTS_FOLDER / "two" / ADAPTER_WEIGHTS, change)
    with pytest.raises(CheckpointError, match=sentence) as caught:
        read_again("vit", networks.base("vit"), folder)
    assert "two" in str(caught.value.message)


def test_expert_that_lacks_layers_of_another(networks: NetworkFolders, folder: Path) -> None:
    def lose(tensors: dict[str, Any]) -> None:
        for part in "AB":
            del tensors[f"base_model.model.{FIRST}.lora_{part}.weight"]

    change_tensors(folder / EXPERTS_FOLDER / "two" / ADAPTER_WEIGHTS, lose)
    with pytest.raises(CheckpointError, match="two does not change") as caught:
        read_again("vit", networks.base("vit"), folder)
    assert "another expert does" in caught.value.message


def test_configuration_with_other_layers(networks: NetworkFolders, folder: Path) -> None:
    change_json(folder / MOE_CONFIG, "modules", value=["layers.0.attention.k_proj"])
    with pytest.raises(CheckpointError, match="do not name the same layers"):
        read_again("vit", networks.base("vit"), folder)


def test_moe_with_another_base(networks: NetworkFolders, folder: Path) -> None:
    with pytest.raises(CheckpointError):
        read_again("bert", networks.base("bert"), folder)


@pytest.mark.parametrize(
    "path", [ROUTER_WEIGHTS, MOE_CONFIG, "experts/two", f"experts/two/{ADAPTER_WEIGHTS}"]
)
def test_links_are_not_followed(folder: Path, tmp_path: Path, path: str) -> None:
    target = tmp_path / "elsewhere"
    shutil.move(folder / path, target)
    (folder / path).symlink_to(target)
    with pytest.raises(CheckpointError):
        open_checkpoint(folder)
