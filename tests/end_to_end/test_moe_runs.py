"""Training a mixture of experts in two processes, and after a kill: equal results."""

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
from hubmerge.weights.moe_config import EXPERTS_FOLDER, MOE_CONFIG, ROUTER_WEIGHTS
from tests.end_to_end.moe_experts import FEW_STEPS, HEBREW, LORA, MNIST, read_folder
from tests.training.test_processes import LAUNCH, ROOT, TORCHRUN, curve, run

TRAIN = ("-m", "hubmerge", "train", "--base", "hubmerge/tiny-clip", *FEW_STEPS, *LORA)
MOERGE = (
    "-m", "hubmerge", "moerge", MNIST, HEBREW, "--push-every", "2", "--lr", "1e-3", "--batch",
    "16", "--max-examples", "64", "--json",
)  # fmt: skip


def train_loras(python: Path, home: Path) -> None:
    for task in ("mnist", "hebrew"):
        run(python, home, *TRAIN, "--task", f"mini-{task}", "--to", f"loras/{task}", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("launch", [LAUNCH, TORCHRUN], ids=["accelerate", "torchrun"])
@pytest.mark.parametrize(
    "options", [(), ("--balance", "0.1", "--recompute", "--top-k", "1")], ids=str
)
def test_two_processes_train_the_same_mixture_as_one(
    python: Path, tmp_path: Path, launch: tuple[str, ...], options: tuple[str, ...]
) -> None:
    words = (*MOERGE, "--train-steps", "4", *options)
    with lease(tmp_path / "hub") as server:
        train_loras(python, tmp_path)
        single = run(python, tmp_path, *words, "--push", "me/one", "--out", tmp_path / "1")
        double = run(python, tmp_path, *launch, *words, "--push", "me/two", "--out", tmp_path / "2")
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/two").tags} == {"step2", "step4"}
        titles = [commit.title for commit in api.list_repo_commits("me/two")]
    for step in (2, 4):
        assert titles.count(f"Mixture of 2 experts at step {step}") == 1
    assert curve(double)[0] == pytest.approx(curve(single)[0], abs=0.01)
    if not options:  # with --balance each process balances its own rows
        assert curve(double)[1] == pytest.approx(curve(single)[1], rel=1e-4)
        for name in (ROUTER_WEIGHTS, f"{EXPERTS_FOLDER}/mini-mnist/adapter_model.safetensors"):
            first, second = (load_file(tmp_path / n / name) for n in "12")
            difference = max((second[k] - first[k]).abs().max().item() for k in first)
            assert difference < 1e-3, name
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
def test_a_killed_run_continues(python: Path, tmp_path: Path) -> None:
    words = (*MOERGE, "--train-steps", "30", "--push-every", "10", "--state-every", "1")
    with lease(tmp_path / "hub") as server:
        train_loras(python, tmp_path)
        complete: dict[str, Any] = json.loads(
            run(python, tmp_path, *words, "--push", "me/complete")
        )
        (run_folder,) = list((tmp_path / "moes").iterdir())
        complete_run = tmp_path / "complete"
        run_folder.rename(complete_run)
        for seconds in (0.0, 1.0, 3.0):
            killed = start(tmp_path, *words, "--push", "me/killed")
            started = time.monotonic()
            while (
                not (run_folder / "validation.jsonl").exists() and time.monotonic() - started < 60
            ):
                time.sleep(0.05)
            time.sleep(seconds)
            killed.send_signal(signal.SIGKILL)
            killed.wait()
        again: dict[str, Any] = json.loads(run(python, tmp_path, *words, "--push", "me/killed"))
        api = HfApi(endpoint=server.url, token=server.token)
        assert {tag.name for tag in api.list_repo_refs("me/killed").tags} == {
            "step10", "step20", "step30",
        }  # fmt: skip
        titles = [commit.title for commit in api.list_repo_commits("me/killed")]
    assert [titles.count(f"Mixture of 2 experts at step {n}") for n in (10, 20, 30)] == [1, 1, 1]
    assert again["run"] == complete["run"]
    assert again["validation"] == complete["validation"]
    expected, actual = read_folder(complete_run / "steps"), read_folder(run_folder / "steps")
    names = [n for n in expected if n.endswith((".safetensors", MOE_CONFIG, "hubmerge.json"))]
    assert len(names) == 3 * 5
    assert all(actual[name] == expected[name] for name in names)
    assert sorted(path.name for path in run_folder.iterdir()) == [
        ".lock",
        "steps",
        "validation.jsonl",
    ]
