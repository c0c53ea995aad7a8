"""One tiny network of each family, open_clip's too, and experts for it as peft makes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.models.adapter import Adapted
from hubmerge.models.layers import linear_layers, targets
from hubmerge.models.loading import Model, open_model
from hubmerge.moerging.moe_model import Mixture, build
from hubmerge.specs import Kind
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig
from tests.models.worlds import write_open_clip, write_transformers
from tests.moerging.small_mixtures import FAMILIES, IMAGES

NETWORKS = ("open_clip", *FAMILIES)


def write(name: str, folder: Path) -> Path:
    """The base of a family in a folder."""
    if name != "open_clip":
        FAMILIES[name].make(folder)
        return folder
    beside = folder.parent / f"{folder.name}-transformers"
    write_open_clip(folder, write_transformers(beside))
    return folder


def kind_of(name: str) -> Kind:
    return FAMILIES[name].kind if name in FAMILIES else "image"


def opened(name: str, base: Path) -> Any:
    return open_model(base, kind_of(name))


def run(name: str, module: nn.Module) -> Tensor:
    """What a network says, in its own width; in evaluation mode there is no chance in it."""
    network: Any = module
    images = IMAGES.to(next(network.parameters()).dtype)
    if name == "open_clip":
        return cast(Tensor, network.encode_image(images))
    if kind_of(name) == "image":
        network = network.vision_model if name == "clip" else network
        return cast(Tensor, network(pixel_values=images).last_hidden_state)
    return FAMILIES[name].run(network)


def answer(name: str, model: Model) -> Tensor:
    with torch.no_grad():
        return run(name, model.module.eval())


def lora(
    name: str, base: Path, folder: Path, seed: int = 0, trained: bool = True, **said: Any
) -> Path:
    """A LoRA on every linear layer, in a folder; unless `trained` its B is zero, as at first."""
    model = opened(name, base)
    layers = linear_layers(model)
    turned = isinstance(model.module.get_submodule(layers[0]), Conv1D)
    asked = {"r": 2, "lora_alpha": 6, "fan_in_fan_out": turned, **said}
    config = LoraConfig(target_modules=targets(model.module, layers), **asked)
    torch.manual_seed(seed)
    peft = get_peft_model(model.module, config)
    peft.active_peft_config.base_model_name_or_path = "someone/base"
    with torch.no_grad():
        for weight in peft.parameters():
            if weight.requires_grad and trained:
                weight.add_(torch.randn_like(weight) * 0.2)
    folder.mkdir(parents=True)
    Adapted(model, peft).save(folder)
    return folder


def mixture(
    name: str,
    base: Path,
    experts: Sequence[Path],
    top_k: int = 1,
    router: RouterConfig = RouterConfig(),  # noqa: B008 (frozen)
    rows: dict[str, Tensor] | None = None,
) -> Mixture:
    """A mixture of the experts in these folders; router rows as given, or random by their layer."""
    checkpoint = open_checkpoint(base)
    config = MoeConfig(
        base_model="someone/base",
        base_revision=None,
        base_digest=checkpoint.digest(),
        layout="open_clip" if name == "open_clip" else "transformers",
        experts=tuple(MoeExpert(folder.name) for folder in experts),
        top_k=top_k,
        modules=(),
        router=router,
    )

    def start(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        if rows is not None:
            return rows[path].clone()
        drawn = torch.Generator().manual_seed(len(path) + lora_A.shape[2])
        return torch.randn(len(experts), lora_A.shape[2], generator=drawn) / 4

    adapters = [open_adapter(checkpoint, open_checkpoint(folder)) for folder in experts]
    made = build(opened(name, base), adapters, config, start)
    made.model.module.eval()
    return made


def stepped(name: str, made: Mixture, steps: int = 3) -> None:
    """Train it a little, towards nothing in particular."""
    module = made.model.module
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(run(name, module).square().mean())
        optimizer.step()


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
