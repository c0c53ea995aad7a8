"""hubmerge publish: checkpoints of Trainer or of hubmerge on disk become tagged steps on a Hub."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file, save_file

from hubmerge.choosing.candidates import open_pool
from hubmerge.hub.client import Hub
from hubmerge.manifest import parse_manifest
from hubmerge.opening.references import read_local_manifest
from hubmerge.progress import no_progress
from hubmerge.refs import parse_ref
from hubmerge.selection.proxy import starting_accuracy
from tests.end_to_end.conftest import Command, LocalHub

TRAINER_FILES = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
_numbers = itertools.count(1)


@pytest.fixture
def api(local_hub: LocalHub) -> HfApi:
    return HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)


@pytest.fixture
def repo() -> str:
    """The id of a new repository, which does not exist yet."""
    return f"demo/published{next(_numbers)}"


@pytest.fixture
def run_folder(local_hub: LocalHub, api: HfApi, tmp_path: Path) -> Path:
    """The output folder of Trainer after a few steps of fine-tuning the tiny CLIP."""
    base = Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))
    for step in (2, 4):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        ignored = shutil.ignore_patterns(".*", "README.md", "*.safetensors")
        shutil.copytree(base, folder, ignore=ignored)
        for file in base.glob("*.safetensors"):
            tensors = load_file(file)
            trained = {
                name: np.asarray(tensor + np.float32(step) / 1000)
                for name, tensor in tensors.items()
                if tensor.dtype == np.float32
            }
            save_file({**tensors, **trained}, folder / file.name, metadata={"format": "pt"})
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for name in TRAINER_FILES:
            (folder / name).write_bytes(b"a pickle")
    (tmp_path / "run" / "runs").mkdir()
    return tmp_path / "run"


def tags(api: HfApi, repo: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}


def test_checkpoints_of_trainer_become_tagged_steps(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    result = hubmerge("publish", str(run_folder), "--to", repo, "--json")
    assert result.code == 0, result.err
    assert result.data["steps"] == [2, 4]
    assert tags(api, repo) == result.data["commits"]
    files = set(api.list_repo_files(repo, revision="step2"))
    assert "trainer_state.json" in files
    assert files.isdisjoint(TRAINER_FILES)
    assert "hubmerge.json" not in files
    again = hubmerge("publish", str(run_folder), "--to", repo, "--json")
    assert again.data == result.data
    assert len(api.list_repo_commits(repo)) == 3


def test_with_base_and_task_each_step_has_a_manifest(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str, tmp_path: Path
) -> None:
    words = ("publish", str(run_folder), "--to", repo, "--base", "hubmerge/tiny-clip", "--task",
             "mini-mnist")  # fmt: skip
    result = hubmerge(*words)
    assert result.code == 0, result.err
    file = api.hf_hub_download(repo, "hubmerge.json", revision="step4", local_dir=tmp_path / "d")
    manifest = parse_manifest(Path(file).read_bytes(), repo)
    assert (manifest.step, manifest.last_step, manifest.task_name) == (4, 4, "mini-mnist")
    assert manifest.base.name == "hubmerge/tiny-clip"
    assert set(TRAINER_FILES).isdisjoint(manifest.files)
    before = tags(api, repo)
    assert hubmerge(*words).code == 0
    assert tags(api, repo) == before
    rows = hubmerge("steps", repo, "--json").data
    assert [(row["step"], row["found"], row["task"]) for row in rows] == [
        (2, "tag", "mini-mnist"), (4, "tag", "mini-mnist"),
    ]  # fmt: skip
    merged = hubmerge("merge", f"{repo}@step2", "demo/mnist@step4", "--method", "average",
                      "--out", str(tmp_path / "out"))  # fmt: skip
    assert merged.code == 0, merged.err


def test_a_missing_tag_is_added_by_the_next_run(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    first = hubmerge("publish", str(run_folder), "--to", repo, "--json").data["commits"]
    for tag in ("step2", "step4"):
        api.delete_tag(repo, tag=tag)
    result = hubmerge("publish", str(run_folder), "--to", repo, "--json")
    assert result.code == 0, result.err
    assert result.data["commits"] == first


def test_later_steps_are_added(hubmerge: Command, api: HfApi, run_folder: Path, repo: str) -> None:
    later = run_folder.parent / "later"
    shutil.move(run_folder / "checkpoint-4", later)
    assert hubmerge("publish", str(run_folder), "--to", repo).code == 0
    shutil.move(later, run_folder / "checkpoint-4")
    assert hubmerge("publish", str(run_folder), "--to", repo).code == 0
    assert set(tags(api, repo)) == {"step2", "step4"}


def test_steps_of_a_hubmerge_run_keep_their_manifests(
    hubmerge: Command, local_hub: LocalHub, api: HfApi, repo: str
) -> None:
    steps = next(local_hub.home.glob("runs/demo/mnist/*/steps"))
    manifest = read_local_manifest(steps / "step4")
    result = hubmerge("publish", str(steps), "--to", repo)
    assert result.code == 0, result.err
    assert set(tags(api, repo)) == {"step2", "step4", "step8"}
    row = hubmerge("steps", repo, "--json").data[1]
    assert manifest is not None
    assert row["task"] == manifest.task_name
    assert row["validation"] == manifest.validation[-1].accuracy


def test_a_dry_run_uploads_nothing(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    result = hubmerge("publish", str(run_folder), "--to", repo, "--dry-run")
    assert result.code == 0, result.err
    assert "would publish" in result.out
    assert not api.repo_exists(repo)


def test_the_step_is_read_from_the_trainer_state(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    (run_folder / "checkpoint-4").rename(run_folder / "checkpoint-40")
    assert hubmerge("publish", str(run_folder), "--to", repo, "--json").data["steps"] == [2, 4]
    (run_folder / "checkpoint-40" / "trainer_state.json").write_text('{"global_step": 2}')
    result = hubmerge("publish", str(run_folder), "--to", repo)
    assert result.code == 1
    assert "Two folders hold step 2." in result.err


def test_everything_is_checked_before_the_first_upload(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    for folder in run_folder.glob("checkpoint-*"):
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"broken")
    result = hubmerge("publish", str(run_folder), "--to", repo)
    assert result.code == 1
    assert "2 problems" in result.err
    assert not api.repo_exists(repo)
    (run_folder / "empty").mkdir()
    for words, message in (
        ((str(run_folder / "empty"), "--to", repo), "holds no checkpoints"),
        ((str(run_folder / "nowhere"), "--to", repo), "There is no folder"),
        ((str(run_folder / "empty"), "--to", repo, "--last-step", "3"), "holds no checkpoints"),
        ((str(run_folder), "--to", "../x"), "is not a repository id"),
    ):
        result = hubmerge("publish", *words)
        assert result.code == 2
        assert message in result.err


def test_other_checkpoints_never_replace_published_ones(
    hubmerge: Command, api: HfApi, run_folder: Path, repo: str
) -> None:
    assert hubmerge("publish", str(run_folder), "--to", repo).code == 0
    before = tags(api, repo)
    for file in (run_folder / "checkpoint-2").glob("*.safetensors"):
        tensors = load_file(file)
        doubled = {name: np.asarray(tensor + tensor) for name, tensor in tensors.items()}
        save_file(doubled, file)
    result = hubmerge("publish", str(run_folder), "--to", repo)
    assert result.code == 3
    assert "already exists and has other bytes" in result.err
    assert tags(api, repo) == before
    assert hubmerge("publish", str(run_folder), "--to", "hubmerge/tiny-clip").code == 3


def test_policies_use_the_curve_of_trainer(
    hubmerge: Command, hub: Hub, run_folder: Path, repo: str
) -> None:
    log = [
        {"step": 0, "eval_accuracy": 0.1, "eval_loss": 2.0},
        {"step": 2, "eval_accuracy": 0.6, "eval_loss": 1.0},
        {"step": 4, "eval_accuracy": 0.5, "eval_loss": 0.9},
    ]
    stopping = {
        "args": {"early_stopping_patience": 1},
        "attributes": {"early_stopping_patience_counter": 1},
    }
    for step in (2, 4):
        state = {
            "global_step": step, "log_history": log[: 1 + step // 2], "max_steps": 8,
            "stateful_callbacks": {"EarlyStoppingCallback": stopping} if step == 4 else {},
        }  # fmt: skip
        path = run_folder / f"checkpoint-{step}" / "trainer_state.json"
        path.write_text(json.dumps(state))
    words = ("publish", str(run_folder), "--to", repo, "--base", "hubmerge/tiny-clip", "--task",
             "mini-mnist", "--json")  # fmt: skip
    result = hubmerge(*words)
    assert result.code == 0, result.err
    assert result.data["curve"] == "eval_accuracy"
    pool = open_pool(hub, [parse_ref(repo)], [], None, no_progress).pool
    (steps,) = pool.candidates
    assert [candidate.own_accuracy for candidate in steps] == [0.6, 0.5]
    assert [candidate.stopped_early for candidate in steps] == [False, True]
    assert starting_accuracy(steps[-1]) == 0.1
    assert all(candidate.norms is not None for candidate in steps)
    assert hubmerge("steps", repo, "--json").data[1]["marks"] == ["early stop", "last"]
