"""Mixtures in two processes, and in one that is killed: what comes of it is the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from safetensors.torch import load_file

from hubmerge.server import lease
from hubmerge.weights.moe_config import CONFIG, EXPERTS, ROUTER
from tests.journey.moes import FEW, HEBREW, LORA, MNIST, contents
from tests.training.test_processes import LAUNCH, ROOT, TORCHRUN, curve, run

TRAIN = ("-m", "hubmerge", "train", "--base", "hubmerge/tiny-clip", *FEW, *LORA)
MOERGE = (
    "-m", "hubmerge", "moerge", MNIST, HEBREW, "--push-every", "2", "--lr", "1e-3", "--batch",
    "16", "--max-examples", "64", "--json",
)  # fmt: skip


def train_loras(home: Path) -> None:
    for task in ("mnist", "hebrew"):
        run(home, *TRAIN, "--task", f"mini-{task}", "--to", f"loras/{task}", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("launch", [LAUNCH, TORCHRUN], ids=["accelerate", "torchrun"])
@pytest.mark.parametrize("more", [(), ("--balance", "0.1", "--recompute", "--top-k", "1")], ids=str)
def test_two_processes_mix_as_one(
    tmp_path: Path, launch: tuple[str, ...], more: tuple[str, ...]
) -> None:
    words = (*MOERGE, "--train-steps", "4", *more)
    with lease(tmp_path / "hub") as server:
        train_loras(tmp_path)
        one = run(tmp_path, *words, "--push", "me/one", "--out", tmp_path / "1")
        two = run(tmp_path, *launch, *words, "--push", "me/two", "--out", tmp_path / "2")
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/two").tags} == {"step2", "step4"}
        titles = [commit.title for commit in api.list_repo_commits("me/two")]
    for step in (2, 4):
        assert titles.count(f"Mixture of 2 experts at step {step}") == 1
    assert curve(two)[0] == pytest.approx(curve(one)[0], abs=0.01)
    if not more:  # each process balances its own rows
        assert curve(two)[1] == pytest.approx(curve(one)[1], rel=1e-4)
        for name in (ROUTER, f"{EXPERTS}/mini-mnist/adapter_model.safetensors"):
            ours, theirs = (load_file(tmp_path / which / name) for which in "12")
            off = max((theirs[key] - ours[key]).abs().max().item() for key in ours)
            assert off < 1e-3, name
    assert json.loads((tmp_path / "2" / "hubmerge.json").read_text())["training"]["processes"] == 2
    routing = [json.loads((tmp_path / n / "routing.json").read_text()) for n in "12"]
    assert routing[0]["cost"] == routing[1]["cost"]


def start(home: Path, *words: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env={**os.environ, "HUBMERGE_HOME": str(home), "HUBMERGE_HUB": "local",
             "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    words = (*MOERGE, "--train-steps", "30", "--push-every", "10", "--state-every", "1")
    with lease(tmp_path / "hub") as server:
        train_loras(tmp_path)
        whole: dict[str, Any] = json.loads(run(tmp_path, *words, "--push", "me/whole"))
        (runs,) = list((tmp_path / "moes").iterdir())
        kept = tmp_path / "whole"
        runs.rename(kept)
        for after in (0.0, 1.0, 3.0):
            killed = start(tmp_path, *words, "--push", "me/killed")
            waited = time.monotonic()
            while not (runs / "validation.jsonl").exists() and time.monotonic() - waited < 60:
                time.sleep(0.05)
            time.sleep(after)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        again: dict[str, Any] = json.loads(run(tmp_path, *words, "--push", "me/killed"))
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/killed").tags} == {
            "step10", "step20", "step30",
        }  # fmt: skip
        titles = [commit.title for commit in api.list_repo_commits("me/killed")]
    assert [titles.count(f"Mixture of 2 experts at step {n}") for n in (10, 20, 30)] == [1, 1, 1]
    assert again["run"] == whole["run"]
    assert again["validation"] == whole["validation"]
    ours, theirs = contents(kept / "steps"), contents(runs / "steps")
    names = [n for n in ours if n.endswith((".safetensors", CONFIG, "hubmerge.json"))]
    assert len(names) == 3 * 5
    assert all(theirs[name] == ours[name] for name in names)
    assert sorted(path.name for path in runs.iterdir()) == [".lock", "steps", "validation.jsonl"]
