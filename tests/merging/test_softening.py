"""Task vectors made smaller before a method sees them, by hand and against brute force."""

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
from hubmerge.merging.plan import Expert, MergePlan, canonical, check
from hubmerge.merging.registry import method, parse_params
from hubmerge.merging.softening import (
    TOP,
    Softening,
    Walk,
    find_intruders,
    survey_softening,
)
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.adapters import put_adapter

from .worlds import make_world

World = Callable[..., Callable[..., Any]]
Tensors = dict[str, np.ndarray]
f32, f64 = np.float32, np.float64
METHODS = ["average", "task_arithmetic", "ties", "dare"]


def shared(plan: MergePlan, **shares: Any) -> MergePlan:
    """The plan with a share of every expert set, one value each."""
    columns = zip(*shares.values(), strict=True)
    experts = zip(plan.experts, columns, strict=True)
    return replace(
        plan,
        experts=tuple(replace(e, **dict(zip(shares, row, strict=True))) for e, row in experts),
    )


def walk_of(deltas: Mapping[str, np.ndarray], base: Mapping[str, np.ndarray] | None = None) -> Walk:
    """A walk over arrays in memory."""
    bases = base or {name: np.zeros_like(delta) for name, delta in deltas.items()}
    return lambda: [(name, delta, bases[name]) for name, delta in deltas.items()]


def softened(
    deltas: Tensors, keep: float = 1.0, intruders: float = 1.0, base: Any = None
) -> Tensors:
    softening = survey_softening(walk_of(deltas, base), keep, intruders)
    return {name: softening.soften(name, delta) for name, delta in deltas.items()}


def everything(checkpoint: Checkpoint) -> dict[str, bytes]:
    return {name: checkpoint.read(name).tobytes() for name in checkpoint.names()}


def heavy(*shape: int, seed: int = 0) -> np.ndarray:
    return np.asarray(np.random.default_rng(seed).normal(size=shape) ** 3, f32)


# Nothing to soften


def test_at_one_nothing_is_walked_and_nothing_moves() -> None:
    softening = survey_softening(lambda: pytest.fail("walked"), 1.0, 1.0)
    delta = heavy(3, 4)
    assert softening.soften("a", delta) is delta


@pytest.mark.parametrize("name", METHODS)
def test_at_one_the_engine_has_nothing_to_survey(name: str, world: World, tmp_path: Path) -> None:
    plan = world({"a": heavy(4, 5)}, {"a": heavy(4, 5, seed=1)})(name)
    stages = set()
    merge(plan, tmp_path / "out", progress=lambda stage, *_: stages.add(stage))
    assert not {stage for stage in stages if stage.startswith("soften")}


# keep


@pytest.mark.parametrize("keep", [1e-9, 0.01, 0.3, 0.5, 0.999])
def test_keep_is_the_largest_of_all_that_the_expert_changed(keep: float) -> None:
    deltas = {"a": heavy(31, 7), "still": np.zeros((50, 50), f32), "b": heavy(13, seed=1) / 100}
    found = softened(deltas, keep)
    whole = np.concatenate([deltas["a"].reshape(-1), deltas["b"]])
    count = int(whole.size * keep) + 1  # as in the authors' TIES
    expected = np.zeros_like(whole)
    largest = np.argsort(-np.abs(whole), kind="stable")[:count]
    expected[largest] = whole[largest]
    assert (np.concatenate([found["a"].reshape(-1), found["b"]]) == expected).all()
    assert not found["still"].any()


def test_keep_by_hand_in_the_engine_for_each_expert(world: World, tmp_path: Path) -> None:
    zero = {"a": f32([0, 0, 0, 0]), "b": f32([0, 0, 0, 0])}
    plan = world(
        zero,
        {"a": f32([1, -8, 2, 3]), "b": f32([7, 4, -5, 6])},
        {"a": f32([10, 20, 30, 40]), "b": f32([0, 0, 0, 0])},  # b does not count
    )("task_arithmetic", [1.0, 0.5])
    found = merge(shared(plan, keep=[0.3, 0.25]), tmp_path / "out")
    # int(8 * 0.3) + 1 = 3 of the first: -8, 7, 6; int(4 * 0.25) + 1 = 2 of the second: 30, 40.
    assert found.read("a").tolist() == [0, -8, 15, 20]
    assert found.read("b").tolist() == [7, 0, 0, 6]


