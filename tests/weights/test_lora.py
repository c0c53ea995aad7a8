"""Adapters as changes to their base: numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import Checkpoint
from hubmerge.weights.lora import Dora, LowRank, Shift, Stretch
from hubmerge.weights.task_vector import TaskVector

from .adapters import put_adapter, put_base

f32 = np.float32
W = f32([[3, 4, 0], [0, 0, 2]])  # [O, I] = [2, 3]
A = f32([[1, 0, 2]])  # [R, I]
B = f32([[1], [-1]])  # [O, R]
Tensors = Mapping[str, np.ndarray]


def vector(tmp_path: Path, base: Tensors, adapter: Tensors, **config: Any) -> TaskVector:
    found = put_adapter(tmp_path / "a", adapter, **config)
    return TaskVector(put_base(tmp_path / "b", base), found)


def lora(module: str, a: np.ndarray = A, b: np.ndarray = B) -> dict[str, np.ndarray]:
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}


def test_low_rank_change(tmp_path: Path) -> None:
    found = vector(tmp_path, {"q.weight": W, "q.bias": W[0]}, lora("q"), lora_alpha=3)
    assert found.delta("q.weight").tolist() == [[3, 0, 6], [-3, 0, -6]]
    assert found.delta("q.bias").tolist() == [0, 0, 0]
    assert found.delta("q.weight").dtype == f32


@pytest.mark.parametrize(
    ("rank", "rslora", "scale"), [(1, False, 6), (4, False, 1.5), (4, True, 3)]
)
def test_scale(rank: int, rslora: int, scale: float, tmp_path: Path) -> None:
    a, b = np.zeros((rank, 3), f32), np.zeros((2, rank), f32)
    a[0, 1], b[1, 0] = 1, 1
    config = {"r": rank, "lora_alpha": 6, "use_rslora": bool(rslora)}
    found = vector(tmp_path, {"q.weight": W}, lora("q", a, b), **config)
    assert found.delta("q.weight").tolist() == [[0, 0, 0], [0, scale, 0]]


def test_scale_by_pattern_is_that_of_the_first_that_matches(tmp_path: Path) -> None:
    base = {f"h.{i}.{name}.weight": W for i in range(2) for name in ("q", "qq")}
    tensors = {k: v for name in base for k, v in lora(name.removesuffix(".weight")).items()}
    patterns = {"0.q": 10, "q": 20, r"h\.\d\.(q|qq)": 30}
    found = vector(tmp_path, base, tensors, alpha_pattern=patterns)
    scales = {name: found.delta(name)[0, 0] for name in base}
    # "q" must begin a part of the name: it is no match for qq.
    assert scales == {
        "h.0.q.weight": 10, "h.1.q.weight": 20, "h.0.qq.weight": 30, "h.1.qq.weight": 30
    }  # fmt: skip


def test_inputs_first_where_shapes_say_so(tmp_path: Path) -> None:
    found = vector(tmp_path, {"q.weight": W.T.copy()}, lora("q"), fan_in_fan_out=False)
    assert found.delta("q.weight").tolist() == [[1, -1], [0, 0], [2, -2]]
    assert found.delta("q.weight").flags.c_contiguous


@pytest.mark.parametrize("flag", [False, True])
def test_a_square_goes_by_the_flag(flag: bool, tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    found = vector(tmp_path, {"q.weight": square}, lora("q", one, B), fan_in_fan_out=flag)
    straight = np.array([[0, 1], [0, -1]])
    assert found.delta("q.weight").tolist() == (straight.T if flag else straight).tolist()


def test_a_square_goes_by_its_kin_rather_than_by_the_flag(tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    base = {"attn.c_proj.weight": square, "mlp.c_proj.weight": np.zeros((3, 2), f32)}
    base["mlp.c_proj.bias"] = np.zeros(2, f32)  # the outputs of the kin are its columns
    found = vector(tmp_path, base, lora("attn.c_proj", one, B), fan_in_fan_out=False)
    assert found.delta("attn.c_proj.weight").tolist() == [[0, 0], [1, -1]]


def test_a_square_beside_the_other_kind_is_not_guessed(tmp_path: Path) -> None:
    square, one = np.zeros((2, 2), f32), f32([[0, 1]])
    base = {"q.weight": square, "c.weight": W.T.copy()}
    found = vector(tmp_path, base, {**lora("q", one, B), **lora("c")}, fan_in_fan_out=False)
    with pytest.raises(CheckpointError, match=r"inputs or outputs come first in .*\(q.weight\)"):
        found.delta("q.weight")


def test_embedding_is_a_table_of_its_inputs(tmp_path: Path) -> None:
    square = np.zeros((2, 2), f32)
    tensors = {"wte.lora_embedding_A": f32([[0, 1]]), "wte.lora_embedding_B": B}
    found = vector(tmp_path, {"wte.weight": square}, tensors, fan_in_fan_out=False)
    assert found.delta("wte.weight").tolist() == [[0, 0], [1, -1]]


def test_dora_gives_each_output_its_length(tmp_path: Path) -> None:
    # Rows of W + BA are (4, 4, 2), of length 6, and (-1, 0, 0), of length 1.
    tensors = {**lora("q"), "q.lora_magnitude_vector": f32([3, 5])}
    found = vector(tmp_path, {"q.weight": W}, tensors, use_dora=True)
    assert (W + found.delta("q.weight")).tolist() == [[2, 2, 1], [-5, 0, 0]]


def test_dora_of_inputs_first_and_of_an_embedding(tmp_path: Path) -> None:
    turned = {"c.weight": W.T.copy(), "wte.weight": W.T.copy()}
    magnitude = f32([3, 5])
    tensors = {
        **lora("c"), "c.lora_magnitude_vector": magnitude,
        "wte.lora_embedding_A": A, "wte.lora_embedding_B": B,
        "wte.lora_magnitude_vector.weight": magnitude,  # as peft named it for a while
    }  # fmt: skip
    found = vector(tmp_path, turned, tensors, use_dora=True)
    for name in turned:
        assert (W.T + found.delta(name)).tolist() == [[2, -5], [2, 0], [1, 0]]


def test_bias_of_b_is_scaled_and_saved_tensors_take_the_place_of_the_base(tmp_path: Path) -> None:
    base = {"q.weight": W, "q.bias": f32([1, 1]), "k.bias": f32([1, 1]), "head.weight": W}
    tensors = {
        **lora("q"), "q.lora_B.bias": f32([2, 0]),
        "k.bias": f32([4, 1]), "head.weight": W, "head.original_module.weight": W + 9,
    }  # fmt: skip
    found = vector(tmp_path, base, tensors, lora_bias=True, lora_alpha=2, bias="all")
    assert found.delta("q.bias").tolist() == [4, 0]
    assert found.delta("k.bias").tolist() == [3, 0]
    assert not found.delta("head.weight").any()


def test_a_change_is_to_what_is_saved_beside_it(tmp_path: Path) -> None:
    tensors = {**lora("q"), "q.base_layer.weight": W + 1, "q.lora_magnitude_vector": f32([6, 1])}
    found = vector(tmp_path, {"q.weight": W}, tensors, use_dora=True)
    moved = W + 1 + B @ A
    lengths = np.linalg.norm(moved, axis=1, keepdims=True)
    wanted = moved / lengths * f32([[6], [1]])
    np.testing.assert_allclose(W + found.delta("q.weight"), wanted, rtol=1e-6)


def test_attention_has_one_matrix_for_three_and_its_out_proj_counts_twice(tmp_path: Path) -> None:
    base = {
        "attn.in_proj_weight": np.zeros((6, 2), f32),
        "attn.out_proj.weight": np.zeros((2, 2), f32),
    }
    a, b = f32([[0, 1]]), f32([[1], [2], [3], [4], [5], [6]])
    tensors = {**lora("attn", a, b), **lora("attn.base_layer.out_proj", a, B)}
    found = vector(tmp_path, base, tensors, alpha_pattern={"attn": 10, "out_proj": 100})
    assert found.delta("attn.in_proj_weight")[:, 1].tolist() == [10, 20, 30, 40, 50, 60]
    assert found.delta("attn.out_proj.weight").tolist() == [[0, 20], [0, -20]]


@pytest.mark.parametrize("turned", [False, True])
def test_ia3_stretches_outputs_or_inputs(turned: bool, tmp_path: Path) -> None:
    weight = W.T.copy() if turned else W
    base = {f"{name}.{kind}": v for name in "kw" for kind, v in (("weight", weight),)}
    base |= {"k.bias": f32([1, 2]), "w.bias": f32([1, 2])}
    tensors = {"k.ia3_l": f32([[2], [0.5]]), "w.ia3_l": f32([[1, 3, 0]])}
    found = vector(tmp_path, base, tensors, peft_type="IA3")
    changed = {name: base[name] + found.delta(name) for name in base}
    outputs, inputs = f32([[6, 8, 0], [0, 0, 1]]), f32([[3, 12, 0], [0, 0, 0]])
    assert changed["k.weight"].tolist() == (outputs.T if turned else outputs).tolist()
    assert changed["k.bias"].tolist() == [2, 1]
    assert changed["w.weight"].tolist() == (inputs.T if turned else inputs).tolist()
    assert not found.delta("w.bias").any()


def test_ia3_of_one_output_or_one_input(tmp_path: Path) -> None:
    base = {"score.weight": f32([[1, 2]]), "score.bias": f32([4]), "up.weight": f32([[1], [2]])}
    base["up.bias"] = f32([1, 1])
    tensors = {"score.ia3_l": f32([[3]]), "up.ia3_l": f32([[3]])}
    found = vector(tmp_path, base, tensors, peft_type="IA3", feedforward_modules=["up"])
    assert found.delta("score.weight").tolist() == [[2, 4]]
    assert found.delta("score.bias").tolist() == [8]
    assert found.delta("up.weight").tolist() == [[2], [4]]
    assert not found.delta("up.bias").any()


def test_precision_is_that_of_a_full_expert(tmp_path: Path) -> None:
    fine = {"d.weight": W.astype(np.float64), "h.weight": W.astype(ml_dtypes.bfloat16)}
    half = A.astype(ml_dtypes.bfloat16), (B / 3).astype(np.float16)
    found = vector(tmp_path, fine, {**lora("d", *half), **lora("h", *half)})
    assert found.delta("d.weight").dtype == np.float64
    assert found.delta("h.weight").dtype == f32
    third = float(np.float16(1 / 3))
    assert found.delta("d.weight")[0].tolist() == [third, 0, 2 * third]
    assert found.delta("h.weight")[0].tolist() == [third, 0, 2 * third]


def test_zero_is_exactly_zero_and_nothing_is_read_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = {"q.weight": W, "mask": f32([0, -np.inf, np.nan])}
    found = vector(tmp_path, base, lora("q", A, np.zeros_like(B)))
    mask = found.base.read("mask")
    assert not found.delta("q.weight").any()
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    assert found.delta_from(mask, "mask").tolist() == [0, 0, 0]


def test_whole_numbers_agree_unless_the_adapter_says_otherwise(tmp_path: Path) -> None:
    base = {"head.weight": W, "head.seen": np.array([3]), "ids": np.array([1, 2])}
    tensors = {"head.weight": W + 1, "head.seen": np.array([4])}
    found = vector(tmp_path, base, tensors)
    assert found.agrees("ids")
    assert not found.agrees("head.seen")


def test_what_overflows_is_infinite_and_silent(tmp_path: Path) -> None:
    found = vector(tmp_path, {"q.weight": W}, lora("q", A * f32(1e38)), lora_alpha=1e300)
    assert np.isinf(found.delta("q.weight")[0, 0])


def test_a_base_is_no_adapter(tmp_path: Path) -> None:
    adapter = put_adapter(tmp_path / "a", lora("q"))
    with pytest.raises(CheckpointError, match="is an adapter, and a base is a whole") as caught:
        TaskVector(adapter, adapter)
    assert "--base" in caught.value.hint


def cases() -> st.SearchStrategy[tuple[int, int, int, float, int]]:
    sizes = st.integers(1, 5)
    return st.tuples(sizes, sizes, sizes, st.floats(-64, 64, width=32), st.integers(0, 99))


@given(cases(), st.booleans())
@settings(deadline=None)
def test_any_rank_scale_and_side(case: tuple[int, int, int, float, int], turned: bool) -> None:
    """The change is scale * B A whatever the sizes; turned, its transpose; its rank at most R."""
    outputs, inputs, rank, scale, seed = case
    generator = np.random.default_rng(seed)
    held = {
        "a": generator.integers(-4, 5, (rank, inputs)).astype(f32),
        "b": generator.integers(-4, 5, (outputs, rank)).astype(f32),
        "m": generator.uniform(1, 2, outputs).astype(f32),
    }
    weight = generator.integers(1, 9, (outputs, inputs)).astype(f32)
    weight = weight.T.copy() if turned else weight
    read = {name: values.copy() for name, values in held.items()}.__getitem__
    product = LowRank("a", "b", scale, turned)
    wanted = sum(np.multiply.outer(held["b"][:, r], held["a"][r]) for r in range(rank)) * f32(scale)
    found = product.delta(weight, read)
    np.testing.assert_allclose(found.T if turned else found, wanted, rtol=1e-6, atol=1e-5)
    assert found.shape == weight.shape
    assert found.flags.c_contiguous
    assert np.linalg.matrix_rank(found) <= min(rank, outputs, inputs)
    moved = weight + Dora(product, "m").delta(weight, read)
    if np.linalg.norm(weight + found, axis=0 if turned else 1).min() > 1e-3:
        lengths = np.linalg.norm(moved, axis=0 if turned else 1)
        np.testing.assert_allclose(lengths, held["m"], rtol=1e-2 if abs(scale) > 8 else 1e-4)


@given(st.integers(1, 6), st.integers(0, 99))
def test_stretch_and_shift_of_nothing_change_nothing(size: int, seed: int) -> None:
    weight = np.random.default_rng(seed).normal(size=(size, 3)).astype(f32)
    ones = {"v": np.ones((size, 1), f32), "b": np.zeros(size, f32)}
    assert not Stretch("v", 0).delta(weight, ones.__getitem__).any()
    assert not Shift("b", 5.0).delta(weight[:, 0], ones.__getitem__).any()
