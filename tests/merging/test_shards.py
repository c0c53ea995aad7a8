"""Results in several files, and what a merge is expected to take."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from hubmerge.errors import UsageError
from hubmerge.merging.engine import merge
from hubmerge.merging.estimate import estimate
from hubmerge.merging.plan import Expert, check_plan
from hubmerge.weights.checkpoint import open_checkpoint
from hubmerge.weights.dtypes import Array
from tests.merging.builders import write_models

SIZES = {"a": 4, "b": 2, "c": 9, "d": 1, "e": 1}


def models() -> list[dict[str, Array]]:
    return [
        {name: np.full(size, value, np.float32) for name, size in SIZES.items()} for value in (0, 1)
    ]


def test_tensors_are_in_order_in_files_of_at_most_this_size(tmp_path: Path) -> None:
    """24 bytes have room for 6 entries; a tensor of 9 has a file of its own."""
    plan = replace(write_models(tmp_path, *models())("average"), shard_size=24)
    merged = merge(plan, tmp_path / "out", threads=2)
    files = sorted(path.name for path in merged.folder.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    index = json.loads((merged.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 4 * sum(SIZES.values())
    numbers = {name: int(file[6:11]) for name, file in index["weight_map"].items()}
    assert numbers == {"a": 1, "b": 1, "c": 2, "d": 3, "e": 3}
    for name, size in SIZES.items():
        assert merged.read(name).tolist() == [1.0] * size


def test_one_file_has_no_index(tmp_path: Path) -> None:
    plan = write_models(tmp_path, *models())("average")
    sharded = merge(replace(plan, shard_size=10**6), tmp_path / "one")
    assert sharded.weight_file_names() == ("model.safetensors",)
    assert merge(plan, tmp_path / "plain").digest() == sharded.digest()


def test_transformers_loads_shards(tmp_path: Path) -> None:
    config = LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    base = open_checkpoint(tmp_path / "base")
    plan = write_models(tmp_path / "unused", *models())("average")
    plan = replace(plan, base=base, experts=(Expert(base, "0"),), shard_size=900)
    merged = merge(plan, tmp_path / "out")
    assert len(merged.weight_file_names()) > 2
    loaded = LlamaForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in base.index.items():
        assert loaded[name].numpy().tobytes() == base.read(name).tobytes(), tensor


def test_open_clip_has_no_shards(tmp_path: Path) -> None:
    plan = write_models(tmp_path, *models())("average")
    for folder in ("base", "e0"):
        (tmp_path / folder / "model.safetensors").rename(
            tmp_path / folder / "open_clip_model.safetensors"
        )
    base, expert = (open_checkpoint(tmp_path / name) for name in ("base", "e0"))
    plan = replace(plan, base=base, experts=(Expert(expert, "0"),), shard_size=10)
    with pytest.raises(UsageError, match="no shards"):
        check_plan(plan)


@pytest.mark.parametrize(("name", "reads"), [("average", 1), ("ties", 2), ("breadcrumbs", 3)])
def test_an_estimate_counts_every_pass(name: str, reads: int, tmp_path: Path) -> None:
    plan = write_models(tmp_path, *models())(name, dtype="BF16")
    found = estimate(plan, threads=2)
    entries = sum(SIZES.values())
    assert (found.read_bytes, found.write_bytes) == (reads * 2 * 4 * entries, 2 * entries)
    assert found.seconds is not None
    assert found.seconds > 0
    assert found.memory_bytes > 0


def test_methods_on_whole_tensors_have_no_measured_seconds(tmp_path: Path) -> None:
    assert estimate(write_models(tmp_path, *models())("tsv")).seconds is None