def test_keep_then_task_arithmetic_is_the_trim_of_ties(world: World, tmp_path: Path) -> None:
    """With one expert nothing is left of TIES but its trim."""
    base = {"a": heavy(20, 30), "b": heavy(50)}
    plan = world(base, {name: v + heavy(*v.shape, seed=1) for name, v in base.items()})
    ours = merge(shared(plan("task_arithmetic"), keep=[0.2]), tmp_path / "ours")
    ties = merge(plan("ties", density=0.2), tmp_path / "ties")
    assert everything(ours) == everything(ties)


def test_what_is_trimmed_everywhere_is_the_base_to_the_bit(world: World, tmp_path: Path) -> None:
    base = {"a": f32([-0.0, 1e-3, 5]), "b": f32([1, 1, 1])}
    plan = world(base, {"a": base["a"] + f32(1e-4), "b": f32([2, 3, 4])})("average")
    found = merge(shared(plan, keep=[0.4]), tmp_path / "out")
    assert found.read("a").tobytes() == base["a"].tobytes()
    assert found.read("b").tolist() == [2, 3, 4]


DELTAS = st.fixed_dictionaries(
    {
        name: arrays(f32, shape, elements=st.floats(-8, 8, width=16).map(f32))
        for name, shape in {"a": (3, 4), "b": (5,), "c": ()}.items()
    }
)
KEEP = st.floats(0.01, 0.99)


@given(DELTAS, KEEP)
def test_trimming_again_changes_nothing(deltas: Tensors, keep: float) -> None:
    softening = survey_softening(walk_of(deltas), keep, 1.0)
    once = {name: softening.soften(name, delta) for name, delta in deltas.items()}
    twice = {name: softening.soften(name, delta) for name, delta in once.items()}
    assert {n: v.tobytes() for n, v in once.items()} == {n: v.tobytes() for n, v in twice.items()}
    if all(once[name].any() == deltas[name].any() for name in deltas):  # ranked among as many
        again = softened(once, keep)
        assert all((again[name] == once[name]).all() for name in deltas)


@given(DELTAS, KEEP, KEEP)
def test_a_larger_fraction_keeps_all_that_a_smaller_one_does(
    deltas: Tensors, one: float, other: float
) -> None:
    few, more = softened(deltas, min(one, other)), softened(deltas, max(one, other))
    assert all((more[name][few[name] != 0] == few[name][few[name] != 0]).all() for name in deltas)


# intruders


def plane(*sizes: float) -> np.ndarray:
    """A matrix [6, 5] of these singular values along its axes."""
    matrix = np.zeros((6, 5), f32)
    np.fill_diagonal(matrix, sizes + (0,) * (5 - len(sizes)))
    return matrix


@pytest.mark.parametrize("factor", [0.0, 0.25, 0.5, 0.75])
def test_one_intruder_by_hand(factor: float, world: World, tmp_path: Path) -> None:
    base, delta = plane(3, 2), np.zeros((6, 5), f32)
    delta[4, 3] = 8  # a direction that the base does not have
    delta[0, 0] = 1  # one that it has, stretched
    expected = delta.copy()
    expected[4, 3] *= factor
    found = softened({"w": delta}, intruders=factor, base={"w": base})["w"]
    assert found.dtype == f32
    assert (found == expected).all()
    plan = world({"w": base}, {"w": base + delta})("average")
    result = merge(shared(plan, intruders=[factor]), tmp_path / "out")
    assert (result.read("w") == base + expected).all()


def test_directions_of_the_base_are_no_intruders() -> None:
    base = heavy(6, 5)
    delta = (0.3 * base).astype(f32)
    found = softened({"w": delta}, intruders=0.0, base={"w": base})["w"]
    assert found is delta


@pytest.mark.parametrize(("cosine", "count"), [(0.59, 1), (0.61, 0), (-0.59, 1), (-0.61, 0)])
def test_how_near_a_direction_of_the_base_is_near(cosine: float, count: int) -> None:
    base = np.zeros((2, 3))
    base[0, 0] = 1
    expert = np.outer([cosine, np.sqrt(1 - cosine**2)], [0, 5, 0])
    found = find_intruders(expert - base, base)
    assert (0 if found is None else found.left.shape[1]) == count


def test_only_the_largest_singular_vectors_are_looked_at() -> None:
    sizes = np.arange(20, 20 - TOP - 1, -1)
    base, delta = np.zeros((2, TOP + 2, TOP + 2))
    base[0, 0] = 0.5
    np.fill_diagonal(delta, [0, *sizes])
    found = softened({"w": delta}, intruders=0.5, base={"w": base})["w"]
    assert np.diag(found).tolist() == [0, *(sizes[:-1] / 2), sizes[-1]]


