"""Mixtures of experts for one tiny network of each family: outputs, gradients, frozen weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hubmerge.errors import CheckpointError
from hubmerge.models.adapter import apply_adapter
from hubmerge.models.explicit_attention import ExplicitAttention
from hubmerge.models.recompute import enable_recompute
from hubmerge.moerging.layer import MoeLinear
from hubmerge.weights.moe_config import RouterConfig
from tests.moerging.builders import equation_2
from tests.moerging.networks import (
    NETWORKS,
    NetworkFolders,
    kind_of,
    make_moe,
    open_base,
    predict,
    run_network,
    train_steps,
    write_lora,
)
from tests.moerging.small_moes import is_close


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    family: str = request.param
    return family


@pytest.fixture
def base(networks: NetworkFolders, name: str) -> Path:
    return networks.base(name)


@pytest.fixture
def experts(networks: NetworkFolders, name: str) -> list[Path]:
    """Three experts of two ranks and three scales: 3, 2 and, over the root of its rank, 5."""
    return [
        networks.lora(name, "mnist", 1),
        networks.lora(name, "svhn", 2, r=3, lora_alpha=6),
        networks.lora(name, "cars", 3, r=4, lora_alpha=10, use_rslora=True),
    ]


@pytest.mark.parametrize(
    "index", [0, *(pytest.param(index, marks=pytest.mark.slow) for index in (1, 2))]
)
def test_one_expert_equals_the_adapter(
    name: str, base: Path, experts: list[Path], index: int
) -> None:
    adapted = predict(name, apply_adapter(open_base(name, base), experts[index]).model)
    moe = make_moe(name, base, [experts[index]])
    assert is_close(predict(name, moe.model), adapted)
    assert not is_close(predict(name, open_base(name, base)), adapted)


def test_every_linear_layer_has_experts(name: str, base: Path, experts: list[Path]) -> None:
    """In each of two layers: q, k, v, o and two more; open_clip's has one for q, k and v; T5's
    decoder attends twice; GPT-2's has one for q, k and v; Llama's has three in its MLP."""
    moe = make_moe(name, base, experts)
    count = {"open_clip": 8, "t5": 2 * 6 + 2 * 10, "gpt2": 8, "llama": 14}.get(name, 12)
    assert len(moe.layers) == count
    inside = [n for n, m in moe.model.module.named_modules() if isinstance(m, MoeLinear)]
    assert tuple(inside) == moe.config.modules == tuple(moe.layers)


def test_equation_2_in_the_whole_network(name: str, base: Path, experts: list[Path]) -> None:
    for router in (RouterConfig(temperature=0.5), RouterConfig(signed=True)):
        moe = make_moe(name, base, experts, top_k=2, router=router)
        module = moe.model.module.double()
        output = predict(name, moe.model)
        expected = predict_layer_by_layer(name, module)
        torch.testing.assert_close(output, expected, atol=1e-9, rtol=1e-9)


def predict_layer_by_layer(name: str, module: nn.Module) -> Tensor:
    """The output of the network when every layer with experts is computed by a loop in float64."""

    def by_loop(layer: MoeLinear) -> Callable[[Tensor], Tensor]:
        plain = copy.deepcopy(layer)
        if not isinstance(plain.base, nn.Linear):  # GPT-2 stores inputs first
            plain.base.weight = nn.Parameter(plain.base.weight.T, requires_grad=False)
        return lambda x: equation_2(plain, x)

    layers = [layer for layer in module.modules() if isinstance(layer, MoeLinear)]
    for layer in layers:
        layer.forward = by_loop(layer)  # type: ignore[assignment, method-assign]
    with torch.no_grad():
        return run_network(name, module)


def test_only_experts_and_routers_are_trained(name: str, base: Path, experts: list[Path]) -> None:
    moe = make_moe(name, base, experts, top_k=2)
    module = moe.model.module
    frozen = {n: w.detach().clone() for n, w in module.named_parameters() if not w.requires_grad}
    learning = {n: w.detach().clone() for n, w in module.named_parameters() if w.requires_grad}
    parts = ("lora_A", "lora_B", "router")
    assert set(learning) == {f"{path}.{part}" for path in moe.layers for part in parts}
    train_steps(name, moe)
    after = dict(module.named_parameters())
    assert all(torch.equal(after[n], w) for n, w in frozen.items())
    assert all(after[n].grad is None for n in frozen)
    assert all(not torch.equal(after[n], w) for n, w in learning.items())


def test_recomputing_gives_the_same_gradients(name: str, base: Path, experts: list[Path]) -> None:
    gradients = []
    for again in (False, True):
        moe = make_moe(name, base, experts, top_k=2)
        if again:
            enable_recompute(moe.model)
        module = moe.model.module.train()
        torch.manual_seed(0)  # same dropout both times
        torch.autograd.backward(run_network(name, module).square().mean())
        gradients.append({n: w.grad for n, w in module.named_parameters() if w.grad is not None})
    plain, recomputed = gradients
    assert plain.keys() == recomputed.keys()
    assert len(plain) == 3 * len(moe.layers)
    assert all(torch.equal(plain[n], recomputed[n]) for n in plain)


@pytest.mark.parametrize("name", ["open_clip", "t5"])
def test_order_of_experts_only_permutes_router_rows(
    name: str, base: Path, experts: list[Path]
) -> None:
    order = [2, 0, 1]
    moe = make_moe(name, base, experts, top_k=2)
    rows = {path: layer.router.detach()[order] for path, layer in moe.layers.items()}
    turned = make_moe(name, base, [experts[n] for n in order], top_k=2, rows=rows)
    assert is_close(predict(name, turned.model), predict(name, moe.model))
    for model in (moe, turned):
        torch.autograd.backward(run_network(name, model.model.module.double()).square().mean())
    for path, layer in moe.layers.items():
        for part in ("lora_A", "lora_B", "router"):
            ours, theirs = getattr(layer, part).grad, getattr(turned.layers[path], part).grad
            torch.testing.assert_close(theirs, ours[order], atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("name", ["vit"])
def test_ranks_and_scales_may_differ_by_layer(name: str, base: Path, tmp_path: Path) -> None:
    folder = write_lora(
        name, base, tmp_path / "odd", 5,
        rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 15, "layers.1.mlp.fc1": 1},
    )  # fmt: skip
    even = write_lora(name, base, tmp_path / "even", 6)
    adapted = predict(name, apply_adapter(open_base(name, base), folder).model)
    assert is_close(predict(name, make_moe(name, base, [folder]).model), adapted)
    moe = make_moe(name, base, [folder, even])
    scales = {path: layer.scale.tolist() for path, layer in moe.layers.items()}
    assert {tuple(scale) for scale in scales.values()} == {(3, 3), (0.5, 3)}
    shapes = {path.rpartition(".")[2]: layer.lora_A.shape for path, layer in moe.layers.items()}
    assert (shapes["q_proj"], shapes["k_proj"]) == ((2, 5, 32), (2, 2, 32))


def test_only_attention_with_experts_is_unfused(networks: NetworkFolders) -> None:
    expert = networks.lora("open_clip", "expert")
    module = make_moe("open_clip", networks.base("open_clip"), [expert]).model.module
    explicit = [n for n, m in module.named_modules() if isinstance(m, ExplicitAttention)]
    fused = [n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)]
    assert explicit == [f"visual.transformer.resblocks.{n}.attn" for n in (0, 1)]
    assert fused == [f"transformer.resblocks.{n}.attn" for n in (0, 1)]


def test_unfused_attention_keeps_evaluation_mode(networks: NetworkFolders) -> None:
    expert = networks.lora("open_clip", "expert")
    module = make_moe("open_clip", networks.base("open_clip"), [expert]).model.module
    assert not any(part.training for part in module.modules())


def test_experts_on_other_than_linear_layers_are_rejected(
    networks: NetworkFolders, tmp_path: Path
) -> None:
    base, expert = networks.base("bert"), networks.lora("bert", "expert")
    embedding_expert = write_embedding_lora(base, tmp_path / "words", ["word_embeddings"])
    assert kind_of("bert") == "text"
    with pytest.raises(CheckpointError, match="embeddings"):
        make_moe("bert", base, [embedding_expert])
    assert make_moe("bert", base, [expert]).layers


def write_embedding_lora(base: Path, folder: Path, modules: list[str]) -> Path:
    """Write an adapter on an embedding with peft."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(open_base("bert", base).module, LoraConfig(target_modules=modules))
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
