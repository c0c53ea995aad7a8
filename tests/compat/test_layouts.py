"""Pairs of base and expert as people have them; the merge gives what transformers and peft give."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("running_hub")

SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
IDS = torch.arange(10)[None]
State = dict[str, Tensor]


def merge(folder: Path, *options: str) -> State:
    """Merge the expert alone with weight 1; returns the tensors of the result."""
    words = ["merge", folder / "expert", "--base", folder / "base", "--method", "average",
             "--out", folder / "out", *options]  # fmt: skip
    done = run_command(*words)
    assert done.exit_code == 0, done.stderr
    return load_file(folder / "out" / "model.safetensors")


def noisy(state: State) -> State:
    generator = torch.Generator().manual_seed(1)
    return {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point() else tensor
        for name, tensor in state.items()
    }  # fmt: skip


def save(state: State, folder: Path, config: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(config / "config.json", folder)
    save_file({name: t.clone().contiguous() for name, t in state.items()},
              folder / "model.safetensors", {"format": "pt"})  # fmt: skip


def assert_equal(actual: State, expected: State) -> None:
    assert actual.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llama")
    config = transformers.LlamaConfig(
        **SMALL, num_key_value_heads=2, vocab_size=64, tie_word_embeddings=True
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


EXPERTS: dict[str, Callable[[State], State]] = {
    "head stored": lambda new: {**new, "lm_head.weight": new["model.embed_tokens.weight"]},
    "no prefix": lambda new: {name.removeprefix("model."): t for name, t in new.items()},
    "compiled": lambda new: {f"_orig_mod.{name}": t for name, t in new.items()},
}


@pytest.mark.parametrize("name", EXPERTS)
def test_full_experts_of_a_tied_llama(tied_llama: Path, tmp_path: Path, name: str) -> None:
    base = load_file(tied_llama / "model.safetensors")
    new = noisy(base)
    save(base, tmp_path / "base", tied_llama)
    save(EXPERTS[name](new), tmp_path / "expert", tied_llama)
    assert_equal(merge(tmp_path), new)


def test_a_buffer_that_only_the_base_stores(tied_llama: Path, tmp_path: Path) -> None:
    base = load_file(tied_llama / "model.safetensors")
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save({**base, **buffer}, tmp_path / "base", tied_llama)
    save(noisy(base), tmp_path / "expert", tied_llama)
    assert_equal(merge(tmp_path), {**noisy(base), **buffer})


def test_a_head_that_differs_from_its_tie_is_refused(tied_llama: Path, tmp_path: Path) -> None:
    base = load_file(tied_llama / "model.safetensors")
    save(base, tmp_path / "base", tied_llama)
    head = {"lm_head.weight": base["model.embed_tokens.weight"] + 1}
    save({**base, **head}, tmp_path / "expert", tied_llama)
    with pytest.raises(AssertionError, match="--tied untie"):
        merge(tmp_path)
    assert not (tmp_path / "out").exists()


def test_a_base_that_differs_from_its_own_tie(tied_llama: Path, tmp_path: Path) -> None:
    base = load_file(tied_llama / "model.safetensors")
    head = {"lm_head.weight": base["model.embed_tokens.weight"] + 1}
    save({**base, **head}, tmp_path / "base", tied_llama)
    save(noisy(base), tmp_path / "expert", tied_llama)
    with pytest.raises(AssertionError, match=r"in the config\.json of the base"):
        merge(tmp_path)


@pytest.mark.parametrize("tied", ["untie", "base"])
def test_a_head_that_differs_from_its_tie(tied_llama: Path, tmp_path: Path, tied: str) -> None:
    base = load_file(tied_llama / "model.safetensors")
    new = noisy(base)
    save(base, tmp_path / "base", tied_llama)
    head = {"lm_head.weight": new["model.embed_tokens.weight"] + 1}
    save({**new, **head}, tmp_path / "expert", tied_llama)
    assert_equal(merge(tmp_path, "--tied", tied), {**new, **head} if tied == "untie" else new)
    result = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert result.config.tie_word_embeddings is (tied == "base")
    weight = head["lm_head.weight"] if tied == "untie" else new["model.embed_tokens.weight"]
    torch.testing.assert_close(result.lm_head.weight, weight)


def test_a_vision_tower_over_a_whole_clip(tmp_path: Path) -> None:
    torch.manual_seed(0)
    half = {**SMALL, "projection_dim": 16}
    config = transformers.CLIPConfig(
        text_config={**half, "vocab_size": 64, "max_position_embeddings": 16},
        vision_config={**half, "image_size": 32, "patch_size": 16},
        projection_dim=16,
    )
    whole = transformers.CLIPModel(config)
    whole.save_pretrained(tmp_path / "base")
    tower = transformers.CLIPVisionModel(whole.config.vision_config)
    tower.load_state_dict(noisy(tower.state_dict()))
    tower.save_pretrained(tmp_path / "expert")
    merged = merge(tmp_path)
    base = load_file(tmp_path / "base" / "model.safetensors")
    assert merged.keys() == base.keys()
    pixels = torch.rand(1, 3, 32, 32)
    result = transformers.CLIPModel.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        expected = tower.eval()(pixels).pooler_output
        actual = result.vision_model(pixels).pooler_output
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=0)
    for name in (name for name in base if not name.startswith("vision_model.")):
        assert torch.equal(merged[name], base[name])


def test_an_old_gpt2_without_prefix_and_with_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        n_embd=32, n_layer=2, n_head=2, vocab_size=64, n_positions=16, bos_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "made")
    state = load_file(tmp_path / "made" / "model.safetensors")
    masks = {f"h.{i}.attn.bias": torch.tril(torch.ones(1, 1, 16, 16)) for i in range(2)}
    old = {name.removeprefix("transformer."): tensor for name, tensor in state.items()}
    save({**old, **masks}, tmp_path / "base", tmp_path / "made")
    save(noisy(state), tmp_path / "expert", tmp_path / "made")
    new = {name.removeprefix("transformer."): t for name, t in noisy(state).items()}
    assert_equal(merge(tmp_path), {**new, **masks})


ADAPTERS: dict[str, dict[str, Any]] = {
    "saved embeddings": {"modules_to_save": ["embed_tokens"]},
    "saved head": {"modules_to_save": ["lm_head"]},
    "adapted embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "adapted head": {"target_modules": ["q_proj", "lm_head"]},
    "saved embeddings, tied": {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    "adapted embeddings, tied": {
        "target_modules": ["q_proj", "embed_tokens"],
        "ensure_weight_tying": True,
    },
    "rows of the embeddings": {"trainable_token_indices": [1, 2]},
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_merged_adapter_has_the_adapters_own_outputs(
    tied_llama: Path, tmp_path: Path, name: str
) -> None:
    """peft's merge_and_unload changes both sides of the tie; the adapter itself changes one."""
    shutil.copytree(tied_llama, tmp_path / "base")
    torch.manual_seed(2)
    model = transformers.AutoModelForCausalLM.from_pretrained(tied_llama)
    options = {"target_modules": ["q_proj", "v_proj"], **ADAPTERS[name]}
    config = peft.LoraConfig(r=4, lora_alpha=8, init_lora_weights=False, **options)
    adapted = peft.get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
        expected = adapted(IDS).logits
    adapted.save_pretrained(tmp_path / "expert")
    merge(tmp_path)
    result = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(result(IDS).logits, expected, atol=1e-5, rtol=1e-4)
    separated = name != "rows of the embeddings"
    assert result.config.tie_word_embeddings is not separated


def test_another_dtype_is_in_the_configuration(tied_llama: Path, tmp_path: Path) -> None:
    save(load_file(tied_llama / "model.safetensors"), tmp_path / "base", tied_llama)
    shutil.copytree(tmp_path / "base", tmp_path / "expert")
    words = ["merge", tmp_path / "expert", "--base", tmp_path / "base", "--method", "average",
             "--dtype", "bfloat16", "--out", tmp_path / "out"]  # fmt: skip
    done = run_command(*words)
    assert done.exit_code == 0, done.stderr
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.dtype == torch.bfloat16
