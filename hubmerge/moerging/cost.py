"""The cost of a mixture of experts, compared with its base and with a merge of its experts."""

from __future__ import annotations

from hubmerge.moerging.experts import factors_by_layer
from hubmerge.moerging.moe_model import MoeModel
from hubmerge.routing import Flops, MoeCost, Parameters


def compute_cost(moe: MoeModel) -> MoeCost:
    """Parameters, and multiply-adds per token in the layers that have experts.

    For the mixture these are those of the base, the router, and top-k experts of mean rank. A dense
    product does more of them and can still be faster.
    """
    total = sum(parameter.numel() for parameter in moe.model.module.parameters())
    padded = sum(
        parameter.numel()
        for layer in moe.layers.values()
        for parameter in (layer.lora_A, layer.lora_B, layer.router)
    )
    base = total - padded
    ranks = _ranks_by_layer(moe)
    trained = linear = moe_extra = 0
    for path, layer in moe.layers.items():
        experts, inputs, outputs = len(layer.router), layer.in_features, layer.out_features
        factors = sum(ranks[path]) * (inputs + outputs)
        router = experts * inputs
        trained += router + factors
        linear += inputs * outputs
        moe_extra += router + moe.config.top_k * factors // experts
    return MoeCost(
        Parameters(base=base, merged=base, mixture=base + trained, trained=trained),
        Flops(base=linear, merged=linear, mixture=linear + moe_extra),
    )


def _ranks_by_layer(moe: MoeModel) -> dict[str, list[int]]:
    """Layer -> the rank of each expert there."""
    ranks: dict[str, list[int]] = {path: [] for path in moe.layers}
    for adapter in moe.adapters:
        for path, change in factors_by_layer(adapter, moe.model.names).items():
            ranks[path].append(adapter.checkpoint.index[change.a].shape[0])
    return ranks
