"""Softening task vectors before a method sees them: by hand, and compared with brute force."""

from __future__ import annotations

import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.numpy import save_file

from hubmerge.errors import UsageError
from hubmerge.merging.deltas import Deltas
from hubmerge.merging.engine import merge
from hubmerge.merging.plan import Expert, MergePlan, canonical, check_plan
from hubmerge.merging.registry import method, parse_params
from hubmerge.merging.softening import (
    TOP_VECTORS,
    ExpertPasses,
    Softening,
    find_intruders,
    survey_softening,
)
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.adapters import save_adapter

from .builders import write_models

SaveModels = Callable[..., Callable[..., Any]]
Tensors = dict[str, np.ndarray]
f32, f64 = np.float32, np.float64
METHODS = ["average", "task_arithmetic", "ties", "dare"]


def with_options(plan: MergePlan, **options: Any) -> MergePlan:
    """The plan with options of every expert set, one value per expert."""
    columns = zip(*options.values(), strict=True)
    experts = zip(plan.experts, columns, strict=True)
    return replace(
        plan,
        experts=tuple(replace(e, **dict(zip(options, row, strict=True))) for e, row in experts),
    )


def passes_over(
    deltas: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray] | None = None
) -> ExpertPasses:
    """Passes over arrays in memory."""
    bases = base or {name: np.zeros_like(delta) for name, delta in deltas.items()}
    return lambda: [(name, delta, bases[name]) for name, delta in deltas.items()]


def soften_all(
    deltas: Tensors, keep: float = 1.0, intruders: float = 1.0, base: Any = None
) -> Tensors:
    softening = survey_softening(passes_over(deltas, base), keep, intruders)
    return {name: softening.soften(name, delta) for name, delta in deltas.items()}


def read_bytes(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}


def heavy_tailed(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape) ** 3, f32)


# Nothing to soften


def test_factors_of_1_need_no_pass_and_change_nothing() -> None:
    softening = survey_softening(lambda: pytest.fail("a pass was made"), 1.0, 1.0)
    delta = heavy_tailed(3, 4)
    assert softening.soften("a", delta) is delta


@pytest.mark.parametrize("name", METHODS)
def test_factors_of_1_need_no_survey_in_the_engine(
    name: str, save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"a": heavy_tailed(4, 5)}, {"a": heavy_tailed(4, 5, seed=1)})(name)
    stages = set()
    merge(plan, tmp_path / "out", progress=lambda stage, *_: stages.add(stage))
    assert not {stage for stage in stages if stage.startswith("soften")}


# keep


@pytest.mark.parametrize("keep", [1e-9, 0.01, 0.3, 0.5, 0.999])
def test_keep_selects_the_largest_changes_of_the_model(keep: float) -> None:
    deltas = {
        "a": heavy_tailed(31, 7),
        "still": np.zeros((50, 50), f32),
        "b": heavy_tailed(13, seed=1) / 100,
    }
    softened = soften_all(deltas, keep)
    all_changes = np.concatenate([deltas["a"].reshape(-1), deltas["b"]])
    count = int(all_changes.size * keep) + 1  # as in the authors' TIES
    expected = np.zeros_like(all_changes)
    largest = np.argsort(-np.abs(all_changes), kind="stable")[:count]
    expected[largest] = all_changes[largest]
    assert (np.concatenate([softened["a"].reshape(-1), softened["b"]]) == expected).all()
    assert not softened["still"].any()


def test_keep_by_hand_in_the_engine_for_each_expert(
    save_models: SaveModels, tmp_path: Path
) -> None:
    zero = {"a": f32([0, 0, 0, 0]), "b": f32([0, 0, 0, 0])}
    plan = save_models(
        zero,
        {"a": f32([1, -8, 2, 3]), "b": f32([7, 4, -5, 6])},
        {"a": f32([10, 20, 30, 40]), "b": f32([0, 0, 0, 0])},  # b does not count
    )("task_arithmetic", [1.0, 0.5])
    merged = merge(with_options(plan, keep=[0.3, 0.25]), tmp_path / "out")
    # int(8 * 0.3) + 1 = 3 of the first: -8, 7, 6; int(4 * 0.25) + 1 = 2 of the second: 30, 40.
    assert merged.read("a").tolist() == [0, -8, 15, 20]
    assert merged.read("b").tolist() == [7, 0, 0, 6]