def test_singular_values_of_zero_have_no_direction() -> None:
    """SVD makes up vectors for them, in the base and in the expert alike."""
    base, delta = np.diag([3.0, 2, 0, 0]), np.diag([0, 0, 5.0, 0])
    found = find_intruders(delta, base)
    assert found is not None
    assert found.left.shape == (4, 1)
    assert (found.left @ found.right == delta).all()


@pytest.mark.parametrize("shape", [(), (12,), (3, 4, 2), (4, 3, 2, 2)])
def test_only_matrices_have_intruders(shape: tuple[int, ...]) -> None:
    assert find_intruders(heavy(*shape) + 9, np.zeros(shape, f32)) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_left_alone(bad: float, world: World, tmp_path: Path) -> None:
    base = {"w": plane(3, 2)}
    expert = {"w": base["w"].copy()}
    expert["w"][4, 3] = bad
    plan = world(base, expert)("average", allow_nonfinite=True)
    found = merge(shared(plan, keep=[0.5], intruders=[0.5]), tmp_path / "out")
    assert np.array_equal(found.read("w")[4, 3], f32(bad), equal_nan=True)


def test_neither_moves_the_other() -> None:
    """An intruder is found in what was published, and so is the largest change."""
    base, delta = plane(3, 2), np.zeros((6, 5), f32)
    delta[4, 3], delta[0, 0], delta[1, 1] = 8, 2, 1
    both = softened({"w": delta}, keep=0.05, intruders=0.125, base={"w": base})["w"]
    # int(30 * 0.05) + 1 = 2 stay: the intruder, although it is now the least of the three.
    assert (both[4, 3], both[0, 0], both[1, 1]) == (1, 2, 0)
    assert np.count_nonzero(both) == 2


def test_another_factor_needs_no_other_survey() -> None:
    base, delta = heavy(40, 30), heavy(40, 30, seed=1)
    one = survey_softening(walk_of({"w": delta}, {"w": base}), 1.0, 0.5)
    assert one.intruders
    other = survey_softening(walk_of({"w": delta}, {"w": base}), 1.0, 0.25)
    same = replace(one, factor=0.25).soften("w", delta)
    assert same.tobytes() == other.soften("w", delta).tobytes()
    assert replace(one, factor=1.0).soften("w", delta) is delta


# Engine and memory, whole experts and adapters


def family(root: Path) -> tuple[Callable[..., MergePlan], Checkpoint]:
    """A base, two whole experts and an adapter, whose whole model is the second of them."""
    a, b = heavy(3, 24, seed=3), heavy(32, 3, seed=4)
    base = {"q.weight": heavy(32, 24), "bias": heavy(24, seed=1), "n": np.array([3])}
    first = {n: v if n == "n" else v + heavy(*v.shape, seed=2) / 4 for n, v in base.items()}
    second = {**base, "q.weight": base["q.weight"] + b @ a}
    factors = {"q.lora_A.weight": a, "q.lora_B.weight": b}
    adapter = put_adapter(root / "lora", factors, r=3, lora_alpha=3)
    return make_world(root, base, first, second), adapter


@pytest.fixture
def mixed(tmp_path: Path) -> Callable[..., MergePlan]:
    """Plans of a whole expert and an adapter, softened."""
    make, adapter = family(tmp_path)

    def plan(name: str) -> MergePlan:
        whole = make(name)
        lora = replace(whole.experts[1], checkpoint=adapter)
        plan = replace(whole, experts=(whole.experts[0], lora))
        return shared(plan, weight=[1.0, 0.5], keep=[0.4, 0.9], intruders=[0.0, 0.5])

    return plan


def in_memory(plan: MergePlan) -> Iterator[tuple[str, np.ndarray]]:
    """The merge again, by arrays that are all held at once."""
    plan = canonical(plan)
    names = plan.vectors[0].names()
    bases = {name: plan.base.read(name) for name in names}
    values = []
    for expert, vector in zip(plan.experts, plan.vectors, strict=True):
        whole = {name: vector.delta(name) for name in names}
        values.append(softened(whole, expert.keep, expert.intruders, bases))
    deltas = [
        Deltas(
            name,
            [one[name] for one in values],
            tuple(expert.weight for expert in plan.experts),
            tuple(expert.sha for expert in plan.experts),
        )
        for name in names
    ]
    found = plan.method.survey(lambda: deltas, plan.params) if plan.method.survey else None
    for one in deltas:
        yield one.tensor, bases[one.tensor] + plan.method.combine(one, plan.params, found)


