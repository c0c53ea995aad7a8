"""The engine: merge folders into a folder."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from hubmerge.durable import hash_file
from hubmerge.errors import CheckpointError, HubmergeError, UsageError
from hubmerge.merging.engine import check_out, merge
from hubmerge.merging.plan import Expert, MergePlan
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint

SaveModels = Callable[..., Callable[..., Any]]
METHODS = ["average", "task_arithmetic", "ties", "dare"]
f32 = np.float32


def values(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "model.safetensors")


def test_merge_writes_values_and_side_files(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models(
        {"w": f32([1, 2]), "n": np.array([5])},
        {"w": f32([2, 2]), "n": np.array([5])},
        {"w": f32([1, 4]), "n": np.array([5])},
    )
    merged = merge(plan("task_arithmetic", [1.0, 0.5]), tmp_path / "out")
    assert merged.folder == tmp_path / "out"
    assert values(tmp_path / "out")["w"].tolist() == [2, 3]  # 1 + 1 * 1;  2 + 0.5 * 2
    assert values(tmp_path / "out")["n"].tolist() == [5]
    assert (tmp_path / "out" / "config.json").read_text() == '{"of": "base"}'
    assert sorted(os.listdir(tmp_path)) == ["base", "e0", "e1", "out"]


def test_progress_counts_the_work_of_each_stage(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"a": f32([1]), "n": np.array([5])}, {"a": f32([2]), "n": np.array([5])})
    calls: list[tuple[str, int, int]] = []
    merge(plan("ties"), tmp_path / "out", progress=lambda *step: calls.append(step))
    # Bytes of the base, and of the result.
    assert calls == [("survey", 4, 4), ("merge", 0, 4), ("merge", 4, 4)]


def test_finish_sees_the_complete_folder_before_the_rename(
    save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"a": f32([1])}, {"a": f32([2])})("average")

    def finish(folder: Path) -> None:
        assert not (tmp_path / "out").exists()
        (folder / "hubmerge.json").write_text(hash_file(folder / "model.safetensors"))

    merge(plan, tmp_path / "out", finish=finish)
    digest = (tmp_path / "out" / "hubmerge.json").read_text()
    assert digest == hash_file(tmp_path / "out" / "model.safetensors")


def test_failing_finish_leaves_nothing(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"a": f32([1])}, {"a": f32([2])})("average")

    def finish(folder: Path) -> None:
        raise HubmergeError("no card")

    with pytest.raises(HubmergeError, match="no card"):
        merge(plan, tmp_path / "out", finish=finish)
    assert sorted(os.listdir(tmp_path)) == ["base", "e0"]


def test_replaces_only_with_replace_and_never_an_input(
    save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"a": f32([1])}, {"a": f32([2])})("average")
    merge(plan, tmp_path / "out")
    (tmp_path / "out" / "stale.safetensors").touch()
    with pytest.raises(CheckpointError, match="not empty"):
        merge(plan, tmp_path / "out")
    merge(plan, tmp_path / "out", replace=True)
    assert sorted(os.listdir(tmp_path / "out")) == ["config.json", "model.safetensors"]
    for target in (tmp_path / "base", tmp_path / "e0", tmp_path, tmp_path / "out" / ".." / "e0"):
        with pytest.raises(UsageError, match="is to be merged"):
            merge(plan, target, replace=True)


def test_check_out_reads_no_value_and_writes_nothing(
    save_models: SaveModels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = save_models({"a": f32([1])}, {"a": f32([2])})("average")
    merge(plan, tmp_path / "out")
    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(Checkpoint, "read", lambda *_: pytest.fail("a value was read"))
    check_out(plan, tmp_path / "deep" / "new")
    check_out(plan, tmp_path / "out", replace=True)
    with pytest.raises(CheckpointError, match="not empty"):
        check_out(plan, tmp_path / "out")
    with pytest.raises(UsageError, match="is to be merged"):
        check_out(plan, tmp_path / "e0", replace=True)
    (tmp_path / "base" / "vocab.json").symlink_to("/etc/passwd")
    with pytest.raises(CheckpointError, match="symbolic link"):
        check_out(plan, tmp_path / "new")
    (tmp_path / "base" / "vocab.json").unlink()
    usage = shutil.disk_usage(tmp_path)._replace(free=3)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match="has 3 bytes free, and the weights need 4"):
        check_out(plan, tmp_path / "new")
    assert sorted(os.listdir(tmp_path)) == before


# bfloat16 has 8 bits of mantissa: between 1 and 2 its step is 2^-7.
BF = ml_dtypes.bfloat16


def test_bfloat16_is_computed_in_float32_and_rounded_once(
    save_models: SaveModels, tmp_path: Path
) -> None:
    one, step = np.array([1, 1, 1], BF), 2.0**-7
    plan = save_models(
        {"w": one},
        {"w": np.array([1, 1 + step, 1 + step], BF)},
        {"w": np.array([1 + step, 1 + 2 * step, 1 + step], BF)},
    )("average")
    merge(plan, tmp_path / "out")
    merged = values(tmp_path / "out")["w"]
    assert merged.dtype == BF
    # means: 1 + step/2 is halfway and goes to even, down; 1 + 1.5 step goes to even, up; 1 + step
    assert merged.astype(float).tolist() == [1, 1 + 2 * step, 1 + step]


def test_sums_are_computed_in_float32(save_models: SaveModels, tmp_path: Path) -> None:
    # Each expert adds 2^-9 to 1 in float32; in bfloat16 each addition would vanish.
    experts = [{"w": f32([1 + 2.0**-9])} for _ in range(4)]
    plan = save_models({"w": np.array([1], BF)}, *experts)("task_arithmetic")
    merge(plan, tmp_path / "out")
    assert values(tmp_path / "out")["w"].astype(float).tolist() == [1 + 2.0**-7]


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_written_in_another_dtype(dtype: str, save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models(
        {"w": f32([1]), "same": f32([3]), "n": np.array([1])},
        {"w": f32([2]), "same": f32([3]), "n": np.array([1])},
    )("average", dtype=dtype)
    merged = merge(plan, tmp_path / "out")
    assert {name: t.dtype for name, t in merged.index.items()} == {
        "w": dtype,
        "same": dtype,
        "n": "I64",
    }
    assert merged.read("w").astype(float).tolist() == [2]
    assert merged.read("same").astype(float).tolist() == [3]


def test_float64_is_not_narrowed(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"w": np.array([1.0])}, {"w": np.array([1 + 1e-12])})("average")
    merge(plan, tmp_path / "out")
    assert values(tmp_path / "out")["w"][0] == 1 + ((1 + 1e-12) - 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_value_is_rejected(
    method: str, bad: float, save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models(
        {"v": f32([0]), "w": f32([1, 2])},
        {"v": f32([0]), "w": f32([1, 3])},
        {"v": f32([0]), "w": f32([1, bad])},
    )
    with pytest.raises(
        CheckpointError, match=r"Expert e1 has 1 values .* not finite in tensor 'w'"
    ):
        merge(plan(method), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    merge(plan(method, allow_nonfinite=True), tmp_path / "out")


@pytest.mark.parametrize("expert", [[1, np.inf], [1, 2]])
def test_non_finite_base_is_rejected(
    expert: list[float], save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"w": f32([1, np.inf])}, {"w": f32(expert)})
    with pytest.raises(CheckpointError, match="The base has 1 values"):
        merge(plan("average"), tmp_path / "out")


def test_allowed_infinity_of_the_base_is_kept(save_models: SaveModels, tmp_path: Path) -> None:
    base = {"mask": f32([0, -np.inf]), "w": f32([1])}
    plan = save_models(base, base | {"w": f32([2])})
    for name in METHODS:
        merge(plan(name, allow_nonfinite=True), tmp_path / name)
        assert values(tmp_path / name)["mask"].tolist() == [0, -np.inf]


@pytest.mark.parametrize(
    ("options", "label"),
    [({"scale": 3e38}, "The result"), ({"dtype": "F16", "scale": 1e5}, "The result")],
)
def test_overflow_of_the_result_is_rejected(
    options: dict[str, Any], label: str, save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"w": f32([1])}, {"w": f32([3])})("task_arithmetic", **options)
    with pytest.raises(CheckpointError, match=f"{label} has 1 values .* 'w'"):
        merge(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_overflow_of_a_difference_is_rejected(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"w": f32([3e38])}, {"w": f32([-3e38])})("average")
    with pytest.raises(CheckpointError, match="difference of expert e0 and the base"):
        merge(plan, tmp_path / "out")


def test_integer_tensors_that_differ_are_rejected(save_models: SaveModels, tmp_path: Path) -> None:
    plan = save_models({"w": f32([1]), "n": np.array([1])}, {"w": f32([1]), "n": np.array([2])})
    with pytest.raises(CheckpointError, match="e0 has other values than the base in tensor 'n'"):
        merge(plan("average"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shards_and_one_file_give_the_same_result(save_models: SaveModels, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    base = {name: rng.normal(size=(4, 5)).astype(f32) for name in ("a", "b", "c")}
    expert = {name: v + rng.normal(size=v.shape).astype(f32) for name, v in base.items()}
    plan = save_models(base, expert)
    single = merge(plan("ties"), tmp_path / "single")
    for name, tensors in (("base", base), ("e0", expert)):
        split_into_shards(tmp_path / name, tensors)
    sharded = merge(plan("ties"), tmp_path / "sharded")
    assert sharded.weight_file_names() == ("one.safetensors", "two.safetensors")
    for name in single.names():
        assert single.read(name).tobytes() == sharded.read(name).tobytes()


def split_into_shards(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    (folder / "model.safetensors").unlink()
    shards = {"one.safetensors": ["c"], "two.safetensors": ["b", "a"]}
    for file, names in shards.items():
        save_file({name: tensors[name] for name in names}, folder / file)
    weight_map = {name: file for file, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path[:0] = {path!r}
from builders import write_models
from hubmerge.merging.engine import merge
from hubmerge.merging.registry import method, parse_params
from hubmerge.weights.checkpoint import open_checkpoint
import numpy as np
root = Path({root!r})
tensors = [{{n: np.full(3, v, np.float32) for n in "abcd"}} for v in (1, 2)]
plan = write_models(root, *tensors)("ties")
def die(stage, done, total):
    if (stage, done) == ("merge", 24):  # two of four tensors
        os.kill(os.getpid(), signal.SIGKILL)
merge(plan, root / "out", progress=die)
"""