def test_keep_then_task_arithmetic_equals_the_trim_of_ties(
    save_models: SaveModels, tmp_path: Path
) -> None:
    """With one expert, TIES only trims."""
    base = {"a": heavy_tailed(20, 30), "b": heavy_tailed(50)}
    plan = save_models(base, {name: v + heavy_tailed(*v.shape, seed=1) for name, v in base.items()})
    ours = merge(with_options(plan("task_arithmetic"), keep=[0.2]), tmp_path / "ours")
    ties = merge(plan("ties", density=0.2), tmp_path / "ties")
    assert read_bytes(ours) == read_bytes(ties)


def test_completely_trimmed_tensor_is_the_base_bit_for_bit(
    save_models: SaveModels, tmp_path: Path
) -> None:
    base = {"a": f32([-0.0, 1e-3, 5]), "b": f32([1, 1, 1])}
    plan = save_models(base, {"a": base["a"] + f32(1e-4), "b": f32([2, 3, 4])})("average")
    merged = merge(with_options(plan, keep=[0.4]), tmp_path / "out")
    assert merged.read("a").tobytes() == base["a"].tobytes()
    assert merged.read("b").tolist() == [2, 3, 4]


DELTAS = st.fixed_dictionaries(
    {
        name: arrays(f32, shape, elements=st.floats(-8, 8, width=16).map(f32))
        for name, shape in {"a": (3, 4), "b": (5,), "c": ()}.items()
    }
)
KEEP = st.floats(0.01, 0.99)


@given(DELTAS, KEEP)
def test_trimming_again_changes_nothing(deltas: Tensors, keep: float) -> None:
    softening = survey_softening(passes_over(deltas), keep, 1.0)
    once = {name: softening.soften(name, delta) for name, delta in deltas.items()}
    twice = {name: softening.soften(name, delta) for name, delta in once.items()}
    assert {n: v.tobytes() for n, v in once.items()} == {n: v.tobytes() for n, v in twice.items()}
    if all(once[name].any() == deltas[name].any() for name in deltas):  # ranked among as many
        again = soften_all(once, keep)
        assert all((again[name] == once[name]).all() for name in deltas)


@given(DELTAS, KEEP, KEEP)
def test_larger_fraction_keeps_all_of_a_smaller_one(
    deltas: Tensors, one: float, other: float
) -> None:
    few, more = soften_all(deltas, min(one, other)), soften_all(deltas, max(one, other))
    assert all((more[name][few[name] != 0] == few[name][few[name] != 0]).all() for name in deltas)


# intruders


def diagonal(*sizes: float) -> np.ndarray:
    """A matrix [6, 5] of these singular values along its axes."""
    matrix = np.zeros((6, 5), f32)
    np.fill_diagonal(matrix, sizes + (0,) * (5 - len(sizes)))
    return matrix


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.5, 0.75])
def test_one_intruder_by_hand(factor: float, save_models: SaveModels, tmp_path: Path) -> None:
    base, delta = diagonal(3, 2), np.zeros((6, 5), f32)
    delta[4, 3] = 8  # a direction that the base does not have
    delta[0, 0] = 1  # one that it has, stretched
    expected = delta.copy()
    expected[4, 3] *= factor
    softened = soften_all({"w": delta}, intruders=factor, base={"w": base})["w"]
    assert softened.dtype == f32
    assert (softened == expected).all()
    plan = save_models({"w": base}, {"w": base + delta})("average")
    result = merge(with_options(plan, intruders=[factor]), tmp_path / "out")
    assert (result.read("w") == base + expected).all()


def test_directions_of_the_base_are_not_intruders() -> None:
    base = heavy_tailed(6, 5)
    delta = (0.3 * base).astype(f32)
    softened = soften_all({"w": delta}, intruders=0.0, base={"w": base})["w"]
    assert softened is delta


@pytest.mark.parametrize(("cosine", "count"), [(0.59, 1), (0.61, 0), (-0.59, 1), (-0.61, 0)])
def test_cosine_threshold(cosine: float, count: int) -> None:
    base = np.zeros((2, 3))
    base[0, 0] = 1
    expert = np.outer([cosine, np.sqrt(1 - cosine**2)], [0, 5, 0])
    intruders = find_intruders(expert - base, base)
    assert (0 if intruders is None else intruders.left.shape[1]) == count


def test_only_the_largest_singular_vectors_are_examined() -> None:
    sizes = np.arange(20, 20 - TOP_VECTORS - 1, -1)
    base, delta = np.zeros((2, TOP_VECTORS + 2, TOP_VECTORS + 2))
    base[0, 0] = 0.5
    np.fill_diagonal(delta, [0, *sizes])
    softened = soften_all({"w": delta}, intruders=0.5, base={"w": base})["w"]
    assert np.diag(softened).tolist() == [0, *(sizes[:-1] / 2), sizes[-1]]


