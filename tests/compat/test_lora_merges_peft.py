"""Merges as adapters, in peft: its own weighted adapters, and base plus change of whole experts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hubmerge.merging.engine import merge
from hubmerge.merging.lora_writer import LoraOutput, merge_to_lora
from hubmerge.models.structure import read_structure
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.lora_file import AdapterFields
from hubmerge.weights.lora_modules import LoraModule, common_modules
from hubmerge.weights.task_vector import TaskVector
from tests.compat.test_lora_peft import (
    MINI,
    TOWER,
    bert,
    clip,
    gpt2,
    llama,
    make_random,
    open_clip,
    save_random_base,
    train_adapter,
)
from tests.merging.test_merged_factors import make_plan

WEIGHTS = [1.5, -0.25, 1.0]
# The models, and the layers that each of three adapters changes.
ADAPTED: dict[Callable[[], Any], tuple[list[str], ...]] = {
    bert: (["query", "dense"], ["query", "value"], ["query", "word_embeddings"]),
    gpt2: (["c_attn", "c_proj"], ["c_attn", "c_fc"], ["c_proj", "wte"]),
    clip: (["q_proj", "fc1"], ["q_proj", "fc2"], ["q_proj", "patch_embedding"]),
    llama: (["q_proj", "lm_head"], ["q_proj", "up_proj"], ["down_proj", "embed_tokens"]),
}

NOT_LINEAR = ("word_embeddings", "wte", "embed_tokens", "patch_embedding")


def load(folder: Path, model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.PeftModel.from_pretrained(model, str(folder))


def merged_state(model: Any) -> dict[str, Any]:
    return {name: values.clone() for name, values in model.merge_and_unload().state_dict().items()}


def write_sum(
    base: Checkpoint,
    adapters: Sequence[Checkpoint],
    weights: Sequence[float],
    out: Path,
    rank: int,
) -> None:
    plan = make_plan(base, adapters, "task_arithmetic", weights)
    modules = common_modules([v.adapter for v in plan.vectors if v.adapter])
    assert modules is not None
    output = LoraOutput(rank, modules, AdapterFields("o/base"))
    merge_to_lora(plan, output, out, lambda *_: None)


@pytest.mark.parametrize(("make", "kind", "rank"), [
    pytest.param(make, kind, rank, id=f"{kind}-{make.__name__}",
                 marks=() if (kind == "svd") == (make in (gpt2, clip)) else pytest.mark.slow)
    for make in ADAPTED
    for kind, rank in (("cat", 5), ("svd", 2))
])  # fmt: skip
def test_a_sum_of_adapters_is_what_peft_combines(
    make: Callable[[], Any], kind: str, rank: int, tmp_path: Path
) -> None:
    """By peft's exact combinations, of which `svd` forms and factors the dense change.

    Weights are positive, and embeddings left out: there peft's combinations have another meaning.
    """
    weights = {"one": 1.5, "two": 0.25, "three": 1.0}
    base, adapters = save_random_base(tmp_path / "base", make), []
    for seed, name in enumerate(weights):
        targets = [target for target in ADAPTED[make][seed] if target not in NOT_LINEAR]
        config = peft.LoraConfig(r=(2, 1, 2)[seed], lora_alpha=3, target_modules=targets)
        adapters.append(train_adapter(tmp_path / name, make, config, seed=seed)[0])
    write_sum(base, adapters, list(weights.values()), tmp_path / "out", rank)
    ours = merged_state(load(tmp_path / "out", make_random(make)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.PeftModel.from_pretrained(make_random(make), tmp_path / "one", "one")
        for name in ("two", "three"):
            model.load_adapter(tmp_path / name, name)
        options = {"svd_rank": rank} if kind == "svd" else {}
        model.add_weighted_adapter(
            list(weights), list(weights.values()), "sum", combination_type=kind, **options
        )
        model.set_adapter("sum")
        theirs = merged_state(model)
    original = make_random(make).state_dict()
    for name, values in theirs.items():
        change = float((values - original[name]).norm())
        assert float((ours[name] - values).norm()) <= 1e-5 * max(change, 0.01), name


@pytest.mark.parametrize("make", list(ADAPTED), ids=lambda make: make.__name__)
def test_a_sum_of_adapters_is_their_dense_sum(make: Callable[[], Any], tmp_path: Path) -> None:
    base = save_random_base(tmp_path / "base", make)
    adapters = [
        train_adapter(
            tmp_path / f"e{number}",
            make,
            peft.LoraConfig(r=rank, lora_alpha=3, target_modules=targets),
            seed=number,
        )[0]
        for number, (targets, rank) in enumerate(zip(ADAPTED[make], (2, 1, 2), strict=True))
    ]
    write_sum(base, adapters, WEIGHTS, tmp_path / "out", 8)
    vectors = [TaskVector(base, adapter) for adapter in adapters]
    ours = merged_state(load(tmp_path / "out", make_random(make)))
    again = TaskVector(base, open_checkpoint(tmp_path / "out"))
    for name in base.index:
        change = sum(w * v.delta(name) for w, v in zip(WEIGHTS, vectors, strict=True))
        scale = max(float(np.linalg.norm(change)), 1e-2)
        assert np.linalg.norm(again.delta(name) - change) <= 1e-5 * scale, name
        error = np.linalg.norm(ours[name].numpy() - base.read(name) - change)
        assert error <= 1e-5 * max(scale, float(np.linalg.norm(base.read(name)))), name


def vit() -> Any:
    return transformers.ViTModel(transformers.ViTConfig(image_size=8, patch_size=4, **TOWER))


def untied_gpt2() -> Any:
    return gpt2(tie_word_embeddings=False)


def save_model(model: Any, folder: Path) -> Checkpoint:
    """Save a model as its library does."""
    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
    else:
        folder.mkdir()
        save_file(model.state_dict(), folder / "open_clip_model.safetensors")
        config = (MINI / "open_clip_config.json").read_bytes()
        (folder / "open_clip_config.json").write_bytes(config)
    return open_checkpoint(folder)


@pytest.mark.parametrize(("make", "name"), [
    pytest.param(make, name, id=f"{name}-{make.__name__}",
                 marks=() if (name == "ties") == (make in (gpt2, vit, clip)) else pytest.mark.slow)
    for make in (bert, gpt2, untied_gpt2, vit, clip, llama, open_clip)
    for name in ("average", "ties")
])  # fmt: skip
def test_a_merge_of_whole_experts_is_base_plus_change(
    make: Callable[[], Any], name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    base = save_model(make_random(make), tmp_path / "base")
    experts = []
    for seed in (1, 2):
        model = make_random(make)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for values in model.parameters():
                values += 0.1 * torch.randn(values.shape, generator=generator)
        experts.append(save_model(model, tmp_path / f"e{seed}"))
    structure = read_structure(tmp_path / "base", base.index)
    plan = make_plan(base, experts, name)
    rank = max(min(module.size) for module in structure.modules)
    output = LoraOutput(rank, structure.modules, AdapterFields("o/base", None, structure.task_type))
    shares = []
    merge_to_lora(plan, output, tmp_path / "out", lambda _, kept: shares.append(kept))
    whole = merge(plan, tmp_path / "whole")
    again = TaskVector(base, open_checkpoint(tmp_path / "out"))
    adapted = {module.tensor for module in structure.modules}
    for tensor in base.index:
        expected = whole.read(tensor) - base.read(tensor) if tensor in adapted else 0
        np.testing.assert_allclose(again.delta(tensor), expected, atol=1e-5, err_msg=tensor)
    assert shares[0].kept == pytest.approx(shares[0].attainable)
    assert set(shares[0].left_out) == {
        n for n in base.index if n not in adapted and (whole.read(n) != base.read(n)).any()
    }
    loaded, plain = load(tmp_path / "out", make_random(make)), make_random(make).state_dict()
    state = merged_state(loaded)
    by_path = {module.path: module for module in structure.modules}
    changed = {
        path_name for path_name in state if not torch.equal(state[path_name], plain[path_name])
    }
    assert changed == {_state_name(path, module) for path, module in by_path.items()}
    for path, module in by_path.items():
        key = _state_name(path, module)
        ours = torch.from_numpy(again.delta(module.tensor))
        torch.testing.assert_close(state[key], plain[key] + ours, atol=1e-5, rtol=1e-5)


def _state_name(path: str, module: LoraModule) -> str:
    end = "in_proj_weight" if module.tensor.endswith("in_proj_weight") else "weight"
    return f"{path}.{end}"


def test_the_adapter_gives_the_outputs_of_the_merge(tmp_path: Path) -> None:
    """The forward pass of peft, and not only its merge, for experts that only changed matrices."""
    base = save_model(make_random(llama), tmp_path / "base")
    structure = read_structure(tmp_path / "base", base.index)
    state = load_file(tmp_path / "base" / "model.safetensors")
    for module in structure.modules:
        state[module.tensor] += 0.1 * torch.randn(module.shape)
    make_random(llama).save_pretrained(tmp_path / "e")
    save_file(state, tmp_path / "e" / "model.safetensors", {"format": "pt"})
    plan = make_plan(base, [open_checkpoint(tmp_path / "e")], "average")
    output = LoraOutput(8, structure.modules, AdapterFields("o/base", None, structure.task_type))
    merge_to_lora(plan, output, tmp_path / "out", lambda *_: None)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "e")
    adapted = load(
        tmp_path / "out", transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    )
    tokens = torch.tensor([[1, 5, 7, 2]])
    with torch.no_grad():
        torch.testing.assert_close(
            adapted(tokens).logits, whole(tokens).logits, atol=1e-4, rtol=1e-4
        )
