"""What a mixture costs, beside its base and one model merged of its experts."""

from __future__ import annotations

from hubmerge.moerging.experts import layers_of
from hubmerge.moerging.moe_model import Mixture
from hubmerge.routing import Cost, Flops, Parameters


def cost(mixture: Mixture) -> Cost:
    """Parameters, and multiply-adds per token of the layers that have experts.

    Of a mixture those are the base's, the router's, and those of top-k experts of mean rank: what
    the maths asks for, which a dense product may exceed and still be faster.
    """
    whole = sum(parameter.numel() for parameter in mixture.model.module.parameters())
    padded = sum(
        parameter.numel()
        for layer in mixture.layers.values()
        for parameter in (layer.lora_A, layer.lora_B, layer.router)
    )
    base = whole - padded
    ranks = _ranks(mixture)
    trained = linear = mixed = 0
    for path, layer in mixture.layers.items():
        experts, inputs, outputs = len(layer.router), layer.in_features, layer.out_features
        factors = sum(ranks[path]) * (inputs + outputs)
        router = experts * inputs
        trained += router + factors
        linear += inputs * outputs
        mixed += router + mixture.config.top_k * factors // experts
    return Cost(
        Parameters(base=base, merged=base, mixture=base + trained, trained=trained),
        Flops(base=linear, merged=linear, mixture=linear + mixed),
    )


def _ranks(mixture: Mixture) -> dict[str, list[int]]:
    """Layer -> the rank of each expert there."""
    ranks: dict[str, list[int]] = {path: [] for path in mixture.layers}
    for adapter in mixture.adapters:
        for path, change in layers_of(adapter, mixture.model.names).items():
            ranks[path].append(adapter.checkpoint.index[change.a].shape[0])
    return ranks
