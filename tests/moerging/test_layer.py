"""The layer compared with equation 2, and invariants for any weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import T5Config, T5ForConditionalGeneration
from transformers.pytorch_utils import Conv1D

from hubmerge.moerging.layer import MoeLinear, TokenRouting
from hubmerge.moerging.products import grouped_is_faster

from .builders import equation_2, random_layer, random_tokens

TRAINED = ("lora_A", "lora_B", "router")


def many_experts(**changes: Any) -> MoeLinear:
    """A layer so large that a few hundred tokens use the grouped product."""
    return random_layer(experts=16, rank=16, width=64, out=48, **changes)


def gradients(layer: MoeLinear, y: Tensor) -> dict[str, Tensor]:
    layer.zero_grad()
    (y * random_tokens(*y.shape, seed=9)).sum().backward()
    return {name: getattr(layer, name).grad.clone() for name in TRAINED}


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


@given(data=st.data())
@settings(max_examples=60)
def test_forward_is_equation_2(data: st.DataObject) -> None:
    size = st.integers(1, 6)
    experts = data.draw(size)
    routing = TokenRouting(
        top_k=data.draw(st.integers(1, experts)),
        signed=data.draw(st.booleans()),
        temperature=data.draw(st.sampled_from([0.5, 1.0, 3.0])),
    )
    width, seed = data.draw(size), data.draw(st.integers(0, 999))
    layer = random_layer(experts, data.draw(size), width, data.draw(size), routing, seed)
    x = random_tokens(*data.draw(st.lists(st.integers(0, 4), max_size=2)), width, seed=seed + 1)
    if x.numel() == 0:
        assert layer(x).shape == (*x.shape[:-1], layer.out_features)
        return
    assert (layer(x) - equation_2(layer, x)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "routing", [TokenRouting(1), TokenRouting(2, signed=True), TokenRouting(2, False, 2.0)]
)
def test_grouped_product_is_equation_2(routing: TokenRouting) -> None:
    layer, x = many_experts(routing=routing), random_tokens(8, 64, 64)
    tokens = x.flatten(0, 1)
    assert grouped_is_faster(tokens, layer.lora_A, layer.lora_B, routing.top_k)
    assert (layer(x) - equation_2(layer, x)).abs().max() < 1e-5


def test_by_hand() -> None:
    """x = [3, 1], scores |3|, |-1| and |2|: the first and third, at e / (1 + e) and 1 / (1 + e)."""
    base = nn.Linear(2, 1, bias=False)
    nn.init.constant_(base.weight, 10.0)
    A = torch.tensor([[[1.0, 0.0]], [[0.0, 100.0]], [[0.0, 1.0]]])
    B = torch.tensor([[[1.0]], [[100.0]], [[5.0]]])
    router = torch.tensor([[1.0, 0.0], [0.0, -1.0], [0.0, 2.0]])
    layer = MoeLinear(base, A, B, torch.tensor([2.0, 1.0, 1.0]), router, TokenRouting(2))
    e = torch.e
    expected = 40 + e / (1 + e) * 2 * 3 + 1 / (1 + e) * 1 * 5
    assert layer(torch.tensor([3.0, 1.0])).item() == pytest.approx(expected, rel=1e-6)


def test_one_expert_equals_the_lora_for_any_router() -> None:
    layer, x = random_layer(experts=1, routing=TokenRouting(1)), random_tokens(2, 7, 6)
    lora = layer.base(x) + layer.scale[0] * x @ layer.lora_A[0].T @ layer.lora_B[0].T
    assert (layer(x) - lora).abs().max() < 1e-6


def test_unsigned_scores_ignore_the_sign_of_a_router_row() -> None:
    layer, x = random_layer(), random_tokens(9, 6)
    before = layer(x)
    with torch.no_grad():
        layer.router[1].neg_()
    assert torch.equal(layer(x), before)


@pytest.mark.parametrize("signed", [True, False])
def test_gradients_equal_finite_differences(signed: bool) -> None:
    layer = random_layer(routing=TokenRouting(2, signed, 0.7), dtype=torch.float64)

    def forward(x: Tensor, A: Tensor, B: Tensor, router: Tensor) -> Any:
        weights = {"lora_A": A, "lora_B": B, "router": router}
        return torch.func.functional_call(layer, weights, (x,))

    x = random_tokens(2, 3, 6, dtype=torch.float64).requires_grad_()
    inputs = (x, *(getattr(layer, name).detach().clone().requires_grad_() for name in TRAINED))
    assert torch.autograd.gradcheck(forward, inputs)


def test_gradients_of_grouped_and_dense_products_are_equal() -> None:
    """One batch uses the grouped product; split into parts it uses the dense one."""
    layer = many_experts()
    batch, parts = random_tokens(512, 64).requires_grad_(), random_tokens(512, 64).requires_grad_()
    grouped = gradients(layer, layer(batch))
    dense = gradients(layer, torch.cat([layer(part) for part in parts.split(32)]))
    assert not grouped_is_faster(parts[:32], layer.lora_A, layer.lora_B, 2)
    assert_same(grouped, dense)
    torch.testing.assert_close(batch.grad, parts.grad, rtol=1e-4, atol=1e-5)


def test_expanded_gradient() -> None:
    layer = many_experts()
    layer(random_tokens(512, 64)).sum().backward()
    assert all(getattr(layer, name).grad.abs().sum() > 0 for name in TRAINED)


@given(order=st.permutations(range(4)))
def test_order_of_experts_changes_nothing(order: list[int]) -> None:
    layer, x = random_layer(), random_tokens(9, 6)
    parts = (getattr(layer, name).detach()[order] for name in ("lora_A", "lora_B", "scale"))
    router = layer.router.detach()[order]
    permuted = MoeLinear(layer.base, *parts, router, layer.routing)
    torch.testing.assert_close(permuted(x), layer(x), rtol=1e-6, atol=1e-6)


def test_padding_changes_nothing_and_stays_zero_in_training() -> None:
    layer, x = random_layer(rank=3), random_tokens(9, 6)
    A, B = layer.lora_A.detach(), layer.lora_B.detach()
    A, B = nn.functional.pad(A, (0, 0, 0, 2)), nn.functional.pad(B, (0, 2))
    padded = MoeLinear(layer.base, A, B, layer.scale, layer.router.detach(), layer.routing)
    torch.testing.assert_close(padded(x), layer(x))
    optimizer = torch.optim.AdamW(padded.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(3):
        gradients(padded, padded(x))
        optimizer.step()
    assert not padded.lora_A[:, 3:].any()
    assert not padded.lora_B[:, :, 3:].any()


def test_only_the_base_is_frozen() -> None:
    layer = random_layer()
    names = {name for name, weight in layer.named_parameters() if weight.requires_grad}
    assert names == set(TRAINED)
    assert set(layer.state_dict()) == {*TRAINED, "base.weight", "base.bias"}


def test_autocast_routes_in_float32_and_returns_bfloat16() -> None:
    layer, x = random_layer(), random_tokens(64, 6)
    calls = list[tuple[Tensor, ...]]()
    layer.routing_callback = lambda *routing: calls.append(routing)
    exact = layer(x)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() < 0.02 * exact.abs().max()
    for first, second in zip(*calls, strict=True):
        assert torch.equal(first, second)


def test_bfloat16_layer_returns_bfloat16() -> None:
    layer = random_layer().to(torch.bfloat16)
    assert layer(random_tokens(3, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("tokens", [32, 512])
def test_compiles_as_one_graph(tokens: int) -> None:
    layer, x = many_experts(), random_tokens(tokens, 64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), layer(x))
    assert_same(gradients(layer, compiled(x)), gradients(layer, layer(x)))


@pytest.mark.parametrize("tokens", [32, 512])
def test_gradient_checkpointing_gives_the_same_gradients(tokens: int) -> None:
    layer, x = many_experts(), random_tokens(tokens, 64).requires_grad_()
    plain = gradients(layer, layer(x))
    assert_same(gradients(layer, checkpoint(layer, x, use_reentrant=False)), plain)


def test_routing_callback_gets_every_token() -> None:
    layer, x = random_layer(), random_tokens(2, 3, 6)
    calls = list[tuple[Tensor, ...]]()
    layer.routing_callback = lambda *routing: calls.append(routing)
    layer(x)
    logits, chosen, share = calls[0]
    assert logits.shape == (6, 4)
    assert chosen.shape == share.shape == (6, 2)
    torch.testing.assert_close(share.sum(1), torch.ones(6))
    torch.testing.assert_close(logits, (x.flatten(0, 1) @ layer.router.T).abs())


def test_experts_on_a_conv1d() -> None:
    """GPT-2's linear layer, whose weight is transposed."""
    linear, x = random_layer(), random_tokens(2, 3, 6)
    conv = Conv1D(5, 6)
    conv.load_state_dict({"weight": linear.weight.T, "bias": linear.bias})
    parts = [getattr(linear, name).detach() for name in ("lora_A", "lora_B", "scale", "router")]
    layer = MoeLinear(conv, *parts, linear.routing)
    torch.testing.assert_close(layer(x), linear(x))
    assert_same(gradients(layer, layer(x)), gradients(linear, linear(x)))


def test_t5_reads_the_weight_of_layers() -> None:
    torch.manual_seed(0)
    sizes = {"d_model": 6, "d_ff": 8, "d_kv": 3, "num_heads": 2, "num_layers": 1, "vocab_size": 9}
    model = T5ForConditionalGeneration(T5Config(**sizes, decoder_start_token_id=0)).eval()
    ids = torch.tensor([[3, 4, 1]])
    before = model(ids, labels=ids).logits
    dense = model.encoder.block[0].layer[1].DenseReluDense
    A, B = torch.randn(2, 3, 8), torch.zeros(2, 6, 3)
    dense.wo = MoeLinear(dense.wo, A, B, torch.ones(2), torch.randn(2, 8), TokenRouting(1))
    assert torch.equal(model(ids, labels=ids).logits, before)


def test_copy_is_independent() -> None:
    layer, x = random_layer(), random_tokens(3, 6)
    before = layer(x)
    with torch.no_grad():
        copy.deepcopy(layer).lora_B.zero_()
    assert torch.equal(layer(x), before)
