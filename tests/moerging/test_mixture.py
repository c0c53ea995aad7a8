"""Mixtures over one tiny network of each family: what they say, learn, and leave alone."""

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
from hubmerge.models.recompute import recompute
from hubmerge.moerging.layer import MixtureLinear
from hubmerge.weights.moe_config import RouterConfig
from tests.moerging.networks import (
    NETWORKS,
    answer,
    kind_of,
    lora,
    mixture,
    opened,
    run,
    stepped,
    write,
)
from tests.moerging.small_mixtures import close
from tests.moerging.worlds import equation_2


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    told: str = request.param
    return told


@pytest.fixture
def base(name: str, tmp_path: Path) -> Path:
    return write(name, tmp_path / "base")


@pytest.fixture
def experts(name: str, base: Path, tmp_path: Path) -> list[Path]:
    """Three experts of two ranks and three scales: 3, 2 and, over the root of its rank, 5."""
    return [
        lora(name, base, tmp_path / "mnist", 1),
        lora(name, base, tmp_path / "svhn", 2, r=3, lora_alpha=6),
        lora(name, base, tmp_path / "cars", 3, r=4, lora_alpha=10, use_rslora=True),
    ]


def one_layer(name: str, folder: Path) -> tuple[Path, Path]:
    """The base of a family in a folder, and an expert for it beside."""
    base = write(name, folder / "base")
    return base, lora(name, base, folder / "expert")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_expert_is_its_adapter(name: str, base: Path, experts: list[Path], place: int) -> None:
    adapted = answer(name, apply_adapter(opened(name, base), experts[place]).model)
    made = mixture(name, base, [experts[place]])
    assert close(answer(name, made.model), adapted)
    assert not close(answer(name, opened(name, base)), adapted)


def test_every_linear_layer_has_experts(name: str, base: Path, experts: list[Path]) -> None:
    """In each of two layers: q, k, v, o and two more; open_clip's has one for q, k and v; T5's
    decoder attends twice; GPT-2's has one for q, k and v; Llama's has three in its MLP."""
    made = mixture(name, base, experts)
    count = {"open_clip": 8, "t5": 2 * 6 + 2 * 10, "gpt2": 8, "llama": 14}.get(name, 12)
    assert len(made.layers) == count
    inside = [n for n, m in made.model.module.named_modules() if isinstance(m, MixtureLinear)]
    assert tuple(inside) == made.config.modules == tuple(made.layers)


def test_equation_2_through_the_whole_network(name: str, base: Path, experts: list[Path]) -> None:
    for router in (RouterConfig(temperature=0.5), RouterConfig(signed=True)):
        made = mixture(name, base, experts, top_k=2, router=router)
        module = made.model.module.double()
        said = answer(name, made.model)
        torch.testing.assert_close(said, layer_by_layer(name, module), atol=1e-9, rtol=1e-9)


def layer_by_layer(name: str, module: nn.Module) -> Tensor:
    """What the network says when every mixture in it is worked out by a loop in float64."""

    def by_loop(layer: MixtureLinear) -> Callable[[Tensor], Tensor]:
        plain = copy.deepcopy(layer)
        if not isinstance(plain.base, nn.Linear):  # GPT-2's stores its inputs first
            plain.base.weight = nn.Parameter(plain.base.weight.T, requires_grad=False)
        return lambda x: equation_2(plain, x)

    layers = [layer for layer in module.modules() if isinstance(layer, MixtureLinear)]
    for layer in layers:
        layer.forward = by_loop(layer)  # type: ignore[assignment, method-assign]
    with torch.no_grad():
        return run(name, module)


def test_only_experts_and_routers_learn(name: str, base: Path, experts: list[Path]) -> None:
    made = mixture(name, base, experts, top_k=2)
    module = made.model.module
    frozen = {n: w.detach().clone() for n, w in module.named_parameters() if not w.requires_grad}
    learning = {n: w.detach().clone() for n, w in module.named_parameters() if w.requires_grad}
    parts = ("lora_A", "lora_B", "router")
    assert set(learning) == {f"{path}.{part}" for path in made.layers for part in parts}
    stepped(name, made)
    after = dict(module.named_parameters())
    assert all(torch.equal(after[n], w) for n, w in frozen.items())
    assert all(after[n].grad is None for n in frozen)
    assert all(not torch.equal(after[n], w) for n, w in learning.items())


