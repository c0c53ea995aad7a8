"""Merges by parts and several threads give the bytes of a merge tensor by tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hubmerge.errors import CheckpointError
from hubmerge.merging import bracket
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.merging.ties import threshold_rank
from hubmerge.merging.trim import kth_magnitudes
from hubmerge.weights.array_blocks import BLOCK_SIZE
from hubmerge.weights.dtypes import Array
from tests.merging.builders import draw_large, write_models
from tests.weights.adapters import PEFT, save_adapter, write_base

T = TypeVar("T")
METHODS = [
    ("average", {}),
    ("task_arithmetic", {"scale": 0.3}),
    ("dare", {"density": 0.3, "seed": 7}),
    ("dare", {"density": 0.3, "masks": 1}),
    ("dare", {"density": 0.3, "rescale": "l1"}),
    ("ties", {}),
    ("ties", {"scope": "all", "density": 0.7, "sign": "weighted"}),
    ("ties", {"trim": "tensor"}),
    ("ties_mergekit", {"density": 0.3}),
    ("breadcrumbs", {"density": 0.3, "gamma": 0.1}),
    ("breadcrumbs_ties", {"density": 0.3}),
    ("dare_ties", {"normalize": True}),
    ("della", {"density": 0.4, "epsilon": 0.1}),
    ("della_linear", {"density": 0.4, "rescale": "l1"}),
    ("sce", {"density": 0.2}),
    ("sce", {"density": 1}),
    ("multislerp", {}),
    ("multislerp", {"space": "changes"}),
    ("karcher", {}),
    ("model_stock", {}),
    ("model_stock", {"per": "row"}),
]


def by_tensor(plan: MergePlan) -> MergePlan:
    """The same merge with a method that gets whole tensors."""
    return replace(plan, method=replace(plan.method, parts=lambda params: "tensors"))


@pytest.mark.parametrize(("name", "params", "dtype"), [
    pytest.param(name, params, dtype,
                 marks=() if dtype is np.float32 or name == "ties" else pytest.mark.slow)
    for name, params in METHODS
    for dtype in (np.float32, np.float64, ml_dtypes.bfloat16)
])  # fmt: skip
def test_bytes_do_not_depend_on_parts_and_threads(
    name: str,
    params: dict[str, object],
    dtype: type,
    large_models: Callable[[type], Callable[..., MergePlan]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bracket, "_SAMPLE", 20_000)  # of many ranges, as in a larger model
    plan = large_models(dtype)(name, **params)
    expected = merge(by_tensor(plan), tmp_path / "whole").digest()
    for threads in (1, 3):
        assert merge(plan, tmp_path / f"{threads}", threads=threads).digest() == expected


@pytest.mark.parametrize(("name", "params"), METHODS)
def test_softened_experts(
    name: str,
    params: dict[str, object],
    large_models: Callable[[type], Callable[..., MergePlan]],
    tmp_path: Path,
) -> None:
    plan = large_models(np.float32)(name, **params)
    first, *others = plan.experts
    experts = (replace(first, keep=0.3, intruders=0.5), *others)
    plan = replace(plan, experts=experts)
    expected = merge(by_tensor(plan), tmp_path / "whole").digest()
    assert merge(plan, tmp_path / "parts", threads=2).digest() == expected


@pytest.mark.parametrize("inputs_first", [False, True])
@pytest.mark.parametrize(("name", "params"), [("average", {}), ("ties", {}), ("model_stock", {})])
def test_adapters(name: str, params: dict[str, object], inputs_first: bool, tmp_path: Path) -> None:
    """Rows of their products have the same bits whichever part they are in."""
    random = np.random.default_rng(2)

    def draw(*shape: int) -> Array:
        return random.normal(size=shape).astype(np.float32)

    base = write_base(tmp_path / "base", {"x.weight": draw(300, 700), "y.weight": draw(9)})
    inputs, outputs = (300, 700) if inputs_first else (700, 300)
    experts = tuple(
        Expert(
            save_adapter(
                tmp_path / f"e{number}",
                {"x.lora_A.weight": draw(3, inputs), "x.lora_B.weight": draw(outputs, 3)},
                r=3, lora_alpha=6, fan_in_fan_out=inputs_first,
            ),
            sha=str(number),
        )
        for number in range(2)
    )  # fmt: skip
    plan = MergePlan(base, experts, method(name), parse_params(method(name), params))
    expected = merge(by_tensor(plan), tmp_path / "whole").digest()
    for threads in (1, 3):
        assert merge(plan, tmp_path / f"{threads}", threads=threads).digest() == expected
    whole = plan.vectors[0].delta("x.weight")
    dense = 2 * (plan.vectors[0].expert.read(f"{PEFT}x.lora_B.weight").astype(np.float64)
                 @ plan.vectors[0].expert.read(f"{PEFT}x.lora_A.weight"))  # fmt: skip
    np.testing.assert_allclose(whole, dense.T if inputs_first else dense, rtol=0, atol=1e-5)


@pytest.mark.parametrize("negative", [False, True], ids=["few", "most"])
def test_the_majority_decides_where_changes_cancel(negative: bool, tmp_path: Path) -> None:
    """It is known only when all is merged: parts that took the wrong one are merged again."""
    base = {name: np.zeros(BLOCK_SIZE + 9, np.float32) for name in "ab"}
    first, second = ({name: base[name].copy() for name in "ab"} for _ in range(2))
    first["a"][:5], second["a"][:5] = 3, -3
    second["b"][:] = -1 if negative else 1
    plan = write_models(tmp_path, base, first, second)("ties", density=1.0)
    expected = merge(by_tensor(plan), tmp_path / "whole").digest()
    for threads in (1, 2):  # one thread merges "a" before it has counted any sign of "b"
        merged = merge(plan, tmp_path / f"{threads}", threads=threads)
        assert merged.digest() == expected
        assert merged.read("a")[:5].tolist() == [-3.0 if negative else 3.0] * 5


@pytest.fixture(scope="module")
def not_finite(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., MergePlan]:
    """A base and two experts: one of them has NaN, all have an infinity."""
    base, first, second = draw_large(np.dtype(np.float32), 2)
    first["large"][-1] = np.nan
    base["matrix"][0, 0] = first["matrix"][0, 0] = second["matrix"][0, 0] = np.inf
    return write_models(tmp_path_factory.mktemp("not-finite"), base, first, second)


@pytest.mark.parametrize(("name", "params"), METHODS)
@pytest.mark.parametrize("allowed", [False, True])
def test_values_that_are_not_finite(
    name: str,
    params: dict[str, object],
    allowed: bool,
    not_finite: Callable[..., MergePlan],
    tmp_path: Path,
) -> None:
    plan = not_finite(name, **params)
    plan = replace(plan, allow_nonfinite=allowed)
    if allowed:
        expected = merge(by_tensor(plan), tmp_path / "whole").digest()
        assert merge(plan, tmp_path / "parts", threads=2).digest() == expected
        return
    messages = []
    for chosen in (by_tensor(plan), plan):
        with pytest.raises(CheckpointError) as failed:
            merge(chosen, tmp_path / "out", threads=2)
        messages.append(failed.value.message)
    assert messages[0] == messages[1]
    assert "not finite" in messages[0]
    assert not (tmp_path / "out").exists()


@dataclass
class ListPasses:
    """Passes over arrays in memory: tensor by tensor one array for each expert."""

    tensors: Sequence[Sequence[Array]]

    def __call__(self) -> Iterator[Deltas]:
        for number, values in enumerate(self.tensors):
            ones = (1.0,) * len(values)
            yield Deltas(str(number), list(values), ones, ("",) * len(values))

    def map(self, function: Callable[[Deltas], T]) -> Iterator[T]:
        return (function(part) for deltas in self() for part in deltas.parts())

    def sample(self, count: int) -> Iterator[Deltas]:
        return (part for deltas in self() for part in deltas.parts())


def kept_of(density: float) -> Callable[[int], int]:
    return lambda count: count - threshold_rank(count, density) + 1


def by_counting(tensors: Iterable[Sequence[Array]], density: float) -> tuple[np.float32, ...]:
    changed = [values for values in tensors if any(array.any() for array in values)]
    return kth_magnitudes(lambda: changed, lambda count: threshold_rank(count, density))


values = st.sampled_from([0.0, -0.0, 1e-30, 0.1, -0.1, 0.1000001, 2.0, -3.0, 1e30])


@given(
    st.lists(st.lists(st.tuples(values, values), min_size=1, max_size=30), min_size=1, max_size=5),
    st.floats(0.01, 1.0),
)
def test_thresholds_are_exact(rows: list[list[tuple[float, float]]], density: float) -> None:
    tensors = [list(np.array(tensor, np.float32).T.copy()) for tensor in rows]
    found = bracket.find_thresholds(ListPasses(tensors), kept_of(density), only_changed=True)
    assert found == (by_counting(tensors, density) or (np.float32(0), np.float32(0)))


@pytest.mark.parametrize("density", [0.001, 0.2, 0.5, 0.999])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_thresholds_of_large_models(
    density: float, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with many equal values, which are counted together."""
    monkeypatch.setattr(bracket, "_MOST_COLLECTED", 1000)
    random = np.random.default_rng(1)
    tensors = [
        [(random.normal(size=100_000) * scale).astype(dtype).astype(np.float32) for _ in range(2)]
        for scale in (0.01, 1, 10)
    ]
    found = bracket.find_thresholds(ListPasses(tensors), kept_of(density), only_changed=True)
    assert found == by_counting(tensors, density)


