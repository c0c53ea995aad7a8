"""Every reason not to merge, found from headers, all together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import CheckpointError, UsageError
from hubmerge.merging.plan import canonical, check
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.task_vector import LORA_HINT

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


def test_adapter_is_refused_with_a_way_out(world: World, tmp_path: Path) -> None:
    plan = world({"a": A}, {"a": A})("average")
    (tmp_path / "lora").mkdir()
    save_file({"x": A}, tmp_path / "lora" / "adapter_model.safetensors")
    lora = replace(plan.experts[0], checkpoint=open_checkpoint(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match=r"LoRA adapter.*later version") as caught:
        check(replace(plan, experts=(lora,)))
    assert caught.value.hint == LORA_HINT
    with pytest.raises(CheckpointError, match="LoRA adapter") as caught:
        check(replace(plan, base=lora.checkpoint))
    assert caught.value.hint == LORA_HINT


def test_each_kind_of_problem_has_its_way_out(world: World, tmp_path: Path) -> None:
    plan = world({"a": A, "b": A}, {"a": A}, {"a": A, "b": A})("average")
    with pytest.raises(CheckpointError) as caught:
        check(plan)
    whole = caught.value.hint
    assert "whole fine-tunes" in whole
    (tmp_path / "lora").mkdir()
    save_file({"x": A}, tmp_path / "lora" / "adapter_model.safetensors")
    lora = replace(plan.experts[1], checkpoint=open_checkpoint(tmp_path / "lora"))
    with pytest.raises(CheckpointError, match="2 problems") as caught:
        check(replace(plan, experts=(plan.experts[0], lora)))
    assert caught.value.hint == f"{LORA_HINT} {whole}"


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