def test_killed_merge_can_be_repeated(tmp_path: Path) -> None:
    script = KILLED.format(path=[str(Path(__file__).parent)], root=str(tmp_path))
    ended = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert sorted(os.listdir(tmp_path)) == [".out.partial", "base", "e0"]
    expert = Expert(open_checkpoint(tmp_path / "e0"), sha="0" * 40)
    ties = method("ties")
    plan = MergePlan(open_checkpoint(tmp_path / "base"), (expert,), ties, parse_params(ties, {}))
    merge(plan, tmp_path / "out")
    merge(plan, tmp_path / "again")
    assert sorted(os.listdir(tmp_path)) == ["again", "base", "e0", "out"]
    assert values(tmp_path / "out")["a"].tolist() == [2, 2, 2]
    for name in os.listdir(tmp_path / "out"):
        assert hash_file(tmp_path / "out" / name) == hash_file(tmp_path / "again" / name)


def test_merging_never_imports_torch() -> None:
    script = (
        "import sys, hubmerge.merging.engine, hubmerge.weights.writer;"
        "print(*{'torch', 'transformers', 'huggingface_hub'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    assert ended.stdout.strip() == b""


@pytest.mark.parametrize("name", METHODS)
def test_order_of_experts_does_not_change_sums(
    name: str, save_models: SaveModels, tmp_path: Path
) -> None:
    # In float32 (2^30 + 1) - 2^30 is 0 and (2^30 - 2^30) + 1 is 1.
    plan = save_models({"w": f32([0])}, *({"w": f32([v])} for v in (2.0**30, 1, -(2.0**30))))(
        name, **({"density": 1} if name in ("ties", "dare") else {})
    )
    results = {
        merge(replace(plan, experts=experts), tmp_path / f"{i}").digest()
        for i, experts in enumerate(permutations(plan.experts))
    }
    assert len(results) == 1


def test_plan_is_checked_before_anything_is_written(
    save_models: SaveModels, tmp_path: Path
) -> None:
    plan = save_models({"a": f32([1]), "b": f32([1])}, {"a": f32([1])})("average")
    stages: list[str] = []
    with pytest.raises(CheckpointError, match=r"lacks 1 tensor \(b\)"):
        merge(plan, tmp_path / "out", progress=lambda stage, *_: stages.append(stage))
    assert stages == []