def test_singular_values_of_zero_have_no_direction() -> None:
    """SVD returns arbitrary vectors for them, in the base and in the expert."""
    base, delta = np.diag([3.0, 2, 0, 0]), np.diag([0, 0, 5.0, 0])
    intruders = find_intruders(delta, base)
    assert intruders is not None
    assert intruders.left.shape == (4, 1)
    assert (intruders.left @ intruders.right == delta).all()


@pytest.mark.parametrize("shape", [(), (12,), (3, 4, 2), (4, 3, 2, 2)])
def test_only_matrices_have_intruders(shape: tuple[int, ...]) -> None:
    assert find_intruders(heavy_tailed(*shape) + 9, np.zeros(shape, f32)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_values_are_not_softened(
    bad: float, save_models: SaveModels, tmp_path: Path
) -> None:
    base = {"w": diagonal(3, 2)}
    expert = {"w": base["w"].copy()}
    expert["w"][4, 3] = bad
    plan = save_models(base, expert)("average", allow_nonfinite=True)
    merged = merge(with_options(plan, keep=[0.5], intruders=[0.5]), tmp_path / "out")
    assert np.array_equal(merged.read("w")[4, 3], f32(bad), equal_nan=True)


def test_keep_and_intruders_are_independent() -> None:
    """Both are computed from the published change."""
    base, delta = diagonal(3, 2), np.zeros((6, 5), f32)
    delta[4, 3], delta[0, 0], delta[1, 1] = 8, 2, 1
    both = soften_all({"w": delta}, keep=0.05, intruders=0.125, base={"w": base})["w"]
    # int(30 * 0.05) + 1 = 2 are kept: also the intruder, although it is now the smallest of three.
    assert (both[4, 3], both[0, 0], both[1, 1]) == (1, 2, 0)
    assert np.count_nonzero(both) == 2


def test_another_factor_needs_no_new_survey() -> None:
    base, delta = heavy_tailed(40, 30), heavy_tailed(40, 30, seed=1)
    one = survey_softening(passes_over({"w": delta}, {"w": base}), 1.0, 0.5)
    assert one.intruders
    other = survey_softening(passes_over({"w": delta}, {"w": base}), 1.0, 0.25)
    same = replace(one, factor=0.25).soften("w", delta)
    assert same.tobytes() == other.soften("w", delta).tobytes()
    assert replace(one, factor=1.0).soften("w", delta) is delta


# Engine and memory, full experts and adapters


def write_family(root: Path) -> tuple[Callable[..., MergePlan], Checkpoint]:
    """A base, two full experts, and an adapter whose merged model is the second of them."""
    a, b = heavy_tailed(3, 24, seed=3), heavy_tailed(32, 3, seed=4)
    base = {"q.weight": heavy_tailed(32, 24), "bias": heavy_tailed(24, seed=1), "n": np.array([3])}
    first = {n: v if n == "n" else v + heavy_tailed(*v.shape, seed=2) / 4 for n, v in base.items()}
    second = {**base, "q.weight": base["q.weight"] + b @ a}
    factors = {"q.lora_A.weight": a, "q.lora_B.weight": b}
    adapter = save_adapter(root / "lora", factors, r=3, lora_alpha=3)
    return write_models(root, base, first, second), adapter


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., MergePlan]:
    """Plans of a full expert and an adapter, softened."""
    make_plan, adapter = write_family(tmp_path)

    def plan(name: str) -> MergePlan:
        full_plan = make_plan(name)
        lora = replace(full_plan.experts[1], checkpoint=adapter)
        plan = replace(full_plan, experts=(full_plan.experts[0], lora))
        return with_options(plan, weight=[1.0, 0.5], keep=[0.4, 0.9], intruders=[0.0, 0.5])

    return plan


def merge_in_memory(plan: MergePlan) -> Iterator[tuple[str, np.ndarray]]:
    """The same merge, with all arrays in memory at once."""
    plan = canonical(plan)
    names = plan.vectors[0].names()
    bases = {name: plan.base.read(name) for name in names}
    softened = []
    for expert, vector in zip(plan.experts, plan.vectors, strict=True):
        changes = {name: vector.delta(name) for name in names}
        softened.append(soften_all(changes, expert.keep, expert.intruders, bases))
    deltas = [
        Deltas(
            name,
            [delta[name] for delta in softened],
            tuple(expert.weight for expert in plan.experts),
            tuple(expert.sha for expert in plan.experts),
        )
        for name in names
    ]
    survey = plan.method.survey(lambda: deltas, plan.params) if plan.method.survey else None
    for delta in deltas:
        yield delta.tensor, bases[delta.tensor] + plan.method.combine(delta, plan.params, survey)


