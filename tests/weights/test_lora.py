"""Adapters as changes to their base, with numbers computed by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.lora import BiasChange, Dora, Ia3, LowRank
from hubmerge.weights.task_vector import TaskVector

from .adapters import save_adapter, write_base

f32 = np.float32
W = f32([[3, 4, 0], [0, 0, 2]])  # [O, I] = [2, 3]
A = f32([[1, 0, 2]])  # [R, I]
B = f32([[1], [-1]])  # [O, R]
Tensors = Mapping[str, np.ndarray]


def write_vector(tmp_path: Path, base: Tensors, adapter: Tensors, **config: Any) -> TaskVector:
    checkpoint = save_adapter(tmp_path / "a", adapter, **config)
    return TaskVector(write_base(tmp_path / "b", base), checkpoint)


def lora_tensors(module: str, a: np.ndarray = A, b: np.ndarray = B) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def test_low_rank_change(tmp_path: Path) -> None:
    vector = write_vector(
        tmp_path, {"q.weight": W, "q.bias": W[0]}, lora_tensors("q"), lora_alpha=3
    )
    assert vector.delta("q.weight").tolist() == [[3, 0, 6], [-3, 0, -6]]
    assert vector.delta("q.bias").tolist() == [0, 0, 0]
    assert vector.delta("q.weight").dtype == f32


@pytest.mark.parametrize(
    ("rank", "rslora", "scale"), [(1, False, 6), (4, False, 1.5), (4, True, 3)]
)
def test_scale(rank: int, rslora: int, scale: float, tmp_path: Path) -> None:
    a, b = np.zeros((rank, 3), f32), np.zeros((2, rank), f32)
    a[0, 1], b[1, 0] = 1, 1
    config = {"r": rank, "lora_alpha": 6, "use_rslora": bool(rslora)}
    vector = write_vector(tmp_path, {"q.weight": W}, lora_tensors("q", a, b), **config)
    assert vector.delta("q.weight").tolist() == [[0, 0, 0], [0, scale, 0]]


def test_scale_by_pattern_is_that_of_the_first_that_matches(tmp_path: Path) -> None:
    base = {f"h.{i}.{name}.weight": W for i in range(2) for name in ("q", "qq")}
    tensors = {k: v for name in base for k, v in lora_tensors(name.removesuffix(".weight")).items()}
    patterns = {"0.q": 10, "q": 20, r"h\.\d\.(q|qq)": 30}
    vector = write_vector(tmp_path, base, tensors, alpha_pattern=patterns)
    scales = {name: vector.delta(name)[0, 0] for name in base}
    # "q" must begin a part of the name: it does not match qq.
    assert scales == {
        "h.0.q.weight": 10, "h.1.q.weight": 20, "h.0.qq.weight": 30, "h.1.qq.weight": 30
    }  # fmt: skip


def test_inputs_first_follows_from_shapes(tmp_path: Path) -> None:
    vector = write_vector(
        tmp_path, {"q.weight": W.T.copy()}, lora_tensors("q"), fan_in_fan_out=False
    )
    assert vector.delta("q.weight").tolist() == [[1, -1], [0, 0], [2, -2]]
    assert vector.delta("q.weight").flags.c_contiguous


@pytest.mark.parametrize("flag", [False, True])
def test_square_matrix_follows_fan_in_fan_out(flag: bool, tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    vector = write_vector(
        tmp_path, {"q.weight": square}, lora_tensors("q", one, B), fan_in_fan_out=flag
    )
    straight = np.array([[0, 1], [0, -1]])
    assert vector.delta("q.weight").tolist() == (straight.T if flag else straight).tolist()


def test_square_matrix_follows_modules_of_the_same_name(tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    base = {"attn.c_proj.weight": square, "mlp.c_proj.weight": np.zeros((3, 2), f32)}
    base["mlp.c_proj.bias"] = np.zeros(2, f32)  # its outputs are columns
    vector = write_vector(tmp_path, base, lora_tensors("attn.c_proj", one, B), fan_in_fan_out=False)
    assert vector.delta("attn.c_proj.weight").tolist() == [[0, 0], [1, -1]]


def test_ambiguous_square_matrix_is_an_error(tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    base = {"q.weight": square, "c.weight": W.T.copy()}
    vector = write_vector(
        tmp_path, base, {**lora_tensors("q", one, B), **lora_tensors("c")}, fan_in_fan_out=False
    )
    with pytest.raises(CheckpointError, match=r"inputs or outputs come first in .*\(q.weight\)"):
        vector.delta("q.weight")


def test_embedding_has_inputs_first(tmp_path: Path) -> None:
    square = np.zeros((2, 2), f32)
    tensors = {"wte.lora_embedding_A": f32([[0, 1]]), "wte.lora_embedding_B": B}
    vector = write_vector(tmp_path, {"wte.weight": square}, tensors, fan_in_fan_out=False)
    assert vector.delta("wte.weight").tolist() == [[0, 0], [1, -1]]


def test_dora_scales_outputs_to_their_magnitudes(tmp_path: Path) -> None:
    # Rows of W + BA are (4, 4, 2), of length 6, and (-1, 0, 0), of length 1.
    tensors = {**lora_tensors("q"), "q.lora_magnitude_vector": f32([3, 5])}
    vector = write_vector(tmp_path, {"q.weight": W}, tensors, use_dora=True)
    assert (W + vector.delta("q.weight")).tolist() == [[2, 2, 1], [-5, 0, 0]]


def test_dora_with_inputs_first_and_of_an_embedding(tmp_path: Path) -> None:
    turned = {"c.weight": W.T.copy(), "wte.weight": W.T.copy()}
    magnitude = f32([3, 5])
    tensors = {
        **lora_tensors("c"), "c.lora_magnitude_vector": magnitude,
        "wte.lora_embedding_A": A, "wte.lora_embedding_B": B,
        "wte.lora_magnitude_vector.weight": magnitude,  # as peft named it for a while
    }  # fmt: skip
    vector = write_vector(tmp_path, turned, tensors, use_dora=True)
    for name in turned:
        assert (W.T + vector.delta(name)).tolist() == [[2, -5], [2, 0], [1, 0]]


def test_bias_of_b_is_scaled_and_saved_tensors_replace_the_base(tmp_path: Path) -> None:
    base = {"q.weight": W, "q.bias": f32([1, 1]), "k.bias": f32([1, 1]), "head.weight": W}
    tensors = {
        **lora_tensors("q"), "q.lora_B.bias": f32([2, 0]),
        "k.bias": f32([4, 1]), "head.weight": W, "head.original_module.weight": W + 9,
    }  # fmt: skip
    vector = write_vector(tmp_path, base, tensors, lora_bias=True, lora_alpha=2, bias="all")
    assert vector.delta("q.bias").tolist() == [4, 0]
    assert vector.delta("k.bias").tolist() == [3, 0]
    assert not vector.delta("head.weight").any()


def test_change_applies_to_the_saved_tensor(tmp_path: Path) -> None:
    tensors = {
        **lora_tensors("q"),
        "q.base_layer.weight": W + 1,
        "q.lora_magnitude_vector": f32([6, 1]),
    }
    vector = write_vector(tmp_path, {"q.weight": W}, tensors, use_dora=True)
    moved = W + 1 + B @ A
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    wanted = moved / lengths * f32([[6], [1]])
    np.testing.assert_allclose(W + vector.delta("q.weight"), wanted, rtol=1e-6)


def test_fused_attention_and_out_proj_that_counts_twice(tmp_path: Path) -> None:
    base = {
        "attn.in_proj_weight": np.zeros((6, 2), f32),
        "attn.out_proj.weight": np.zeros((2, 2), f32),
    }
    a, b = f32([[0, 1]]), f32([[1], [2], [3], [4], [5], [6]])
    tensors = {**lora_tensors("attn", a, b), **lora_tensors("attn.base_layer.out_proj", a, B)}
    vector = write_vector(tmp_path, base, tensors, alpha_pattern={"attn": 10, "out_proj": 100})
    assert vector.delta("attn.in_proj_weight")[:, 1].tolist() == [10, 20, 30, 40, 50, 60]
    assert vector.delta("attn.out_proj.weight").tolist() == [[0, 20], [0, -20]]


@pytest.mark.parametrize("inputs_first", [False, True])
def test_ia3_scales_outputs_or_inputs(inputs_first: bool, tmp_path: Path) -> None:
    weight = W.T.copy() if inputs_first else W
    base = {f"{name}.{kind}": v for name in "kw" for kind, v in (("weight", weight),)}
    base |= {"k.bias": f32([1, 2]), "w.bias": f32([1, 2])}
    tensors = {"k.ia3_l": f32([[2], [0.5]]), "w.ia3_l": f32([[1, 3, 0]])}
    vector = write_vector(tmp_path, base, tensors, peft_type="IA3")
    changed = {name: base[name] + vector.delta(name) for name in base}
    outputs, inputs = f32([[6, 8, 0], [0, 0, 1]]), f32([[3, 12, 0], [0, 0, 0]])
    assert changed["k.weight"].tolist() == (outputs.T if inputs_first else outputs).tolist()
    assert changed["k.bias"].tolist() == [2, 1]
    assert changed["w.weight"].tolist() == (inputs.T if inputs_first else inputs).tolist()
    assert not vector.delta("w.bias").any()


def test_ia3_of_one_output_or_one_input(tmp_path: Path) -> None:
    base = {"score.weight": f32([[1, 2]]), "score.bias": f32([4]), "up.weight": f32([[1], [2]])}
    base["up.bias"] = f32([1, 1])
    tensors = {"score.ia3_l": f32([[3]]), "up.ia3_l": f32([[3]])}
    vector = write_vector(tmp_path, base, tensors, peft_type="IA3", feedforward_modules=["up"])
    assert vector.delta("score.weight").tolist() == [[2, 4]]
    assert vector.delta("score.bias").tolist() == [8]
    assert vector.delta("up.weight").tolist() == [[2], [4]]
    assert not vector.delta("up.bias").any()


def test_dtype_of_the_delta_follows_the_base(tmp_path: Path) -> None:
    fine = {"d.weight": W.astype(np.float64), "h.weight": W.astype(ml_dtypes.bfloat16)}
    half = A.astype(ml_dtypes.bfloat16), (B / 3).astype(np.float16)
    vector = write_vector(tmp_path, fine, {**lora_tensors("d", *half), **lora_tensors("h", *half)})
    assert vector.delta("d.weight").dtype == np.float64
    assert vector.delta("h.weight").dtype == f32
    third = float(np.float16(1 / 3))
    assert vector.delta("d.weight")[0].tolist() == [third, 0, 2 * third]
    assert vector.delta("h.weight")[0].tolist() == [third, 0, 2 * third]


def test_unchanged_tensor_is_exactly_zero_without_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"q.weight": W, "mask": f32([0, -np.inf, np.nan])}
    vector = write_vector(tmp_path, base, lora_tensors("q", A, np.zeros_like(B)))
    mask = vector.base.read("mask")
    assert not vector.delta("q.weight").any()
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    assert vector.delta_from(mask, "mask").tolist() == [0, 0, 0]


def test_integer_tensors_match_unless_the_adapter_replaces_them(tmp_path: Path) -> None:
    base = {"head.weight": W, "head.seen": np.array([3]), "ids": np.array([1, 2])}
    tensors = {"head.weight": W + 1, "head.seen": np.array([4])}
    vector = write_vector(tmp_path, base, tensors)
    assert vector.matches_base("ids")
    assert not vector.matches_base("head.seen")


def test_overflow_gives_inf_without_a_warning(tmp_path: Path) -> None:
    vector = write_vector(
        tmp_path, {"q.weight": W}, lora_tensors("q", A * f32(1e38)), lora_alpha=1e300
    )
    assert np.isinf(vector.delta("q.weight")[0, 0])


def test_adapter_is_not_a_base(tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "a", lora_tensors("q"))
    with pytest.raises(CheckpointError, match="is an adapter, and a base must be a full") as caught:
        TaskVector(adapter, adapter)
    assert "--base" in caught.value.hint


def cases() -> st.SearchStrategy[tuple[int, int, int, float, int]]:
    sizes = st.integers(1, 5)
    return st.tuples(sizes, sizes, sizes, st.floats(-64, 64, width=32), st.integers(0, 99))


@given(cases(), st.booleans())
def test_any_rank_scale_and_orientation(
    case: tuple[int, int, int, float, int], inputs_first: bool
) -> None:
    """The change is scale * B A for any sizes, or its transpose; its rank is at most R."""
    outputs, inputs, rank, scale, seed = case
    generator = np.random.default_rng(seed)
    tensors = {
        "a": generator.integers(-4, 5, (rank, inputs)).astype(f32),
        "b": generator.integers(-4, 5, (outputs, rank)).astype(f32),
        "m": generator.uniform(1, 2, outputs).astype(f32),
    }
    weight = generator.integers(1, 9, (outputs, inputs)).astype(f32)
    weight = weight.T.copy() if inputs_first else weight
    read = {name: values.copy() for name, values in tensors.items()}.__getitem__
    product = LowRank("a", "b", scale, inputs_first)
    expected = sum(
        np.multiply.outer(tensors["b"][:, r], tensors["a"][r]) for r in range(rank)
    ) * f32(scale)
    delta = product.delta(weight, read)
    np.testing.assert_allclose(delta.T if inputs_first else delta, expected, rtol=1e-6, atol=1e-5)
    assert delta.shape == weight.shape
    assert delta.flags.c_contiguous
    assert np.linalg.matrix_rank(delta) <= min(rank, outputs, inputs)
    scaled = weight + Dora(product, "m").delta(weight, read)
    if np.linalg.norm(weight + delta, axis=0 if inputs_first else 1).min() > 1e-3:
        lengths = np.linalg.norm(scaled, axis=0 if inputs_first else 1)
        np.testing.assert_allclose(lengths, tensors["m"], rtol=1e-2 if abs(scale) > 8 else 1e-4)


@given(st.integers(1, 6), st.integers(0, 99))
def test_neutral_ia3_and_bias_change_nothing(size: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(size, 3)).astype(f32)
    ones = {"v": np.ones((size, 1), f32), "b": np.zeros(size, f32)}
    assert not Ia3("v", 0).delta(weight, ones.__getitem__).any()
    assert not BiasChange("b", 5.0).delta(weight[:, 0], ones.__getitem__).any()
