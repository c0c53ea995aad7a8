"""Small mixtures of experts for one model of each family, and their outputs by equation 2.

Every expert has a different rank and scale, and the router is random, as if it were trained.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BertModel,
    CLIPModel,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5ForConditionalGeneration,
    ViTModel,
)

from hubmerge.models.adapter import add_adapter
from hubmerge.moerging.moe_model import MoeModel, build_moe
from hubmerge.specs import Kind, TrainSpec
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig
from tests.models.builders import (
    SIZE,
    load_copy,
    tiny_bert,
    tiny_gpt2,
    tiny_llama,
    tiny_t5,
    tiny_vit,
    write_transformers,
)

EXPERTS = {"mnist": (2, 4.0), "svhn": (3, 1.5), "eurosat": (2, 1.0)}  # rank, alpha / r
ROUTER = RouterConfig(temperature=0.5)
IMAGES = torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(5, 200, (2, 6), generator=torch.Generator().manual_seed(2))
TEXT = {"input_ids": IDS, "attention_mask": torch.tensor([[1] * 6, [1] * 4 + [0] * 2])}


@dataclass(frozen=True)
class Family:
    """A family of models: how to write its tiny model, its class, and how to run it."""

    write_base: Callable[[Path], object]
    kind: Kind
    model_class: type[PreTrainedModel]
    run: Callable[[Any], Tensor]


def run_image_encoder(model: Any) -> Tensor:
    return model(pixel_values=IMAGES).last_hidden_state


def run_vision_tower(model: Any) -> Tensor:
    return model.vision_model(pixel_values=IMAGES).last_hidden_state


def run_text_encoder(model: Any) -> Tensor:
    output = model(**TEXT)
    return torch.cat([output.last_hidden_state, output.pooler_output.unsqueeze(1)], dim=1)


def run_language_model(model: Any) -> Tensor:
    return model(**TEXT, labels=IDS).logits


FAMILIES = {
    "clip": Family(write_transformers, "image", CLIPModel, run_vision_tower),
    "vit": Family(tiny_vit, "image", ViTModel, run_image_encoder),
    "bert": Family(tiny_bert, "text", BertModel, run_text_encoder),
    "t5": Family(tiny_t5, "rank", T5ForConditionalGeneration, run_language_model),
    "gpt2": Family(tiny_gpt2, "target", GPT2LMHeadModel, run_language_model),
    "llama": Family(tiny_llama, "target", LlamaForCausalLM, run_language_model),
}


def load_with_transformers(name: str, base: Path) -> Any:
    """The base as opened by transformers."""
    return FAMILIES[name].model_class.from_pretrained(base, dtype="float32").eval()


def predict(name: str, model: Any) -> Tensor:
    with torch.no_grad():
        return FAMILIES[name].run(model)


def make_moe(
    name: str,
    base: Path,
    experts_folder: Path,
    router: RouterConfig = ROUTER,
    pinned: tuple[str, str | None] | None = None,
    top_k: int = 2,
) -> MoeModel:
    """A mixture for the base in a folder; `pinned` is the base's name and commit in its config."""
    family, checkpoint = FAMILIES[name], open_checkpoint(base)
    folders = [_write_expert(name, base, experts_folder / "trained", expert) for expert in EXPERTS]
    adapters = [open_adapter(checkpoint, open_checkpoint(folder)) for folder in folders]
    model_id, revision = pinned or (str(base), None)
    config = MoeConfig(
        base_model=model_id,
        base_revision=revision,
        base_digest=checkpoint.digest(),
        layout="transformers",
        experts=tuple(MoeExpert(expert) for expert in EXPERTS),
        top_k=top_k,
        modules=(),
        router=router,
    )
    generator = torch.Generator().manual_seed(7)

    def make_router(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return torch.randn(len(EXPERTS), lora_A.shape[2], generator=generator) / 4

    moe = build_moe(load_copy(base, family.kind), adapters, config, make_router)
    moe.model.module.eval()
    return moe


def _write_expert(name: str, base: Path, parent: Path, expert: str) -> Path:
    """Write a LoRA like a trained one, without zeros."""
    rank, scale = EXPERTS[expert]
    spec = TrainSpec(
        base="someone/base", task="t", to="me/t", tune="lora", rank=rank, alpha=scale * rank
    )
    adapted = add_adapter(load_copy(base, FAMILIES[name].kind), spec, "someone/base", "0" * 40)
    generator = torch.Generator().manual_seed(rank + len(expert))
    with torch.no_grad():
        for weight in adapted.peft_model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    folder = parent / expert
    folder.mkdir(parents=True)
    adapted.save(folder)
    return folder


def is_close(actual: Tensor, expected: Tensor) -> bool:
    """Whether no value is off by more than 1e-4 of the largest; rounding alone makes up to 2e-5."""
    return bool((actual - expected).abs().max() <= 1e-4 * expected.abs().max())


def predict_by_equation_2(name: str, base: Path, moe: MoeModel) -> Tensor:
    """The expected output: equation 2 of arXiv 2506.14126 as a loop over tokens.

    It is computed in hooks of the base as opened by transformers.
    """
    model = load_with_transformers(name, base)
    with ExitStack() as hooks:
        for path, layer in moe.layers.items():
            parts = (layer.lora_A.double(), layer.lora_B.double(), layer.router.double())
            hook = _equation_2_hook(*parts, layer.scale.double(), moe.config)
            hooks.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        return predict(name, model)


def _equation_2_hook(
    A: Tensor, B: Tensor, router: Tensor, scale: Tensor, config: MoeConfig
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def expert_sum(x: Tensor) -> Tensor:
        scores = router @ x if config.router.signed else (router @ x).abs()
        p = torch.softmax(scores / config.router.temperature, 0)
        total, total_share = torch.zeros(B.shape[1]).double(), 0.0
        for e in p.argsort(descending=True)[: config.top_k].tolist():
            total += p[e] * scale[e] * (B[e] @ (A[e] @ x))
            total_share += p[e].item()
        return total / total_share

    def add_experts(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = inputs[0].double().flatten(0, -2)
        return output + torch.stack([expert_sum(x) for x in tokens]).view(output.shape).float()

    return add_experts
