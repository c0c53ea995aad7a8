"""Extract a LoRA from a full expert: the best of its rank, and exact if the rank suffices."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hubmerge.errors import CheckpointError
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.extraction import Extraction, extract
from hubmerge.weights.factorization import Factors
from hubmerge.weights.layout import ADAPTER_WEIGHTS
from hubmerge.weights.lora_file import AdapterFields, write_adapter
from hubmerge.weights.lora_modules import LoraModule, module_path
from hubmerge.weights.task_vector import TaskVector
from tests.weights.adapters import write_base

EYE = np.eye(3, 2, dtype=np.float32)


def write_vector(folder: Path, changes: dict[str, np.ndarray]) -> TaskVector:
    """The task vector of an expert with these tensors and a base of zeros."""
    base = write_base(
        folder / "base", {name: np.zeros_like(values) for name, values in changes.items()}
    )
    return TaskVector(base, write_base(folder / "expert", changes))


def modules_of(
    vector: TaskVector, names: Sequence[str], inputs_first: bool = False
) -> list[LoraModule]:
    """These tensors as modules of the same names."""
    shapes = {name: vector.base.index[name].shape for name in vector.base.index}
    return [
        LoraModule(module_path(name), name, shapes.get(name, ()), inputs_first=inputs_first)
        for name in names
    ]


def factors_of(extraction: Extraction, path: str) -> Factors:
    return next(pair for module, pair in extraction.factors.items() if module.path == path)


def test_by_hand(tmp_path: Path) -> None:
    # Singular values 4 and 1: 16 of 17 are kept, and of all, with the bias, 16 of 21.
    matrix = np.array([[0, -4], [1, 0], [0, 0]], np.float32)
    full = write_vector(tmp_path, {"fc.weight": matrix, "fc.bias": np.array([2, 0, 0], np.float32)})
    extraction = extract(full, modules_of(full, ["fc.weight"]), rank=1)
    a, b = factors_of(extraction, "fc")
    np.testing.assert_allclose(a, [[0, 2]], atol=1e-6)
    np.testing.assert_allclose(b, [[-2], [0], [0]], atol=1e-6)
    shares = extraction.shares
    assert (shares.kept, shares.attainable) == (pytest.approx(16 / 21), pytest.approx(17 / 21))
    assert shares.modules == {"fc": pytest.approx(16 / 17)}
    assert shares.left_out == {"fc.bias": pytest.approx(4 / 21)}


def test_unchanged_expert_is_kept_completely(tmp_path: Path) -> None:
    full = write_vector(tmp_path, {"fc.weight": np.zeros((3, 2), np.float32)})
    shares = extract(full, modules_of(full, ["fc.weight"]), 1).shares
    assert (shares.kept, shares.attainable, shares.modules) == (1.0, 1.0, {"fc": 1.0})


@pytest.mark.parametrize("inputs_first", [False, True])
def test_written_adapter_has_the_extracted_change(inputs_first: bool, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    full = write_vector(tmp_path, {"fc.weight": matrix, "fc.bias": np.zeros(3, np.float32)})
    extraction = extract(full, modules_of(full, ["fc.weight"], inputs_first), 3)
    for name in ("once", "again"):
        write_adapter(tmp_path / name, extraction.factors, 3, AdapterFields("o/base", "a" * 40))
    adapter = TaskVector(full.base, open_checkpoint(tmp_path / "once"))
    np.testing.assert_allclose(adapter.delta("fc.weight"), matrix, atol=1e-6)
    once, again = ((tmp_path / name / ADAPTER_WEIGHTS).read_bytes() for name in ("once", "again"))
    assert once == again


def test_out_proj_of_a_fused_attention_counts_twice_in_peft(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    changes = {
        "attn.in_proj_weight": rng.normal(size=(6, 2)).astype(np.float32),
        "attn.out_proj.weight": rng.normal(size=(2, 2)).astype(np.float32),
    }
    full = write_vector(tmp_path, changes)
    extraction = extract(full, modules_of(full, list(changes)), 2)
    a, b = factors_of(extraction, "attn.out_proj")
    np.testing.assert_allclose(b @ a, changes["attn.out_proj.weight"], atol=1e-6)
    write_adapter(tmp_path / "adapter", extraction.factors, 2, AdapterFields("o/base"))
    adapter = TaskVector(full.base, open_checkpoint(tmp_path / "adapter"))
    for name, change in changes.items():
        np.testing.assert_allclose(adapter.delta(name), change, atol=1e-6)


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    full = write_vector(
        tmp_path, {"attn.in_proj_weight": EYE, "norm.weight": EYE[0], "fc.weight": EYE}
    )
    with pytest.raises(CheckpointError, match="3 problems") as caught:
        extract(full, modules_of(full, ["attn.in_proj_weight", "norm.weight", "none.weight"]), 0)
    for part in ("must be at least 1", "2 tensors (none.weight, norm.weight)", "adapted together"):
        assert part in caught.value.message


def test_non_finite_changes_are_rejected(tmp_path: Path) -> None:
    full = write_vector(tmp_path, {"fc.weight": np.full((3, 2), np.inf, np.float32)})
    with pytest.raises(CheckpointError, match=r"fc\.weight is not finite"):
        extract(full, modules_of(full, ["fc.weight"]), 1)
