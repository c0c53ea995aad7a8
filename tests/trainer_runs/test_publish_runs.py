"""Runs of a real Trainer, on disk and as its own push leaves them on a Hub, become tagged steps."""

from __future__ import annotations

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd, HfApi

from hubmerge.manifest import Manifest, parse_manifest
from tests.command_line import run_command
from tests.trainer_runs.layouts import adapter, deepspeed

pytestmark = pytest.mark.usefixtures("running_hub")

_numbers = itertools.count(1)


@pytest.fixture
def to(api: HfApi) -> str:
    return f"demo/published{next(_numbers)}"


def publish(*words: object, code: int = 0) -> dict[str, Any]:
    done = run_command("publish", *words, "--json")
    assert done.exit_code == code, done.stderr
    result: dict[str, Any] = json.loads(done.stdout) if code == 0 else {"err": done.stderr}
    return result


def manifest_of(api: HfApi, repo: str, tag: str, tmp_path: Path) -> Manifest:
    path = api.hf_hub_download(repo, "hubmerge.json", revision=tag, local_dir=tmp_path / repo / tag)
    return parse_manifest(Path(path).read_bytes(), repo)


def push(api: HfApi, repo: str, title: str, files: dict[str, Path]) -> None:
    operations = [CommitOperationAdd(name, path) for name, path in files.items()]
    api.create_commit(repo, operations, commit_message=title)


def test_a_run_of_trainer(api: HfApi, trained: Path, base: Path, to: str, tmp_path: Path) -> None:
    words = (trained, "--to", to, "--base", "demo/base")
    plan = publish(*words, "--dry-run")
    assert plan["commits"] == {}
    assert not api.repo_exists(to)
    assert plan["curve"] == "exp(-eval_loss)"
    assert plan["seed"] == 42
    assert [c["marks"] for c in plan["checkpoints"]] == [[], ["best", "last"]]
    done = publish(*words)
    assert done["steps"] == [2, 4]
    state = json.loads((trained / "checkpoint-4" / "trainer_state.json").read_text())
    losses = {e["step"]: e["eval_loss"] for e in state["log_history"] if "eval_loss" in e}
    manifest = manifest_of(api, to, "step4", tmp_path)
    assert {p.step: p.accuracy for p in manifest.validation} == {
        step: math.exp(-loss) for step, loss in losses.items()
    }
    assert manifest.own_accuracy == math.exp(-losses[4])
    assert manifest.training == {
        "tune": "full", "seed": 42, "steps": 4, "curve": "exp(-eval_loss)",
    }  # fmt: skip
    assert manifest.task is None
    assert manifest.norms is not None
    assert manifest_of(api, to, "step2", tmp_path).validation == manifest.validation[:2]
    card = Path(api.hf_hub_download(to, "README.md", local_dir=tmp_path / "card")).read_text()
    assert "| step | loss | exp(-eval\\_loss) |" in card
    again = publish(*words)
    assert again["commits"] == done["commits"]


def test_later_steps_of_a_run_with_manifests(
    api: HfApi, trained: Path, base: Path, to: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained / "checkpoint-2", run / "checkpoint-2")
    words = (run, "--to", to, "--base", "demo/base")
    first = publish(*words)["commits"]
    shutil.copytree(trained / "checkpoint-4", run / "checkpoint-4")
    done = publish(*words)
    assert done["commits"]["step2"] == first["step2"]
    assert manifest_of(api, to, "step2", tmp_path).last_step == 2
    assert manifest_of(api, to, "step4", tmp_path).last_step == 4
    other = publish(*words, "--task", "mini-movie")
    assert other["commits"] == done["commits"]
    assert any("step2, step4 of" in note for note in other["notes"])


def test_the_base_is_found_in_the_run(api: HfApi, base: Path, to: str, tmp_path: Path) -> None:
    for step in (2, 4):
        adapter(tmp_path / "run", step, "unsloth/base-bnb-4bit")
    result = publish(tmp_path / "run", "--to", to, "--task", "mini-movie", code=2)
    assert "is a quantised copy" in result["err"]
    for step in (2, 4):
        adapter(tmp_path / "run", step, "demo/missing")
    result = publish(tmp_path / "run", "--to", to, "--task", "mini-movie", code=2)
    assert "which adapter_config.json names as the base, cannot be opened" in result["err"]
    for step in (2, 4):
        adapter(tmp_path / "run", step, "demo/base")
    result = publish(tmp_path / "run", "--to", to, "--task", "mini-movie", code=1)
    assert "w" in result["err"]  # it does not fit: the base has no such layer
    assert publish(tmp_path / "run", "--to", to)["manifest"] is False


