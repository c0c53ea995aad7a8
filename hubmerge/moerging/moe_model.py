"""A mixture: an opened base whose linear layers are mixtures of LoRA experts, and its folder."""

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
from hubmerge.moerging.experts import check_experts, layers_of, stacks
from hubmerge.moerging.layer import MixtureLinear, Routing
from hubmerge.weights.adapter import Adapter
from hubmerge.weights.adapter_config import config_bytes
from hubmerge.weights.adapter_config_fields import FILE
from hubmerge.weights.adapter_match import open_adapter
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.header import listed, read_header
from hubmerge.weights.layout import plain_file
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER, MoeConfig, read_moe_config

WEIGHTS = "adapter_model.safetensors"
Value = Callable[[nn.Parameter], Tensor]
Start = Callable[[str, Tensor, Tensor], Tensor]  # path, lora_A, lora_B -> router [E, I]


@dataclass(frozen=True)
class Mixture:
    """`model` runs as a mixture; `layers` are what is trained in it, by their path in its module.

    `adapters` are the files that the experts were read from, in the order of `config.experts`.
    """

    model: Model
    layers: Mapping[str, MixtureLinear]
    config: MoeConfig
    adapters: tuple[Adapter, ...]

    def save(self, folder: Path, value: Value = lambda parameter: parameter) -> None:
        """Write configuration, router and experts, each expert in the files' form it came in.

        `value` gives a parameter's values, where they are not in one piece in this process.
        """
        (folder / CONFIG).write_bytes(self.config.to_bytes())
        router = {f"{n}.router.weight": _plain(value(x.router)) for n, x in self.layers.items()}
        save_file(router, folder / ROUTER, metadata={"format": "pt"})
        stacked = {
            path: (_plain(value(layer.lora_A)), _plain(value(layer.lora_B)))
            for path, layer in self.layers.items()
        }
        for place, (expert, adapter) in enumerate(
            zip(self.config.experts, self.adapters, strict=True)
        ):
            inner = folder / EXPERTS / expert.name
            inner.mkdir(parents=True)
            (inner / FILE).write_bytes(config_bytes(adapter.checkpoint.folder))
            own = self._own(adapter, place, stacked)
            save_file(own, inner / WEIGHTS, metadata={"format": "pt"})

    def _own(
        self, adapter: Adapter, place: int, stacked: Mapping[str, tuple[Tensor, Tensor]]
    ) -> dict[str, Tensor]:
        """One expert's factors under the names of its file, without what padded their ranks."""
        own = {}
        for path, change in layers_of(adapter, self.model.names).items():
            rank = adapter.checkpoint.index[change.a].shape[0]
            a, b = stacked[path]
            own[change.a] = a[place, :rank].contiguous()
            own[change.b] = b[place, :, :rank].contiguous()
        return own


def build(model: Model, adapters: Sequence[Adapter], config: MoeConfig, start: Start) -> Mixture:
    """Make a mixture of an opened base, in place: the base is frozen, experts and router are not.

    `config.modules` is filled in. `start` gives each layer's router. Raises CheckpointError for
    adapters that do not stand side by side, or are no numbers.
    """
    check_experts({e.name: a for e, a in zip(config.experts, adapters, strict=True)})
    stacked = stacks(adapters, model.names)
    model.module.requires_grad_(False)
    _take_apart(model.module, stacked)
    routing = Routing(config.top_k, config.router.signed, config.router.temperature)
    layers = {}
    for path, base in _linear_layers(model, stacked).items():
        stack = stacked[path]
        router = start(path, stack.lora_A, stack.lora_B)
        layer = MixtureLinear(base, stack.lora_A, stack.lora_B, stack.scale, router, routing)
        holder, _, name = path.rpartition(".")
        setattr(model.module.get_submodule(holder), name, layer)
        layers[path] = layer
    config = dataclasses.replace(config, modules=tuple(layers))
    return Mixture(model, layers, config, tuple(adapters))


def read_mixture(model: Model, base: Checkpoint, folder: Path) -> Mixture:
    """Put the mixture of a folder into its opened base, in place; `base` is the base's checkpoint.

    Raises CheckpointError, naming the file, for what is missing, damaged, or does not fit.
    """
    config = read_moe_config(folder)
    adapters = open_experts(base, folder, config)
    plain_file(folder, ROUTER)
    read_header(folder / ROUTER)
    router = load_file(folder / ROUTER)

    def start(path: str, lora_A: Tensor, lora_B: Tensor) -> Tensor:
        rows = router.get(f"{path}.router.weight")
        wanted = (len(config.experts), lora_A.shape[-1])
        if rows is None or tuple(rows.shape) != wanted or not rows.isfinite().all():
            raise CheckpointError(f"{folder / ROUTER} has no rows {wanted} of numbers for {path}.")
        return rows.float()

    mixture = build(model, adapters, config, start)
    named = {f"{path}.router.weight" for path in mixture.layers}
    if set(mixture.layers) != set(config.modules) or set(router) != named:
        raise CheckpointError(
            f"{folder}: configuration, router and experts do not name the same layers.",
            "Fetch the mixture anew.",
        )
    return mixture


def open_experts(base: Checkpoint, folder: Path, config: MoeConfig) -> tuple[Adapter, ...]:
    """The adapters of a mixture's folder, each held against the base."""
    folders = [folder / EXPERTS / expert.name for expert in config.experts]
    return tuple(open_adapter(base, open_checkpoint(inner)) for inner in folders)


def _linear_layers(model: Model, paths: Collection[str]) -> dict[str, nn.Linear | Conv1D]:
    """The layers at these paths, in the model's order; raises CheckpointError for others."""
    found = {name: layer for name, layer in model.module.named_modules() if name in paths}
    strange = [name for name, layer in found.items() if not isinstance(layer, nn.Linear | Conv1D)]
    if strange:
        raise CheckpointError(
            f"The experts adapt {listed(strange)} of this {model.name}, no linear layers.",
            "Use adapters on linear layers.",
        )
    return cast("dict[str, nn.Linear | Conv1D]", found)


def _take_apart(module: nn.Module, paths: Mapping[str, object]) -> None:
    """Make explicit every fused attention of which a part is to be a layer."""
    parents = {path.rpartition(".")[0] for path in paths}
    for name in sorted(parents):
        fused = module.get_submodule(name)
        if isinstance(fused, nn.MultiheadAttention):
            holder, _, last = name.rpartition(".")
            explicit = ExplicitAttention(fused).train(fused.training)
            setattr(module.get_submodule(holder), last, explicit)


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().cpu().contiguous()
