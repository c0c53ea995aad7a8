"""Adapters that do not fit, and folders of adapters that are not what they should be."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.models.adapter import adapt, apply_adapter
from hubmerge.models.loading import open_model
from hubmerge.specs import Kind, TrainSpec
from tests.models.worlds import (
    change_json,
    tiny_bert,
    tiny_t5,
    tiny_vit,
    write_open_clip,
    write_transformers,
)


def spec(**said: Any) -> TrainSpec:
    size = {} if said.get("tune") == "ia3" else {"rank": 2}  # which has none
    return TrainSpec(**{"base": "a/b", "task": "t", "to": "me/t", **size, **said})


def open_clip_folder(folder: Path) -> None:
    write_open_clip(folder / "open", write_transformers(folder / "other"))
    for file in (folder / "open").iterdir():
        file.rename(folder / file.name)


@pytest.mark.parametrize(
    ("make", "kind", "said", "sentence"),
    [
        (open_clip_folder, "image", {"tune": "dora"}, "no dora for open_clip's attention"),
        (open_clip_folder, "image", {"tune": "ia3"}, "no ia3 for open_clip's attention"),
        (open_clip_folder, "image", {"tune": "lora", "dropout": 0.1}, "leaves out the dropout"),
        (open_clip_folder, "image", {"tune": "prefix"}, "for language models, and this is a CLIP"),
        (tiny_vit, "image", {"tune": "prefix"}, "this is a ViTModel"),
        (tiny_bert, "text", {"tune": "prefix"}, "this is a BertModel"),
        (tiny_t5, "rank", {"tune": "prefix", "recompute": True}, "cannot recompute"),
    ],
)
def test_what_does_not_fit_is_refused(
    tmp_path: Path, make: Callable[[Path], object], kind: Kind, said: dict[str, Any], sentence: str
) -> None:
    make(tmp_path)
    with pytest.raises(UsageError, match=sentence) as refused:
        adapt(open_model(tmp_path, kind), spec(**said), "a/b", "0" * 40)
    assert refused.value.hint


def test_drawing_an_adapter_draws_nothing_else(tmp_path: Path) -> None:
    tiny_vit(tmp_path)
    torch.manual_seed(5)
    adapt(open_model(tmp_path), spec(tune="lora"), "a/b", "0" * 40)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    open_model(tmp_path)
    assert torch.equal(drawn, torch.rand(3))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A LoRA of a ViT that lies beside it."""
    tiny_vit(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    adapt(open_model(tmp_path / "base"), spec(tune="lora"), "a/b", "0" * 40).save(folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)


def first(folder: Path) -> str:
    return min(load_file(folder / "adapter_model.safetensors"))


def lose(folder: Path) -> None:
    name = first(folder)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != name})


def add(folder: Path) -> None:
    rewrite(folder, lambda state: {**state, "base_model.model.more.lora_A.weight": torch.ones(2)})


def reshape(folder: Path) -> None:
    name = first(folder)
    rewrite(folder, lambda state: {**state, name: torch.ones(2, 2)})


def pickle_it(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()


def says(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "adapter_config.json", key, value=value)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lose, "lacks 'base_model.model.layers.0.attention.k_proj.lora_A.weight' of its own"),
        (add, "has 'base_model.model.more.lora_A.weight', and this ViTModel has not"),
        (reshape, "does not fit this ViTModel: .*size mismatch"),
        (pickle_it, "has its weights only as pickles"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "holds no adapter"),
        (says("target_modules", ["query"]), "does not fit this ViTModel: .*not found"),
        (says("peft_type", "XLORA"), "an adapter of kind 'XLORA'"),
        (says("peft_type", None), "an adapter of kind None"),
        (says("auto_map", {"a": "own.A"}), "asks for code to be run"),
        (says("megatron_config", {"a": 1}), "sets 'megatron_config'"),
        (says("corda_config", {"cache_file": "a.pt"}), "sets 'corda_config'"),
        (says("init_lora_weights", "pissa"), "sets 'init_lora_weights'"),
    ],
)
def test_spoiled_adapters_are_refused(
    adapter: Path, tmp_path: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    break_it(adapter)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        apply_adapter(open_model(tmp_path / "base"), adapter)
    assert "\n" not in refused.value.message


def test_an_applied_adapter_is_for_evaluation(adapter: Path, tmp_path: Path) -> None:
    applied = apply_adapter(open_model(tmp_path / "base"), adapter)
    assert not any(part.training for part in applied.peft.modules())
    assert not any(weight.requires_grad for weight in applied.peft.parameters())


def test_what_is_applied_is_saved_again_alike(adapter: Path, tmp_path: Path) -> None:
    applied = apply_adapter(open_model(tmp_path / "base"), adapter)
    (tmp_path / "again").mkdir()
    applied.save(tmp_path / "again")
    for file in adapter.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "ViTModel"
