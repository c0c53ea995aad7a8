"""Two processes do what one does: the same losses and weights, and only one of them publishes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.server import lease
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches
from tests.training.worlds import fit, spec

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (
    "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--steps", "4",
    "--push-every", "2,4", "--lr", "5e-4", "--schedule", "constant", "--warmup-steps", "2",
    "--batch", "16", "--json",
)  # fmt: skip
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
          "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(home: Path, *words: object) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "HUBMERGE_HOME": str(home), "HUBMERGE_HUB": "local",
             "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def curve(said: str) -> tuple[list[float], list[float]]:
    points: list[Any] = json.loads(said)["validation"]
    return [p["accuracy"] for p in points], [p["loss"] for p in points[1:]]


@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="full", marks=pytest.mark.slow),  # a minute of two cores
        pytest.param(("--tune", "lora", "--accumulate", "2"), id="lora"),
    ],
)
def test_two_processes_train_as_one(tmp_path: Path, more: tuple[str, ...]) -> None:
    words = (*TRAIN, *more)
    with lease(tmp_path / "hub") as server:
        one = run(tmp_path, "-m", "hubmerge", *words, "--to", "me/one", "--out", tmp_path / "1")
        two = run(
            tmp_path, *LAUNCH, "-m", "hubmerge", *words, "--to", "me/two", "--out", tmp_path / "2"
        )
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/two").tags} == {"step2", "step4"}
        commits = [c.title for c in api.list_repo_commits("me/two")]
        assert commits.count("Step 2 of mini-mnist") == commits.count("Step 4 of mini-mnist") == 1
    assert curve(two)[0] == pytest.approx(curve(one)[0], abs=0.01)
    assert curve(two)[1] == pytest.approx(curve(one)[1], rel=1e-5)
    name = "adapter_model.safetensors" if more else "open_clip_model.safetensors"
    held = [load_file(tmp_path / place / "steps" / "step4" / name) for place in "12"]
    for key, weight in held[0].items():
        if not key.endswith("in_proj_bias"):  # whose gradient is rounding alone
            torch.testing.assert_close(held[1][key], weight, atol=3e-5, rtol=1e-3)


def test_weights_spread_over_processes_are_gathered_and_put_back(
    tmp_path: Path, training: Split
) -> None:
    run(tmp_path, *TORCHRUN, "-m", "tests.training.sharded", tmp_path)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said["once"] == said["again"]
    alone = fit(spec(steps=4), training)
    batches = Batches(alone.learner, training, alone.spec).of(range(1, 4))
    losses = [alone.update(step, micros, 5e-4) for step, micros in enumerate(batches, start=1)]
    assert said["losses"] == pytest.approx(losses, rel=1e-5)
    gathered = load_file(tmp_path / "weights.safetensors")
    whole = alone.weights()
    assert gathered.keys() == whole.keys()
    for name, weight in whole.items():
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(gathered[name], weight, atol=3e-5, rtol=1e-3)