@pytest.mark.parametrize("name", METHODS)
def test_engine_equals_merge_in_memory_bit_for_bit(
    name: str, mixed: Callable[..., MergePlan], tmp_path: Path
) -> None:
    plan = mixed(name)
    merged = merge(plan, tmp_path / "out")
    for tensor, expected in merge_in_memory(plan):
        assert merged.read(tensor).tobytes() == expected.tobytes(), tensor
    plain = merge(with_options(plan, keep=[1.0, 1.0], intruders=[1.0, 1.0]), tmp_path / "plain")
    assert read_bytes(plain) != read_bytes(merged)


@pytest.mark.parametrize("options", [{"keep": [0.3, 0.3]}, {"intruders": [1.0, 0.25]}])
def test_adapter_is_softened_like_the_merged_model(
    options: dict[str, Any], mixed: Callable[..., MergePlan], tmp_path: Path
) -> None:
    plan = with_options(
        mixed("task_arithmetic"), **{"keep": [1.0, 1.0], "intruders": [1.0, 1.0], **options}
    )
    full_expert = replace(plan.experts[1], checkpoint=open_checkpoint(tmp_path / "e1"))
    ours = merge(plan, tmp_path / "ours")
    theirs = merge(replace(plan, experts=(plan.experts[0], full_expert)), tmp_path / "theirs")
    np.testing.assert_allclose(ours.read("q.weight"), theirs.read("q.weight"), rtol=1e-5, atol=1e-5)
    assert (ours.read("bias") == theirs.read("bias")).all()


@settings(max_examples=10)
@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(KEEP, st.sampled_from([0.0, 0.5, 1.0])), min_size=3, max_size=3),
)
def test_order_of_experts_changes_no_byte(name: str, options: list[tuple[float, float]]) -> None:
    """The same expert three times, softened in three ways: all have the same SHA."""
    with tempfile.TemporaryDirectory() as root:
        make_plan = write_models(
            Path(root), {"w": heavy_tailed(9, 8)}, *[{"w": heavy_tailed(9, 8, seed=1)}] * 3
        )
        keeps, factors = zip(*options, strict=True)
        plan = with_options(make_plan(name), sha=["0" * 40] * 3, keep=keeps, intruders=factors)
        orders = permutations(plan.experts)
        turned = (replace(plan, experts=experts) for experts in orders)
        results = {merge(p, Path(root) / f"{i}").digest() for i, p in enumerate(turned)}
        assert len(results) == 1


def test_peak_memory_is_a_few_tensors(tmp_path: Path) -> None:
    tensors, size = 30, 512 * 512
    for seed, folder in enumerate(("base", "e0")):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(seed)
        many = {f"t{i}": rng.random((512, 512), f32) for i in range(tensors)}
        save_file(many, tmp_path / folder / "model.safetensors")
    base, expert = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "e0")
    average = method("average")
    plan = MergePlan(base, (Expert(expert, "e0", keep=0.3),), average, parse_params(average, {}))
    tracemalloc.start()
    merge(plan, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The histograms of magnitudes are as large as two of these tensors.
    assert peak < 12 * 4 * size


# Invalid options


def test_all_invalid_options_are_reported_at_once(save_models: SaveModels) -> None:
    plan = save_models({"a": f32([0])}, {"a": f32([1])}, {"a": f32([2])})("ties")
    wrong = with_options(
        plan, weight=[1.0, float("nan")], keep=[0.0, float("nan")], intruders=[-0.1, 1.1]
    )
    with pytest.raises(UsageError) as caught:
        check_plan(wrong)
    assert caught.value.message.splitlines()[1:] == [
        "  - The weight of e1 is not a finite number.",
        "  - The keep of e0, e1 is not above 0 and at most 1.",
        "  - The intruders of e0, e1 is not from 0 to 1.",
    ]
    check_plan(with_options(plan, keep=[1e-9, 1.0], intruders=[0.0, 1.0]))


def test_default_softening_does_nothing() -> None:
    delta = heavy_tailed(3)
    assert Softening().soften("a", delta) is delta
