"""Training in another process, and with two that publish only once: same losses and weights."""

from __future__ import annotations

import json
import os
import subprocess
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.server import lease
from hubmerge.tasks.data import Split
from hubmerge.training.batches import Batches
from tests.training.builders import make_spec, make_tiny_fit, run_training

ROOT = Path(__file__).resolve().parents[2]
TRAIN = (
    "train", "--base", "hubmerge/tiny-clip", "--task", "mini-mnist", "--steps", "4",
    "--push-every", "2,4", "--lr", "5e-4", "--schedule", "constant", "--warmup-steps", "2",
    "--batch", "16", "--json",
)  # fmt: skip
LAUNCH = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2",
          "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def run(python: Path, home: Path, *words: object) -> str:
    process = subprocess.run(
        [str(python), *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "HUBMERGE_HOME": str(home), "HUBMERGE_HUB": "local",
             "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    return process.stdout


def curve(output: str) -> tuple[list[float], list[float]]:
    points: list[Any] = json.loads(output)["validation"]
    return [p["accuracy"] for p in points], [p["loss"] for p in points[1:]]


REPEAT = """
from hashlib import sha256
from hubmerge.tasks.data import load_split
from hubmerge.tasks.lookup import find_task
from tests.training.builders import make_spec, run_training
splits = [load_split(find_task("mini-mnist"), name) for name in ("train", "validation")]
print(sha256(run_training(make_spec(steps=2, push_every="2"), *splits)[0]).hexdigest())
"""


def test_a_run_repeats_in_another_process(python: Path, training: Split, validation: Split) -> None:
    weights, _ = run_training(make_spec(steps=2, push_every="2"), training, validation)
    process = subprocess.run(
        [python, "-c", REPEAT],
        cwd=ROOT, capture_output=True, check=True,
    )  # fmt: skip
    assert process.stdout.decode().strip() == sha256(weights).hexdigest()


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        pytest.param((), id="full"),  # a minute of two cores
        pytest.param(("--tune", "lora", "--accumulate", "2"), id="lora"),
    ],
)
def test_two_processes_train_like_one(python: Path, tmp_path: Path, more: tuple[str, ...]) -> None:
    words = (*TRAIN, *more)
    with lease(tmp_path / "hub") as server:
        to_one = ("--to", "me/one", "--out", tmp_path / "1")
        to_two = ("--to", "me/two", "--out", tmp_path / "2")
        one = run(python, tmp_path, "-m", "hubmerge", *words, *to_one)
        two = run(python, tmp_path, *LAUNCH, "-m", "hubmerge", *words, *to_two)
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/two").tags} == {"step2", "step4"}
        commits = [c.title for c in api.list_repo_commits("me/two")]
        assert commits.count("Step 2 of mini-mnist") == commits.count("Step 4 of mini-mnist") == 1
    assert curve(two)[0] == pytest.approx(curve(one)[0], abs=0.01)
    assert curve(two)[1] == pytest.approx(curve(one)[1], rel=1e-5)
    name = "adapter_model.safetensors" if more else "open_clip_model.safetensors"
    weights = [load_file(tmp_path / folder / "steps" / "step4" / name) for folder in "12"]
    for key, weight in weights[0].items():
        if not key.endswith("in_proj_bias"):  # its gradient is only rounding error
            torch.testing.assert_close(weights[1][key], weight, atol=3e-5, rtol=1e-3)


@pytest.mark.slow
def test_sharded_weights_are_gathered_and_restored(
    python: Path, tmp_path: Path, training: Split
) -> None:
    run(python, tmp_path, *TORCHRUN, "-m", "tests.training.sharded", tmp_path)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["once"] == result["again"]
    single = make_tiny_fit(make_spec(steps=4), training)
    batches = Batches(single.learner, training, single.spec).for_steps(range(1, 4))
    losses = [
        single.update(step, micro_batches, 5e-4)
        for step, micro_batches in enumerate(batches, start=1)
    ]
    assert result["losses"] == pytest.approx(losses, rel=1e-5)
    gathered = load_file(tmp_path / "weights.safetensors")
    expected = single.weights()
    assert gathered.keys() == expected.keys()
    for name, weight in expected.items():
        if not name.endswith("in_proj_bias"):
            torch.testing.assert_close(gathered[name], weight, atol=3e-5, rtol=1e-3)
