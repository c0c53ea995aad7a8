"""One tiny network of each family, including open_clip's, and experts made with peft."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.models.adapter import AdaptedModel
from hubmerge.models.layers import linear_layers, target_modules
from hubmerge.models.loading import Model
from hubmerge.moerging.moe_model import MoeModel, build_moe
from hubmerge.specs import Kind
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.moe_config import MoeConfig, MoeExpert, RouterConfig
from tests.models.builders import load_copy, write_open_clip, write_transformers
from tests.moerging.small_moes import FAMILIES, IMAGES

NETWORKS = ("open_clip", *FAMILIES)


@dataclass(frozen=True)
class NetworkFolders:
    """Folders with bases and with experts for them, each written once; no test changes them."""

    root: Path

    def base(self, name: str) -> Path:
        """The base of a family."""
        folder = self.root / name / "base"
        return folder if folder.exists() else write_base(name, folder)

    def lora(self, name: str, expert: str, seed: int = 0, **options: Any) -> Path:
        """An expert of a family, in a folder of that name; the options are those of write_lora."""
        settings = "-".join(f"{key}={value}" for key, value in sorted(options.items()))
        folder = self.root / name / f"{seed}-{settings}" / expert
        return (
            folder
            if folder.exists()
            else write_lora(name, self.base(name), folder, seed, **options)
        )


def write_base(name: str, folder: Path) -> Path:
    """Write the base of a family into a folder."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if name != "open_clip":
        FAMILIES[name].write_base(folder)
        return folder
    transformers_folder = folder.parent / f"{folder.name}-transformers"
    write_open_clip(folder, write_transformers(transformers_folder))
    return folder


def kind_of(name: str) -> Kind:
    return FAMILIES[name].kind if name in FAMILIES else "image"


def open_base(name: str, base: Path) -> Any:
    return load_copy(base, kind_of(name))


def run_network(name: str, module: nn.Module) -> Tensor:
    """The output of a network on fixed inputs, deterministic in evaluation mode."""
    network: Any = module
    images = IMAGES.to(next(network.parameters()).dtype)
    if name == "open_clip":
        return cast(Tensor, network.encode_image(images))
    if kind_of(name) == "image":
        network = network.vision_model if name == "clip" else network
        return cast(Tensor, network(pixel_values=images).last_hidden_state)
    return FAMILIES[name].run(network)


def predict(name: str, model: Model) -> Tensor:
    with torch.no_grad():
        return run_network(name, model.module.eval())


def write_lora(
    name: str, base: Path, folder: Path, seed: int = 0, trained: bool = True, **options: Any
) -> Path:
    """Write a LoRA on every linear layer; unless `trained`, its B is zero as at initialisation."""
    model = open_base(name, base)
    layers = linear_layers(model)
    fan_in_fan_out = isinstance(model.module.get_submodule(layers[0]), Conv1D)
    settings = {"r": 2, "lora_alpha": 6, "fan_in_fan_out": fan_in_fan_out, **options}
    config = LoraConfig(target_modules=target_modules(model.module, layers), **settings)
    torch.manual_seed(seed)
    peft = get_peft_model(model.module, config)
    peft.active_peft_config.base_model_name_or_path = "someone/base"
    with torch.no_grad():
        for weight in peft.parameters():
            if weight.requires_grad and trained:
                weight.add_(torch.randn_like(weight) * 0.2)
    folder.mkdir(parents=True)
    AdaptedModel(model, peft).save(folder)
    return folder


def make_moe(
    name: str,
    base: Path,
    experts: Sequence[Path],
    top_k: int = 1,
    router: RouterConfig = RouterConfig(),  # noqa: B008 (frozen)
    rows: dict[str, Tensor] | None = None,
) -> MoeModel:
    """A mixture of the experts in these folders, with the given or random router rows."""
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

    def make_router(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        if rows is not None:
            return rows[path].clone()
        generator = torch.Generator().manual_seed(len(path) + lora_A.shape[2])
        return torch.randn(len(experts), lora_A.shape[2], generator=generator) / 4

    adapters = [open_adapter(checkpoint, open_checkpoint(folder)) for folder in experts]
    moe = build_moe(open_base(name, base), adapters, config, make_router)
    moe.model.module.eval()
    return moe


def train_steps(name: str, moe: MoeModel, steps: int = 3) -> None:
    """Train for a few steps towards zero outputs."""
    module = moe.model.module
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(run_network(name, module).square().mean())
        optimizer.step()


def read_files(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
