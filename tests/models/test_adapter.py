"""Adapters that do not fit their model, and broken adapter folders."""

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
from hubmerge.models.adapter import add_adapter, apply_adapter
from hubmerge.models.loading import load_model
from hubmerge.specs import Kind, TrainSpec
from tests.models.builders import (
    change_json,
    tiny_bert,
    tiny_t5,
    tiny_vit,
    write_open_clip,
    write_transformers,
)


def spec(**fields: Any) -> TrainSpec:
    size = {} if fields.get("tune") == "ia3" else {"rank": 2}  # (IA)^3 has no rank
    return TrainSpec(**{"base": "a/b", "task": "t", "to": "me/t", **size, **fields})


def open_clip_folder(folder: Path) -> None:
    write_open_clip(folder / "open", write_transformers(folder / "other"))
    for file in (folder / "open").iterdir():
        file.rename(folder / file.name)


@pytest.mark.parametrize(
    ("write_model", "kind", "fields", "sentence"),
    [
        (
            open_clip_folder,
            "image",
            {"tune": "dora"},
            "does not support dora for open_clip's attention",
        ),
        (
            open_clip_folder,
            "image",
            {"tune": "ia3"},
            "does not support ia3 for open_clip's attention",
        ),
        (open_clip_folder, "image", {"tune": "lora", "dropout": 0.1}, "ignores the dropout"),
        (open_clip_folder, "image", {"tune": "prefix"}, "for language models only; this is a CLIP"),
        (tiny_vit, "image", {"tune": "prefix"}, "this is a ViTModel"),
        (tiny_bert, "text", {"tune": "prefix"}, "this is a BertModel"),
        (tiny_t5, "rank", {"tune": "prefix", "recompute": True}, "cannot recompute"),
    ],
)
def test_unsupported_methods_are_refused(
    tmp_path: Path,
    write_model: Callable[[Path], object],
    kind: Kind,
    fields: dict[str, Any],
    sentence: str,
) -> None:
    write_model(tmp_path)
    with pytest.raises(UsageError, match=sentence) as refused:
        add_adapter(load_model(tmp_path, kind), spec(**fields), "a/b", "0" * 40)
    assert refused.value.hint


def test_adding_an_adapter_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    tiny_vit(tmp_path)
    torch.manual_seed(5)
    add_adapter(load_model(tmp_path), spec(tune="lora"), "a/b", "0" * 40)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_model(tmp_path)
    assert torch.equal(expected, torch.rand(3))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """The folder of a LoRA for the ViT in `base`."""
    tiny_vit(tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    add_adapter(load_model(tmp_path / "base"), spec(tune="lora"), "a/b", "0" * 40).save(folder)
    return folder


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    weights = folder / "adapter_model.safetensors"
    save_file(change(load_file(weights)), weights)


def first_name(folder: Path) -> str:
    return min(load_file(folder / "adapter_model.safetensors"))


def remove_tensor(folder: Path) -> None:
    name = first_name(folder)
    rewrite(folder, lambda state: {n: t for n, t in state.items() if n != name})


def add_tensor(folder: Path) -> None:
    rewrite(folder, lambda state: {**state, "base_model.model.more.lora_A.weight": torch.ones(2)})


def reshape_tensor(folder: Path) -> None:
    name = first_name(folder)
    rewrite(folder, lambda state: {**state, name: torch.ones(2, 2)})


def pickle_weights(folder: Path) -> None:
    weights = folder / "adapter_model.safetensors"
    torch.save(load_file(weights), folder / "adapter_model.bin")
    weights.unlink()


def set_config(key: str, value: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / "adapter_config.json", key, value=value)


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (
            remove_tensor,
            "lacks 'base_model.model.layers.0.attention.k_proj.lora_A.weight' of the adapter",
        ),
        (
            add_tensor,
            "has 'base_model.model.more.lora_A.weight', which does not exist in this ViTModel",
        ),
        (reshape_tensor, "does not fit this ViTModel: .*size mismatch"),
        (pickle_weights, "has its weights only as pickles"),
        (lambda folder: (folder / "adapter_config.json").unlink(), "is not an adapter"),
        (set_config("target_modules", ["query"]), "does not fit this ViTModel: .*not found"),
        (set_config("peft_type", "XLORA"), "an adapter of type 'XLORA'"),
        (set_config("peft_type", None), "an adapter of type None"),
        (set_config("auto_map", {"a": "own.A"}), "would run code"),
        (set_config("megatron_config", {"a": 1}), "sets 'megatron_config'"),
        (set_config("corda_config", {"cache_file": "a.pt"}), "sets 'corda_config'"),
        (set_config("init_lora_weights", "pissa"), "sets 'init_lora_weights'"),
    ],
)
def test_broken_adapters_are_refused(
    adapter: Path, tmp_path: Path, break_it: Callable[[Path], object], sentence: str
) -> None:
    break_it(adapter)
    with pytest.raises(CheckpointError, match=sentence) as refused:
        apply_adapter(load_model(tmp_path / "base"), adapter)
    assert "\n" not in refused.value.message


def test_an_applied_adapter_is_in_evaluation_mode(adapter: Path, tmp_path: Path) -> None:
    applied = apply_adapter(load_model(tmp_path / "base"), adapter)
    assert not any(module.training for module in applied.peft_model.modules())
    assert not any(weight.requires_grad for weight in applied.peft_model.parameters())


def test_an_applied_adapter_is_saved_with_the_same_bytes(adapter: Path, tmp_path: Path) -> None:
    applied = apply_adapter(load_model(tmp_path / "base"), adapter)
    (tmp_path / "again").mkdir()
    applied.save(tmp_path / "again")
    for file in adapter.iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["auto_mapping"]["base_model_class"] == "ViTModel"
