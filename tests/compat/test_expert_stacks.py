"""LoRA of stacked experts (target_parameters), over files that have them whole or in pieces."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel

from tests.command_line import run_command

pytestmark = pytest.mark.usefixtures("running_hub")

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "num_experts_per_tok": 2,
}  # fmt: skip
IDS = torch.arange(10)[None]
BOTH = ["experts.gate_up_proj", "experts.down_proj"]


def mixtral() -> PreTrainedModel:
    config = transformers.MixtralConfig(**TEXT, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def qwen3_moe(inner: int = 24) -> PreTrainedModel:
    config = transformers.Qwen3MoeConfig(
        **TEXT, num_experts=4, moe_intermediate_size=inner, head_dim=16
    )
    return transformers.Qwen3MoeForCausalLM(config)


def olmoe() -> PreTrainedModel:
    return transformers.OlmoeForCausalLM(transformers.OlmoeConfig(**TEXT, num_experts=4))


def gpt_oss(inner: int = 48) -> PreTrainedModel:
    fields = {**TEXT, "intermediate_size": inner}
    config = transformers.GptOssConfig(
        **fields, num_local_experts=4, head_dim=16, eos_token_id=1,
    )  # fmt: skip
    return transformers.GptOssForCausalLM(config)


CASES: dict[str, tuple[Callable[[], PreTrainedModel], list[str]]] = {
    "mixtral": (mixtral, BOTH),
    "mixtral, one": (mixtral, ["experts.down_proj"]),
    "qwen3": (qwen3_moe, BOTH),
    "qwen3, square": (lambda: qwen3_moe(16), BOTH),
    "olmoe": (olmoe, BOTH),
    "gpt-oss, inputs first": (gpt_oss, BOTH),
    "a matrix": (olmoe, ["self_attn.o_proj.weight"]),
}


def save_pair(folder: Path, make: Callable[[], PreTrainedModel], parameters: list[str]) -> Any:
    torch.manual_seed(0)
    model = make()
    model.save_pretrained(folder / "base")
    config = peft.LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"],
                             target_parameters=parameters, init_lora_weights=False)  # fmt: skip
    adapted = peft.get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    adapted.save_pretrained(folder / "expert")
    return adapted


def merge(folder: Path) -> Any:
    words = ["merge", folder / "expert", "--base", folder / "base", "--method", "average",
             "--out", folder / "out"]  # fmt: skip
    return run_command(*words)


@pytest.mark.parametrize("name", CASES)
def test_the_merge_has_the_adapters_own_outputs(tmp_path: Path, name: str) -> None:
    adapted = save_pair(tmp_path, *CASES[name])
    with torch.no_grad():
        expected = adapted(IDS).logits
    done = merge(tmp_path)
    assert done.exit_code == 0, done.stderr
    model = type(adapted.base_model.model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [mixtral, qwen3_moe], ids=["mixtral", "qwen3"])
@pytest.mark.parametrize("whole", ["base", "expert"])
def test_one_file_has_stacks_and_the_other_pieces(
    tmp_path: Path, make: Callable[[], PreTrainedModel], whole: str
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    for name in ("base", "expert"):
        model.save_pretrained(tmp_path / name)
        if name == whole:
            state = {n: tensor.clone() for n, tensor in model.state_dict().items()}
            save_file(state, tmp_path / name / "model.safetensors", {"format": "pt"})
        if name == "base":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter += 0.05 * torch.randn_like(parameter)
    done = merge(tmp_path)
    assert done.exit_code == 0, done.stderr
    merged = type(model).from_pretrained(tmp_path / "out").eval()
    with torch.no_grad():
        torch.testing.assert_close(merged(IDS).logits, model(IDS).logits, atol=1e-5, rtol=1e-4)


def test_a_stack_of_another_shape_is_refused_and_not_dropped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mixtral()
    for name in ("base", "expert"):
        model.save_pretrained(tmp_path / name)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    last = "model.layers.1.mlp.experts.down_proj"
    save_file({**state, last: state[last][:3].clone()}, tmp_path / "expert" / "model.safetensors",
              {"format": "pt"})  # fmt: skip
    refused = merge(tmp_path)
    assert refused.exit_code == 1
    assert last in refused.stderr


def test_a_square_stack_does_not_show_its_order(tmp_path: Path) -> None:
    """[E, 32, 32], whose inputs may come first or last."""
    save_pair(tmp_path, lambda: gpt_oss(16), ["experts.gate_up_proj"])
    refused = merge(tmp_path)
    assert refused.exit_code == 1
    assert "their shapes do not show which is which" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_a_parameter_that_the_base_lacks(tmp_path: Path) -> None:
    save_pair(tmp_path, mixtral, BOTH)
    torch.manual_seed(0)
    fields = {key: value for key, value in TEXT.items() if key != "num_experts_per_tok"}
    transformers.MistralForCausalLM(transformers.MistralConfig(**fields)).save_pretrained(
        tmp_path / "base"
    )
    for stale in (tmp_path / "base").glob("*.index.json"):
        stale.unlink()
    assert merge(tmp_path).exit_code == 1