class Misleading(ListPasses):
    """Passes whose sample has much larger changes than the model."""

    def sample(self, count: int) -> Iterator[Deltas]:
        return (replace(d, values=[v * 1000 for v in d.values]) for d in self())


class Unlucky(ListPasses):
    """Passes whose sample has none of the tensors that changed."""

    def sample(self, count: int) -> Iterator[Deltas]:
        return (replace(d, values=[v * 0 for v in d.values]) for d in self())


@pytest.mark.parametrize("passes", [Misleading, Unlucky])
def test_a_bracket_that_misses_is_noticed(passes: type[ListPasses]) -> None:
    draw = np.random.default_rng(2)
    tensors = [[draw.normal(size=size).astype(np.float32)] for size in (50_000, 70_000)]
    tensors.append([np.zeros(1000, np.float32)])  # not ranked, as nobody changed it
    found = bracket.find_thresholds(passes(tensors), kept_of(0.2), only_changed=True)
    assert found == by_counting(tensors, 0.2)


def test_a_bracket_with_too_many_values_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bracket, "_MOST_COLLECTED", 1000)
    monkeypatch.setattr(bracket, "_MOST_DIFFERENT", 1000)
    tensors = [[np.random.default_rng(3).normal(size=300_000).astype(np.float32)]]
    found = bracket.find_thresholds(ListPasses(tensors), kept_of(0.2), only_changed=True)
    assert found == by_counting(tensors, 0.2)


def test_rows_that_changed_unequally_widen_the_bracket() -> None:
    """As in products of a LoRA: ranges of neighbours are no sample of independent entries."""
    draw = np.random.default_rng(4)
    entries = draw.normal(size=(200, 512)).astype(np.float32)
    rows = entries * np.exp(draw.normal(size=(200, 1))).astype(np.float32)
    widths = []
    for values in (entries, rows):
        bits = np.abs(values).view(np.uint32).reshape(-1)
        found = bracket._bracket(bits, np.arange(0, bits.size, 512), kept_of(0.2))
        widths.append(np.count_nonzero((bits >= found.low) & (bits <= found.high)))
    assert widths[1] > 3 * widths[0]
