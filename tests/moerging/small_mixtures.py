"""Small mixtures over one model of each family, and what they should say, worked out by a loop.

Every expert has a rank and a scale of its own, and the router is random, as if it were trained.
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

from hubmerge.models.adapter import adapt
from hubmerge.models.loading import open_model
from hubmerge.moerging.moe_model import Mixture, build
from hubmerge.specs import Kind, TrainSpec
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig
from tests.models.worlds import (
    SIZE,
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
    """A family of models: how its tiny one is written, by which class it opens, what it says."""

    make: Callable[[Path], object]
    kind: Kind
    natural: type[PreTrainedModel]
    run: Callable[[Any], Tensor]


def images(model: Any) -> Tensor:
    return model(pixel_values=IMAGES).last_hidden_state


def vision_tower(model: Any) -> Tensor:
    return model.vision_model(pixel_values=IMAGES).last_hidden_state


def hidden(model: Any) -> Tensor:
    seen = model(**TEXT)
    return torch.cat([seen.last_hidden_state, seen.pooler_output.unsqueeze(1)], dim=1)


def logits(model: Any) -> Tensor:
    return model(**TEXT, labels=IDS).logits


FAMILIES = {
    "clip": Family(write_transformers, "image", CLIPModel, vision_tower),
    "vit": Family(tiny_vit, "image", ViTModel, images),
    "bert": Family(tiny_bert, "text", BertModel, hidden),
    "t5": Family(tiny_t5, "rank", T5ForConditionalGeneration, logits),
    "gpt2": Family(tiny_gpt2, "target", GPT2LMHeadModel, logits),
    "llama": Family(tiny_llama, "target", LlamaForCausalLM, logits),
}


def natural(name: str, base: Path) -> Any:
    """The base as transformers alone opens it."""
    return FAMILIES[name].natural.from_pretrained(base, dtype="float32").eval()


def said(name: str, model: Any) -> Tensor:
    with torch.no_grad():
        return FAMILIES[name].run(model)


def mixture(
    name: str,
    base: Path,
    beside: Path,
    router: RouterConfig = ROUTER,
    pinned: tuple[str, str | None] | None = None,
    top_k: int = 2,
) -> Mixture:
    """A mixture over the base in a folder; `pinned` is the name and commit that it tells of it."""
    family, checkpoint = FAMILIES[name], open_checkpoint(base)
    folders = [_expert(name, base, beside / "trained", expert) for expert in EXPERTS]
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

    def start(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        return torch.randn(len(EXPERTS), lora_A.shape[2], generator=generator) / 4

    made = build(open_model(base, family.kind), adapters, config, start)
    made.model.module.eval()
    return made


def _expert(name: str, base: Path, beside: Path, expert: str) -> Path:
    """A LoRA as training leaves it: nothing in it is zero."""
    rank, scale = EXPERTS[expert]
    spec = TrainSpec(
        base="someone/base", task="t", to="me/t", tune="lora", rank=rank, alpha=scale * rank
    )
    adapted = adapt(open_model(base, FAMILIES[name].kind), spec, "someone/base", "0" * 40)
    generator = torch.Generator().manual_seed(rank + len(expert))
    with torch.no_grad():
        for weight in adapted.peft.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape, generator=generator) * 0.2)
    folder = beside / expert
    folder.mkdir(parents=True)
    adapted.save(folder)
    return folder


def close(found: Tensor, expected: Tensor) -> bool:
    """Whether no number is off by 1e-5 of the largest."""
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def by_hand(name: str, base: Path, made: Mixture) -> Tensor:
    """What the mixture should say: equation 2 of arXiv 2506.14126 as a loop over tokens, hooked
    into the base as transformers opens it."""
    model = natural(name, base)
    with ExitStack() as hooks:
        for path, layer in made.layers.items():
            parts = (layer.lora_A.double(), layer.lora_B.double(), layer.router.double())
            hook = _equation_2(*parts, layer.scale.double(), made.config)
            hooks.callback(model.get_submodule(path).register_forward_hook(hook).remove)
        return said(name, model)


def _equation_2(
    A: Tensor, B: Tensor, router: Tensor, scale: Tensor, config: MoeConfig
) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    def experts(x: Tensor) -> Tensor:
        scores = router @ x if config.router.signed else (router @ x).abs()
        p = torch.softmax(scores / config.router.temperature, 0)
        total, whole = torch.zeros(B.shape[1]).double(), 0.0
        for e in p.argsort(descending=True)[: config.top_k].tolist():
            total += p[e] * scale[e] * (B[e] @ (A[e] @ x))
            whole += p[e].item()
        return total / whole

    def added(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        tokens = inputs[0].double().flatten(0, -2)
        return output + torch.stack([experts(x) for x in tokens]).view(output.shape).float()

    return added
