"""Every reason not to merge, found from headers, all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.merging.plan import MergePlan, canonical, check
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from tests.weights.adapters import put_adapter
from tests.weights.mixtures import put_mixture

A = np.zeros((2, 3), np.float32)
World = Callable[..., Callable[..., object]]


def test_all_problems_of_all_experts_at_once(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = world(
        {"a": A, "b": A, "n": np.array([1])},
        {"a": A.T.copy(), "n": np.array([1]), "x": A, "y": A},
        {"a": A, "b": np.zeros((2, 3), np.int32), "n": np.array([1], np.int32)},
    )("average")
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    with pytest.raises(CheckpointError) as caught:
        check(plan)
    assert caught.value.message.splitlines()[1:] == [
        "  - Expert e0 lacks 1 tensor (b) of the base.",
        "  - Expert e0 has 2 tensors (x, y) that the base does not have.",
        "  - Expert e0 does not fit the base in 1 tensor (a (F32 [3, 2], in the base F32 [2, 3])).",
        "  - Expert e1 does not fit the base in 2 tensors (b (I32 [2, 3], in the base F32 [2, 3]), "
        "n (I32 [1], in the base I64 [1])).",
    ]


def test_long_lists_are_counted_not_printed(world: World) -> None:
    plan = world({f"t{i}": A for i in range(9)}, {"t0": A})("average")
    with pytest.raises(CheckpointError, match=r"lacks 8 tensors \(t1, t2, t3, \.\.\.\)"):
        check(plan)


@pytest.mark.parametrize(("ours", "theirs"), [("a", "model.a"), ("base_model.model.a", "a")])
def test_prefix_is_recognised(ours: str, theirs: str, world: World) -> None:
    with pytest.raises(CheckpointError, match=r"differ by the prefix '(base_model\.)?model\.'"):
        check(world({ours: A}, {theirs: A})("average"))


def test_floats_of_other_width_fit(world: World) -> None:
    check(world({"a": A}, {"a": A.astype(ml_dtypes.bfloat16)}, {"a": A.astype("f8")})("average"))


Q = {"q.lora_A.weight": A[:1], "q.lora_B.weight": A[:, :1]}


def adapted(plan: Any, number: int, folder: Path, **config: Any) -> MergePlan:
    """The plan with an adapter of `q` in place of one expert."""
    adapter = replace(plan.experts[number], checkpoint=put_adapter(folder, Q, **config))
    experts = [*plan.experts[:number], adapter, *plan.experts[number + 1 :]]
    return replace(plan, experts=tuple(experts))


def test_adapters_and_whole_experts_of_one_base_go_together(world: World, tmp_path: Path) -> None:
    plan = world({"q.weight": A, "n": np.array([1])}, *[{"q.weight": A, "n": np.array([1])}] * 2)
    mixed = adapted(plan("average"), 1, tmp_path / "lora")
    check(mixed)
    check(replace(mixed, experts=mixed.experts[1:]))
    assert [vector.adapter is None for vector in mixed.vectors] == [True, False]


def test_an_adapter_is_no_base(world: World, tmp_path: Path) -> None:
    plan = adapted(world({"q.weight": A}, {"q.weight": A})("average"), 0, tmp_path / "lora")
    with pytest.raises(
        CheckpointError, match="lora is an adapter, and a base is a whole"
    ) as caught:
        check(replace(plan, base=plan.experts[0].checkpoint))
    assert "--base" in caught.value.hint


def test_a_mixture_is_neither_expert_nor_base(world: World, tmp_path: Path) -> None:
    plan = world({"q.weight": A}, {"q.weight": A})("average")
    mixture = open_checkpoint(put_mixture(tmp_path / "mixture"))
    with pytest.raises(CheckpointError, match="mixture is a mixture, which no change") as caught:
        check(replace(plan, experts=(replace(plan.experts[0], checkpoint=mixture),)))
    assert "experts/" in caught.value.hint
    with pytest.raises(CheckpointError, match="is a mixture, and a base is a whole model"):
        check(replace(plan, base=mixture))


def test_each_kind_of_problem_has_its_way_out(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = [{"a": A}, {"a": A, "b": A}, {"a": A, "b": A}]
    plan = adapted(world({"a": A, "b": A}, *experts)("average"), 1, tmp_path / "1")
    plan = adapted(plan, 2, tmp_path / "2", use_dora=True, init_lora_weights="pissa")
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    with pytest.raises(CheckpointError) as caught:
        check(plan)
    assert caught.value.message.splitlines()[1:] == [
        "  - Expert e0 lacks 1 tensor (b) of the base.",
        "  - Adapter e1 has 1 tensor (q.weight) that the base does not have.",
        "  - Adapter e2 starts from a base whose weights were changed "
        "(init_lora_weights is 'pissa').",
    ]
    for hint in ("whole fine-tunes", "trained on, under the tensor names", "plain LoRA with peft"):
        assert hint in caught.value.hint


def test_quantised_weights_are_not_numbers(world: World) -> None:
    codes = {"a": A.astype(ml_dtypes.float8_e4m3fn), "a_scale_inv": np.ones(1, np.float32)}
    with pytest.raises(CheckpointError, match=r"base is quantised: 1 tensor \(a\)"):
        check(world(codes, codes)("average"))


def test_plain_float8_is(world: World) -> None:
    codes = {"a": A.astype(ml_dtypes.float8_e4m3fn)}
    check(world(codes, codes)("average"))


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("average", [1.0, -1.0], "their sum must be positive"),
        ("average", [0.0, 0.0], "their sum must be positive"),
        ("ties", [1.0, 0.0], "every weight must be positive"),
        ("task_arithmetic", [1.0, float("nan")], "weight of e1 is not a finite number"),
        ("task_arithmetic", [float("inf"), 1.0], "weight of e0 is not a finite number"),
    ],
)
def test_weights_that_mean_nothing(
    name: str, weights: list[float], said: str, world: World
) -> None:
    with pytest.raises(UsageError, match=said):
        check(world({"a": A}, {"a": A}, {"a": A})(name, weights))


def test_negative_weights_suit_task_arithmetic(world: World) -> None:
    check(world({"a": A}, {"a": A}, {"a": A})("task_arithmetic", [1.0, -1.0]))


def test_usage_problems_come_together(world: World) -> None:
    plan = world({"a": A}, {"a": A})("ties")
    with pytest.raises(UsageError) as caught:
        check(replace(plan, experts=(), dtype="BF61", params=object()))
    assert caught.value.message.startswith("3 problems:")
    assert "Did you mean BF16" in caught.value.message
    assert "no expert" in caught.value.message


def test_experts_have_one_order(world: World) -> None:
    plan = world({"a": A}, {"a": A}, {"a": A}, {"a": A})("average")
    turned = replace(plan, experts=plan.experts[::-1])
    assert canonical(turned) == canonical(plan)
    shas = [expert.sha for expert in canonical(plan).experts]
    assert shas == sorted(shas)