def test_recomputing_gives_the_same_gradients(name: str, base: Path, experts: list[Path]) -> None:
    found = []
    for again in (False, True):
        made = mixture(name, base, experts, top_k=2)
        if again:
            recompute(made.model)
        module = made.model.module.train()
        torch.manual_seed(0)  # what dropout leaves out is drawn anew, and then as before
        torch.autograd.backward(run(name, module).square().mean())
        found.append({n: w.grad for n, w in module.named_parameters() if w.grad is not None})
    one, other = found
    assert one.keys() == other.keys()
    assert len(one) == 3 * len(made.layers)
    assert all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("name", ["open_clip", "t5"])
def test_the_order_of_experts_is_that_of_rows_and_nothing_else(
    name: str, base: Path, experts: list[Path]
) -> None:
    order = [2, 0, 1]
    made = mixture(name, base, experts, top_k=2)
    rows = {path: layer.router.detach()[order] for path, layer in made.layers.items()}
    turned = mixture(name, base, [experts[n] for n in order], top_k=2, rows=rows)
    assert close(answer(name, turned.model), answer(name, made.model))
    for which in (made, turned):
        torch.autograd.backward(run(name, which.model.module.double()).square().mean())
    for path, layer in made.layers.items():
        for part in ("lora_A", "lora_B", "router"):
            ours, theirs = getattr(layer, part).grad, getattr(turned.layers[path], part).grad
            torch.testing.assert_close(theirs, ours[order], atol=1e-12, rtol=1e-8)


@pytest.mark.parametrize("name", ["vit"])
def test_ranks_and_scales_may_differ_by_layer(name: str, base: Path, tmp_path: Path) -> None:
    folder = lora(
        name, base, tmp_path / "odd", 5,
        rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 15, "layers.1.mlp.fc1": 1},
    )  # fmt: skip
    even = lora(name, base, tmp_path / "even", 6)
    adapted = answer(name, apply_adapter(opened(name, base), folder).model)
    assert close(answer(name, mixture(name, base, [folder]).model), adapted)
    made = mixture(name, base, [folder, even])
    scales = {path: layer.scale.tolist() for path, layer in made.layers.items()}
    assert {tuple(scale) for scale in scales.values()} == {(3, 3), (0.5, 3)}
    shapes = {path.rpartition(".")[2]: layer.lora_A.shape for path, layer in made.layers.items()}
    assert (shapes["q_proj"], shapes["k_proj"]) == ((2, 5, 32), (2, 2, 32))


def test_attention_is_taken_apart_only_where_it_has_experts(tmp_path: Path) -> None:
    base, expert = one_layer("open_clip", tmp_path)
    module = mixture("open_clip", base, [expert]).model.module
    explicit = [n for n, m in module.named_modules() if isinstance(m, ExplicitAttention)]
    fused = [n for n, m in module.named_modules() if isinstance(m, nn.MultiheadAttention)]
    assert explicit == [f"visual.transformer.resblocks.{n}.attn" for n in (0, 1)]
    assert fused == [f"transformer.resblocks.{n}.attn" for n in (0, 1)]


def test_training_mode_of_an_attention_taken_apart(tmp_path: Path) -> None:
    base, expert = one_layer("open_clip", tmp_path)
    module = mixture("open_clip", base, [expert]).model.module
    assert not any(part.training for part in module.modules())


def test_experts_on_what_is_no_linear_layer(tmp_path: Path) -> None:
    base = write("bert", tmp_path / "base")
    expert = lora("bert", base, tmp_path / "expert")
    words = lora_on(base, tmp_path / "words", ["word_embeddings"])
    assert kind_of("bert") == "text"
    with pytest.raises(CheckpointError, match="embeddings"):
        mixture("bert", base, [words])
    assert mixture("bert", base, [expert]).layers


def lora_on(base: Path, folder: Path, modules: list[str]) -> Path:
    """An adapter on an embedding, as peft lets one make it."""
    from peft import LoraConfig, get_peft_model

    peft = get_peft_model(opened("bert", base).module, LoraConfig(target_modules=modules))
    peft.save_pretrained(str(folder), save_embedding_layers=False)
    return folder