def test_shards_are_refused_before_anything_is_pushed(api: HfApi, to: str, tmp_path: Path) -> None:
    deepspeed(tmp_path, 2)
    result = publish(tmp_path, "--to", to, code=1)
    assert "--safe_serialization" in result["err"]
    assert not api.repo_exists(to)


def test_folders_in_a_repository(
    api: HfApi, trained: Path, base: Path, to: str, tmp_path: Path, running_home: Path
) -> None:
    """hub_strategy: all_checkpoints."""
    source = f"{to}-run"
    api.create_repo(source)
    api.upload_folder(repo_id=source, folder_path=trained)
    cache = running_home / "hub" / "cache" / f"models--{source.replace('/', '--')}"
    plan = publish(source, "--to", to, "--dry-run")
    assert plan["steps"] == [2, 4]
    assert plan["commits"] == {}
    assert plan["seed"] == 42
    assert not list(cache.rglob("*.safetensors"))
    done = publish(source, "--to", to, "--base", "demo/base")
    assert done["curve"] == "exp(-eval_loss)"
    manifest = manifest_of(api, to, "step2", tmp_path)
    assert str(manifest.training["published_from"]).startswith(f"{source}@")
    assert [point.step for point in manifest.validation] == [0, 2]
    files = set(api.list_repo_files(to, revision="step4"))
    assert not {name for name in files if name.endswith((".pt", ".pth", ".bin"))}
    fetched = {path.suffix for path in (cache / "snapshots").rglob("*") if not path.is_dir()}
    assert fetched == {".json", ".md", ".safetensors"}
    assert "is the repository of the run itself" in publish(
        source, "--to", source, code=2
    )["err"]  # fmt: skip


def test_commits_of_trainer(api: HfApi, trained: Path, base: Path, to: str, tmp_path: Path) -> None:
    """hub_strategy: checkpoint, weights at the root of each commit and the last checkpoint."""
    source = f"{to}-run"
    api.create_repo(source)
    for step in (2, 4):
        folder = trained / f"checkpoint-{step}"
        names = ("model.safetensors", "config.json", "training_args.bin")
        push(api, source, f"Training in progress, step {step}", {n: folder / n for n in names})
        last = {f"last-checkpoint/{path.name}": path for path in folder.iterdir()}
        push(api, source, f"Training in progress, step {step}, checkpoint", last)
    push(api, source, "End of training", {"README.md": trained / "README.md"})
    done = publish(source, "--to", to, "--base", "demo/base")
    assert done["steps"] == [2, 4]
    assert done["seed"] == 42
    points = manifest_of(api, to, "step2", tmp_path).validation
    assert [point.step for point in points] == [0, 2]
    local = publish(trained, "--to", f"{to}-local", "--dry-run")
    assert [c["value"] for c in local["checkpoints"]] == [c["value"] for c in done["checkpoints"]]


@pytest.mark.parametrize(("unit", "per_unit"), [("step", 1), ("epoch", 2)])
def test_commits_without_a_state(
    api: HfApi, trained: Path, base: Path, to: str, tmp_path: Path, unit: str, per_unit: int
) -> None:
    """hub_strategy: every_save, whose only history is the table on the card."""
    source = f"{to}-run"
    api.create_repo(source)
    for step in (2, 4):
        folder = trained / f"checkpoint-{step}"
        names = ("model.safetensors", "config.json", "training_args.bin")
        title = f"Training in progress, {unit} {step // per_unit}"
        push(api, source, title, {n: folder / n for n in names})
    push(api, source, "End of training", {"README.md": trained / "README.md"})
    done = publish(source, "--to", to, "--base", "demo/base")
    assert done["steps"] == [2, 4]
    points = manifest_of(api, to, "step4", tmp_path).validation
    assert [point.step for point in points] == [0, 2, 4]
    assert done["curve"] == "exp(-eval_loss)"
