"""A mixture of experts: a model whose linear layers have LoRA experts, and its folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hubmerge.errors import CheckpointError
from hubmerge.models.explicit_attention import ExplicitAttention
from hubmerge.models.loading import Model
from hubmerge.moerging.experts import check_experts, factors_by_layer, stack_experts
from hubmerge.moerging.layer import MoeLinear, TokenRouting
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config import read_config_bytes
from hubmerge.weights.adapter_config_fields import ADAPTER_CONFIG
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.header import read_header, summarize_names
from hubmerge.weights.layout import ADAPTER_WEIGHTS, regular_file
from hubmerge.weights.moe_config import (
    EXPERTS_FOLDER,
    MOE_CONFIG,
    ROUTER_WEIGHTS,
    MoeConfig,
    read_moe_config,
)

GatherParameter = Callable[[nn.Parameter], Tensor]
MakeRouter = Callable[[str, Tensor, Tensor], Tensor]  # path, lora_A, lora_B -> router [E, I]


@dataclass(frozen=True)
class MoeModel:
    """A model with experts; `layers` are its trained layers, by their path in the module.

    `adapters` are the adapters that the experts were read from, in the order of `config.experts`.
    """

    model: Model
    layers: Mapping[str, MoeLinear]
    config: MoeConfig
    adapters: tuple[Adapter, ...]

    def save(self, folder: Path, gather: GatherParameter = lambda parameter: parameter) -> None:
        """Write configuration, router and experts, each expert in the format it was read in.

        `gather` returns all values of a parameter that is split over processes.
        """
        (folder / MOE_CONFIG).write_bytes(self.config.to_bytes())
        router = {
            f"{n}.router.weight": _to_cpu_float32(gather(x.router)) for n, x in self.layers.items()
        }
        save_file(router, folder / ROUTER_WEIGHTS, metadata={"format": "pt"})
        stacked = {
            path: (_to_cpu_float32(gather(layer.lora_A)), _to_cpu_float32(gather(layer.lora_B)))
            for path, layer in self.layers.items()
        }
        for index, (expert, adapter) in enumerate(
            zip(self.config.experts, self.adapters, strict=True)
        ):
            subfolder = folder / EXPERTS_FOLDER / expert.name
            subfolder.mkdir(parents=True)
            (subfolder / ADAPTER_CONFIG).write_bytes(read_config_bytes(adapter.checkpoint.folder))
            tensors = self._expert_tensors(adapter, index, stacked)
            save_file(tensors, subfolder / ADAPTER_WEIGHTS, metadata={"format": "pt"})

    def _expert_tensors(
        self, adapter: Adapter, index: int, stacked: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """One expert's factors by the names in its file, without the padding of their ranks."""
        tensors = {}
        for path, change in factors_by_layer(adapter, self.model.names).items():
            rank = adapter.checkpoint.index[change.a].shape[0]
            a, b = stacked[path]
            tensors[change.a] = a[index, :rank].contiguous()
            tensors[change.b] = b[index, :, :rank].contiguous()
        return tensors


def build_moe(
    model: Model, adapters: Sequence[Adapter], config: MoeConfig, make_router: MakeRouter
) -> MoeModel:
    """Add experts and routers to an opened base, in place; only they are trainable.

    `config.modules` is filled in. `make_router` returns each layer's router. Raises CheckpointError
    for adapters that cannot form one mixture, or have values that are not finite.
    """
    check_experts({e.name: a for e, a in zip(config.experts, adapters, strict=True)})
    stacked = stack_experts(adapters, model.names)
    model.module.requires_grad_(False)
    _unfuse_attention(model.module, stacked)
    routing = TokenRouting(config.top_k, config.router.signed, config.router.temperature)
    layers = {}
    for path, base in _linear_layers(model, stacked).items():
        experts = stacked[path]
        router = make_router(path, experts.lora_A, experts.lora_B)
        layer = MoeLinear(base, experts.lora_A, experts.lora_B, experts.scale, router, routing)
        parent, _, name = path.rpartition(".")
        setattr(model.module.get_submodule(parent), name, layer)
        layers[path] = layer
    config = dataclasses.replace(config, modules=tuple(layers))
    return MoeModel(model, layers, config, tuple(adapters))


def read_moe(model: Model, base: Checkpoint, folder: Path) -> MoeModel:
    """Load a mixture of experts from its folder into its opened base, in place.

    `base` is the base's checkpoint. Raises CheckpointError, naming the file, if anything is
    missing, damaged, or does not fit.
    """
    config = read_moe_config(folder)
    adapters = open_expert_adapters(base, folder, config)
    regular_file(folder, ROUTER_WEIGHTS)
    read_header(folder / ROUTER_WEIGHTS)
    router = load_file(folder / ROUTER_WEIGHTS)

    def make_router(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        rows = router.get(f"{path}.router.weight")
        shape = (len(config.experts), lora_A.shape[-1])
        if rows is None or tuple(rows.shape) != shape or not rows.isfinite().all():
            raise CheckpointError(
                f"{folder / ROUTER_WEIGHTS} has no finite rows of shape {shape} for {path}."
            )
        return rows.float()

    moe = build_moe(model, adapters, config, make_router)
    router_names = {f"{path}.router.weight" for path in moe.layers}
    if set(moe.layers) != set(config.modules) or set(router) != router_names:
        raise CheckpointError(
            f"{folder}: configuration, router and experts do not name the same layers.",
            "Fetch the mixture of experts again.",
        )
    return moe


def open_expert_adapters(base: Checkpoint, folder: Path, config: MoeConfig) -> tuple[Adapter, ...]:
    """The adapters in the folder of a mixture of experts, each matched with the base."""
    folders = [folder / EXPERTS_FOLDER / expert.name for expert in config.experts]
    return tuple(open_adapter(base, open_checkpoint(expert_folder)) for expert_folder in folders)


def _linear_layers(model: Model, paths: Collection[str]) -> dict[str, nn.Linear | Conv1D]:
    """The linear layers at these paths, in the model's order; CheckpointError for other layers."""
    layers = {name: layer for name, layer in model.module.named_modules() if name in paths}
    not_linear = [
        name for name, layer in layers.items() if not isinstance(layer, nn.Linear | Conv1D)
    ]
    if not_linear:
        raise CheckpointError(
            f"The experts adapt {summarize_names(not_linear)} of this {model.name}, which are not "
            "linear layers.",
            "Use adapters on linear layers.",
        )
    return cast("dict[str, nn.Linear | Conv1D]", layers)


def _unfuse_attention(module: nn.Module, paths: Mapping[str, object]) -> None:
    """Replace every fused attention that gets experts by explicit linear layers."""
    parents = {path.rpartition(".")[0] for path in paths}
    for name in sorted(parents):
        fused = module.get_submodule(name)
        if isinstance(fused, nn.MultiheadAttention):
            parent, _, last = name.rpartition(".")
            explicit = ExplicitAttention(fused).train(fused.training)
            setattr(module.get_submodule(parent), last, explicit)


def _to_cpu_float32(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