@pytest.mark.parametrize("name", METHODS)
def test_engine_and_arrays_in_memory_agree_to_the_bit(
    name: str, mixed: Callable[..., MergePlan], tmp_path: Path
) -> None:
    plan = mixed(name)
    found = merge(plan, tmp_path / "out")
    for tensor, expected in in_memory(plan):
        assert found.read(tensor).tobytes() == expected.tobytes(), tensor
    plain = merge(shared(plan, keep=[1.0, 1.0], intruders=[1.0, 1.0]), tmp_path / "plain")
    assert everything(plain) != everything(found)


@pytest.mark.parametrize("share", [{"keep": [0.3, 0.3]}, {"intruders": [1.0, 0.25]}])
def test_an_adapter_is_softened_as_the_whole_model_that_it_makes(
    share: dict[str, Any], mixed: Callable[..., MergePlan], tmp_path: Path
) -> None:
    plan = shared(
        mixed("task_arithmetic"), **{"keep": [1.0, 1.0], "intruders": [1.0, 1.0], **share}
    )
    whole = replace(plan.experts[1], checkpoint=open_checkpoint(tmp_path / "e1"))
    ours = merge(plan, tmp_path / "ours")
    theirs = merge(replace(plan, experts=(plan.experts[0], whole)), tmp_path / "theirs")
    np.testing.assert_allclose(ours.read("q.weight"), theirs.read("q.weight"), rtol=1e-5, atol=1e-5)
    assert (ours.read("bias") == theirs.read("bias")).all()


@settings(max_examples=10, deadline=None)
@given(
    st.sampled_from(METHODS),
    st.lists(st.tuples(KEEP, st.sampled_from([0.0, 0.5, 1.0])), min_size=3, max_size=3),
)
def test_order_of_experts_changes_no_byte(name: str, shares: list[tuple[float, float]]) -> None:
    """The same expert thrice, softened in three ways: not even SHAs tell them apart."""
    with tempfile.TemporaryDirectory() as root:
        world = make_world(Path(root), {"w": heavy(9, 8)}, *[{"w": heavy(9, 8, seed=1)}] * 3)
        keeps, factors = zip(*shares, strict=True)
        plan = shared(world(name), sha=["0" * 40] * 3, keep=keeps, intruders=factors)
        orders = permutations(plan.experts)
        turned = (replace(plan, experts=experts) for experts in orders)
        results = {merge(p, Path(root) / f"{i}").digest() for i, p in enumerate(turned)}
        assert len(results) == 1


def test_memory_is_that_of_a_few_tensors(tmp_path: Path) -> None:
    tensors, size = 60, 256 * 512
    for seed, folder in enumerate(("base", "e0")):
        (tmp_path / folder).mkdir()
        rng = np.random.default_rng(seed)
        many = {f"t{i}": rng.random((256, 512), f32) for i in range(tensors)}
        save_file(many, tmp_path / folder / "model.safetensors")
    base, expert = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "e0")
    average = method("average")
    plan = MergePlan(base, (Expert(expert, "e0", keep=0.3),), average, parse_params(average, {}))
    tracemalloc.start()
    merge(plan, tmp_path / "out")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # The tables that count magnitudes are as large as four of these tensors.
    assert peak < 12 * 4 * size


# What cannot be meant


def test_all_shares_that_cannot_be_meant_at_once(world: World) -> None:
    plan = world({"a": f32([0])}, {"a": f32([1])}, {"a": f32([2])})("ties")
    wrong = shared(
        plan, weight=[1.0, float("nan")], keep=[0.0, float("nan")], intruders=[-0.1, 1.1]
    )
    with pytest.raises(UsageError) as caught:
        check(wrong)
    assert caught.value.message.splitlines()[1:] == [
        "  - The weight of e1 is not a finite number.",
        "  - The keep of e0, e1 is not above 0 and at most 1.",
        "  - The intruders of e0, e1 is not from 0 to 1.",
    ]
    check(shared(plan, keep=[1e-9, 1.0], intruders=[0.0, 1.0]))


def test_as_it_stands_a_softening_does_nothing() -> None:
    delta = heavy(3)
    assert Softening().soften("a", delta) is delta
