"""The factors of merges: exact sums of products, other merges module by module, honest shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hubmerge.errors import CheckpointError
from hubmerge.merging.lora_writer import LoraOutput, merge_to_lora
from hubmerge.merging.merged_factors import factorize_merge, largest_rank
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.extraction import Extraction
from hubmerge.weights.kept_shares import parse_shares
from hubmerge.weights.lora_file import AdapterFields
from hubmerge.weights.lora_modules import LoraModule, common_modules
from hubmerge.weights.task_vector import TaskVector
from tests.weights.adapters import save_adapter, write_base

f32 = np.float32
RANKS = (2, 3, 1)
TENSORS = {
    "enc.q.weight": (7, 5), "enc.conv.weight": (4, 3, 2, 2), "enc.wte.weight": (6, 4),
    "enc.out.weight": (4, 8), "enc.norm.weight": (5,), "enc.norm.bias": (5,),
}  # fmt: skip


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(f32)


def random_base(folder: Path) -> Checkpoint:
    tensors = {name: numbers(n, *shape) for n, (name, shape) in enumerate(TENSORS.items())}
    return write_base(folder, tensors)


def random_adapter(folder: Path, seed: int, **config: Any) -> Checkpoint:
    """A LoRA of a matrix, a convolution and an embedding."""
    rank = config.setdefault("r", 2)
    return save_adapter(
        folder,
        {
            "enc.q.lora_A.weight": numbers(seed, rank, 5),
            "enc.q.lora_B.weight": numbers(seed + 1, 7, rank),
            "enc.conv.lora_A.weight": numbers(seed + 2, rank, 3, 2, 2),
            "enc.conv.lora_B.weight": numbers(seed + 3, 4, rank, 1, 1),
            "enc.wte.lora_embedding_A": numbers(seed + 4, rank, 6),
            "enc.wte.lora_embedding_B": numbers(seed + 5, 4, rank),
        },
        **config,
        peft_type="LORA",
    )


def make_plan(
    base: Checkpoint,
    experts: Sequence[Checkpoint],
    name: str,
    weights: Sequence[float] | None = None,
    keep: float = 1.0,
    **params: Any,
) -> MergePlan:
    chosen = method(name)
    shas = [hashlib.sha1(str(number).encode()).hexdigest() for number in range(len(experts))]
    return MergePlan(
        base,
        tuple(
            Expert(expert, sha, weight, f"e{number}", keep)
            for number, (expert, sha, weight) in enumerate(
                zip(experts, shas, weights or [1.0] * len(experts), strict=True)
            )
        ),
        chosen,
        parse_params(chosen, params),
    )


def factor(plan: MergePlan, rank: int) -> Extraction:
    return factorize_merge(plan, modules_of(plan), rank, lambda *_: None)


def modules_of(plan: MergePlan) -> Sequence[LoraModule]:
    modules = common_modules([v.adapter for v in plan.vectors if v.adapter])
    assert modules is not None
    return modules


@pytest.fixture
def adapters(tmp_path: Path) -> MergePlan:
    base = random_base(tmp_path / "base")
    experts = [
        random_adapter(tmp_path / f"e{n}", 100 * n, r=rank, lora_alpha=3 + n)
        for n, rank in enumerate(RANKS, 1)
    ]
    return make_plan(base, experts, "task_arithmetic", [1, -0.5, 2], scale=0.7)


def test_a_sum_of_adapters_is_exact_and_reads_no_weight_of_the_base(adapters: MergePlan) -> None:
    deltas = {name: [v.delta(name) for v in adapters.vectors] for name in TENSORS}
    file = adapters.base.tensor("enc.q.weight").file
    file.write_bytes(b"")
    extraction = factor(adapters, sum(RANKS))
    assert {m.kind for m in extraction.factors} == {"linear", "convolution", "embedding"}
    for module, (a, b) in extraction.factors.items():
        one, two, three = deltas[module.tensor]
        expected = module.as_matrix(0.7 * (one - 0.5 * two + 2 * three))
        error = np.linalg.norm(b @ a - expected) / np.linalg.norm(expected)
        assert error < 1e-6, module
    assert extraction.shares.kept == pytest.approx(1)
    assert extraction.shares.left_out == {}


def test_shares_of_a_sum_are_those_of_its_singular_values(adapters: MergePlan) -> None:
    shares, total, kept = factor(adapters, 2).shares, 0.0, 0.0
    for module in modules_of(adapters):
        parts = [v.delta(module.tensor) for v in adapters.vectors]
        dense = 0.7 * (parts[0] - 0.5 * parts[1] + 2 * parts[2])
        squares = np.linalg.svd(module.as_matrix(dense), compute_uv=False) ** 2
        assert shares.modules[module.path] == pytest.approx(squares[:2].sum() / squares.sum())
        total, kept = total + squares.sum(), kept + squares[:2].sum()
    assert shares.kept == pytest.approx(kept / total)
    assert shares.attainable == pytest.approx(1)


def test_the_average_divides_by_the_weights(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base")
    experts = [random_adapter(tmp_path / f"e{n}", n) for n in (1, 2)]
    plan = make_plan(base, experts, "average", [3, 1])
    factors = factor(plan, 4).factors
    a, b = next(pair for module, pair in factors.items() if module.path == "enc.q")
    one, two = (vector.delta("enc.q.weight") for vector in plan.vectors)
    np.testing.assert_allclose(b @ a, (3 * one + two) / 4, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [("ties", {"density": 0.6}), ("dare", {"density": 0.5}), ("average", {"keep": 0.5})],
)
def test_other_merges_are_factored_as_the_engine_computes_them(
    name: str, options: dict[str, float], tmp_path: Path
) -> None:
    from hubmerge.merging.engine import merge

    base = random_base(tmp_path / "base")
    experts = [random_adapter(tmp_path / f"e{n}", 10 * n) for n in (1, 2)]
    plan = make_plan(base, experts, name, **options)
    merged = merge(plan, tmp_path / "whole")
    for module, (a, b) in factor(plan, 8).factors.items():
        change = merged.read(module.tensor) - base.read(module.tensor)
        np.testing.assert_allclose(b @ a, module.as_matrix(change), atol=1e-5)


def test_a_full_expert_beside_an_adapter(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base")
    changed = {name: base.read(name) + numbers(9, *shape) for name, shape in TENSORS.items()}
    full = write_base(tmp_path / "full", changed)
    lora = random_adapter(tmp_path / "lora", 1)
    plan = make_plan(base, [full, lora], "average")
    modules = [LoraModule("enc.q", "enc.q.weight", (7, 5))]
    extraction = factorize_merge(plan, modules, 5, lambda *_: None)
    [(a, b)] = extraction.factors.values()
    one, two = (vector.delta("enc.q.weight") for vector in plan.vectors)
    np.testing.assert_allclose(b @ a, (one + two) / 2, atol=1e-5)
    squares = {
        name: float(np.square(sum(v.delta(name) for v in plan.vectors) / 2).sum())
        for name in TENSORS
    }
    shares, total = extraction.shares, sum(squares.values())
    assert shares.kept == pytest.approx(squares.pop("enc.q.weight") / total, rel=1e-4)
    assert shares.left_out == pytest.approx(
        {name: value / total for name, value in squares.items()}, rel=1e-4
    )
    assert shares.kept + sum(shares.left_out.values()) == pytest.approx(1)


def test_a_bias_that_adapters_change_is_left_out_with_its_share(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base", {"q.weight": np.zeros((2, 2), f32), "q.bias": np.zeros(2, f32)}
    )
    lora = save_adapter(
        tmp_path / "e",
        {
            "q.lora_A.weight": f32([[1, 0]]),
            "q.lora_B.weight": f32([[2], [0]]),
            "q.lora_B.bias": f32([0, 1]),
        },
        lora_bias=True,
    )
    shares = factor(make_plan(base, [lora], "average"), 1).shares
    assert shares.kept == shares.attainable == pytest.approx(4 / 5)
    assert shares.left_out == {"q.bias": pytest.approx(1 / 5)}


def test_no_module_needs_more_than_its_rank(adapters: MergePlan) -> None:
    assert largest_rank(adapters, modules_of(adapters)) == 5  # 2 + 3 + 1, but q is 7 x 5
    small = [module for module in modules_of(adapters) if module.path != "enc.q"]
    assert largest_rank(adapters, small) == 4
    ties = make_plan(adapters.base, [e.checkpoint for e in adapters.experts[2:]], "ties")
    assert largest_rank(ties, modules_of(ties)) == 5
    alone = make_plan(adapters.base, [e.checkpoint for e in adapters.experts[2:]], "average")
    assert largest_rank(alone, modules_of(alone)) == 1


def test_adapters_that_name_modules_differently_have_no_common_names(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", {"bert.q.weight": numbers(1, 2, 2)})
    adapters = [
        TaskVector(base, save_adapter(
            tmp_path / str(n), {f"{q}.lora_A.weight": numbers(2, 1, 2),
                                f"{q}.lora_B.weight": numbers(3, 2, 1)}
        )).adapter
        for n, q in enumerate(("bert.q", "q"))
    ]  # fmt: skip
    assert all(adapters)
    assert common_modules([a for a in adapters if a]) is None
    assert common_modules([a for a in adapters[1:] if a])[0].path == "q"


def test_half_of_a_fused_attention_gets_the_other_half(tmp_path: Path) -> None:
    shapes = {"attn.in_proj_weight": (6, 2), "attn.out_proj.weight": (2, 2)}
    base = write_base(tmp_path / "base", {n: np.zeros(s, f32) for n, s in shapes.items()})
    expert = {
        "attn.in_proj_weight": numbers(1, 6, 2),
        "attn.out_proj.weight": np.zeros((2, 2), f32),
    }
    plan = make_plan(base, [write_base(tmp_path / "e", expert)], "average")
    modules = (
        LoraModule("attn", "attn.in_proj_weight", (6, 2)),
        LoraModule("attn.out_proj", "attn.out_proj.weight", (2, 2)),
    )
    output = LoraOutput(2, modules, AdapterFields("o/base"))
    merge_to_lora(plan, output, tmp_path / "out", lambda *_: None)
    adapter = TaskVector(base, open_checkpoint(tmp_path / "out"))
    for name, values in expert.items():
        np.testing.assert_allclose(adapter.delta(name), values, atol=1e-6)


def test_a_name_that_ends_another_is_written_as_a_pattern(tmp_path: Path) -> None:
    base = write_base(
        tmp_path / "base", {"q.weight": np.zeros((2, 2), f32), "v.q.weight": np.zeros((2, 2), f32)}
    )
    changed = {"q.weight": np.eye(2, dtype=f32), "v.q.weight": np.zeros((2, 2), f32)}
    plan = make_plan(base, [write_base(tmp_path / "e", changed)], "average")
    modules = (LoraModule("q", "q.weight", (2, 2)), LoraModule("v.q", "v.q.weight", (2, 2)))
    output = LoraOutput(2, modules, AdapterFields("o/base"))
    merge_to_lora(plan, output, tmp_path / "out", lambda *_: None)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["target_modules"] == "q"
    other = LoraOutput(2, modules[:1], AdapterFields("o/base"))
    merge_to_lora(plan, other, tmp_path / "other", lambda *_: None)
    assert json.loads((tmp_path / "other" / "adapter_config.json").read_text()) == config


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "changes nothing"),
        ({"norm.weight": np.ones(2, f32)}, "no matrix of a module"),
        ({"q.weight": np.full((2, 2), np.inf, f32)}, "not finite in tensor 'q.weight'"),
    ],
)
def test_what_an_adapter_cannot_hold_is_refused(
    changed: dict[str, np.ndarray], message: str, tmp_path: Path
) -> None:
    zeros = {"q.weight": np.zeros((2, 2), f32), "norm.weight": np.zeros(2, f32)}
    base = write_base(tmp_path / "base", zeros)
    plan = make_plan(base, [write_base(tmp_path / "e", {**zeros, **changed})], "average")
    output = LoraOutput(1, (LoraModule("q", "q.weight", (2, 2)),), AdapterFields("o/base"))
    with pytest.raises(CheckpointError, match=message):
        merge_to_lora(plan, output, tmp_path / "out", lambda *_: None)
    assert not (tmp_path / "out").exists()


def test_a_factor_that_is_not_finite_is_named(tmp_path: Path) -> None:
    base = random_base(tmp_path / "base")
    tensors = {"enc.q.lora_A.weight": np.full((1, 5), np.nan, f32),
               "enc.q.lora_B.weight": np.ones((7, 1), f32)}  # fmt: skip
    bad = save_adapter(tmp_path / "bad", tensors)
    with pytest.raises(CheckpointError, match=r"Expert e0 has values .*q\.lora_A\.weight"):
        factor(make_plan(base, [bad], "average"), 1)


def test_shares_are_read_back_and_anything_else_is_not(adapters: MergePlan) -> None:
    shares = factor(adapters, 2).shares
    read = parse_shares(json.loads(json.dumps(shares.to_json())))
    assert read is not None
    assert read.kept == pytest.approx(shares.kept, abs=1e-6)
    for wrong in (
        None,
        [],
        {"rank": 1},
        {**shares.to_json(), "kept": "all"},
        {**shares.to_json(), "modules": {"q": 7}},
        {**shares.to_json(), "rank": True},
    ):
        assert parse_shares(wrong) is None  # fmt: skip
