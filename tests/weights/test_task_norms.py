"""Norms of task vectors, computed by hand: whole, by layer, and of a low-rank change."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from hubmerge.errors import IntegrityError
from hubmerge.manifest import Manifest, parse_manifest
from hubmerge.opening.step_norms import measure_step_norms
from hubmerge.source import Source
from hubmerge.training_curve import Norms
from hubmerge.weights.checkpoint import Checkpoint, open_checkpoint
from hubmerge.weights.task_norms import layer_name

BASE = {
    "model.embed_tokens.weight": np.ones((4, 2), np.float32),
    "model.layers.0.mlp.weight": np.ones((2, 2), np.float32),
    "model.layers.1.mlp.weight": np.ones((2, 2), np.float32),
    "model.norm.weight": np.ones(2, np.float32),
}


def save(folder: Path, tensors: dict[str, np.ndarray], name: str = "model") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / f"{name}.safetensors")
    return folder


@pytest.fixture
def base(tmp_path: Path) -> Checkpoint:
    return open_checkpoint(save(tmp_path / "base", BASE))


def test_norms_of_a_full_expert(base: Checkpoint, tmp_path: Path) -> None:
    step = {
        **BASE,
        "model.layers.0.mlp.weight": np.array([[4, 1], [1, 5]], np.float32),  # 3 and 4 more
        "model.norm.weight": np.array([13, 1], np.float32),
    }
    norms = measure_step_norms(base, save(tmp_path / "step", step))
    assert norms == Norms(13.0, {"after": 12.0, "model.layers.0": 5.0})


def test_norms_of_an_adapter_are_of_the_change_that_it_makes(
    base: Checkpoint, tmp_path: Path
) -> None:
    prefix = "base_model.model.model.layers.1.mlp"
    folder = save(
        tmp_path / "step",
        {
            f"{prefix}.lora_A.weight": np.array([[3, 4]], np.float32),
            f"{prefix}.lora_B.weight": np.array([[1], [0]], np.float32),
        },
        "adapter_model",
    )
    config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["mlp"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    assert measure_step_norms(base, folder) == Norms(10.0, {"model.layers.1": 10.0})


def test_a_step_that_diverged_or_does_not_fit_has_no_norms(
    base: Checkpoint, tmp_path: Path
) -> None:
    broken = {**BASE, "model.norm.weight": np.array([np.inf, 1], np.float32)}
    assert measure_step_norms(base, save(tmp_path / "broken", broken)) is None
    other = {**BASE, "model.norm.weight": np.ones(3, np.float32)}
    assert measure_step_norms(base, save(tmp_path / "other", other)) is None


def test_layers_are_named_as_in_the_base() -> None:
    assert layer_name("visual.transformer.resblocks.11.ln_1.weight").endswith("resblocks.11")
    assert layer_name("model.embed_tokens.weight") == "before"
    assert layer_name("lm_head.weight") == "after"


def test_a_manifest_without_norms_is_written_as_before_and_one_with_them_is_read_back() -> None:
    manifest = Manifest("expert", Source("me/base@main", "b" * 40, "d"), norms=None)
    assert b"norms" not in manifest.to_bytes()
    assert parse_manifest(manifest.to_bytes(), "it") == manifest
    measured = Manifest("expert", manifest.base, norms=Norms(2.0, {"model.layers.0": 2.0}))
    assert parse_manifest(measured.to_bytes(), "it") == measured
    for wrong in (b"-2.0", b'"2.0"', b"1e999"):
        with pytest.raises(IntegrityError, match="norms"):
            parse_manifest(measured.to_bytes().replace(b"2.0", wrong), "it")
