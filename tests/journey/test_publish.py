"""Publishing checkpoints that lie on disk: a Trainer's, or ours, as tagged steps on a real Hub."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import HfApi
from safetensors.numpy import load_file, save_file

from hubmerge.manifest import parse_manifest
from hubmerge.opening.references import read_local_manifest
from tests.journey.conftest import Command, World

TRAINERS_OWN = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin")
_numbers = itertools.count(1)


@pytest.fixture
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture
def to() -> str:
    """The id of a repository that is still to be made."""
    return f"demo/published{next(_numbers)}"


@pytest.fixture
def run(world: World, api: HfApi, tmp_path: Path) -> Path:
    """The output folder of a Trainer that fine-tuned the tiny CLIP for a few steps."""
    base = Path(api.snapshot_download("hubmerge/tiny-clip", local_dir=tmp_path / "base"))
    for step in (2, 4):
        folder = tmp_path / "run" / f"checkpoint-{step}"
        ignored = shutil.ignore_patterns(".*", "README.md", "*.safetensors")
        shutil.copytree(base, folder, ignore=ignored)
        for file in base.glob("*.safetensors"):
            tensors = load_file(file)
            moved = {
                name: np.asarray(one + np.float32(step) / 1000)
                for name, one in tensors.items()
                if one.dtype == np.float32
            }
            save_file({**tensors, **moved}, folder / file.name, metadata={"format": "pt"})
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": step}))
        for name in TRAINERS_OWN:
            (folder / name).write_bytes(b"a pickle")
    (tmp_path / "run" / "runs").mkdir()
    return tmp_path / "run"


def tags(api: HfApi, repo: str) -> dict[str, str]:
    return {tag.name: tag.target_commit for tag in api.list_repo_refs(repo).tags}


def test_a_trainers_checkpoints(hubmerge: Command, api: HfApi, run: Path, to: str) -> None:
    said = hubmerge("publish", str(run), "--to", to, "--json")
    assert said.code == 0, said.err
    assert said.data["steps"] == [2, 4]
    assert tags(api, to) == said.data["commits"]
    files = set(api.list_repo_files(to, revision="step2"))
    assert "trainer_state.json" in files
    assert files.isdisjoint(TRAINERS_OWN)
    assert "hubmerge.json" not in files
    again = hubmerge("publish", str(run), "--to", to, "--json")
    assert again.data == said.data
    assert len(api.list_repo_commits(to)) == 3


def test_with_base_and_task_each_step_says_where_it_comes_from(
    hubmerge: Command, api: HfApi, run: Path, to: str, tmp_path: Path
) -> None:
    words = ("publish", str(run), "--to", to, "--base", "hubmerge/tiny-clip", "--task",
             "mini-mnist")  # fmt: skip
    said = hubmerge(*words)
    assert said.code == 0, said.err
    there = api.hf_hub_download(to, "hubmerge.json", revision="step4", local_dir=tmp_path / "d")
    manifest = parse_manifest(Path(there).read_bytes(), to)
    assert (manifest.step, manifest.last_step, manifest.task_name) == (4, 4, "mini-mnist")
    assert manifest.base.name == "hubmerge/tiny-clip"
    assert set(TRAINERS_OWN).isdisjoint(manifest.files)
    before = tags(api, to)
    assert hubmerge(*words).code == 0
    assert tags(api, to) == before
    rows = hubmerge("steps", to, "--json").data
    assert [(row["step"], row["found"], row["task"]) for row in rows] == [
        (2, "tag", "mini-mnist"), (4, "tag", "mini-mnist"),
    ]  # fmt: skip
    merged = hubmerge("merge", f"{to}@step2", "demo/mnist@step4", "--method", "average",
                      "--out", str(tmp_path / "out"))  # fmt: skip
    assert merged.code == 0, merged.err


def test_a_crash_before_the_tag_is_mended(
    hubmerge: Command, api: HfApi, run: Path, to: str
) -> None:
    first = hubmerge("publish", str(run), "--to", to, "--json").data["commits"]
    for tag in ("step2", "step4"):
        api.delete_tag(to, tag=tag)
    said = hubmerge("publish", str(run), "--to", to, "--json")
    assert said.code == 0, said.err
    assert said.data["commits"] == first


def test_more_steps_follow(hubmerge: Command, api: HfApi, run: Path, to: str) -> None:
    late = run.parent / "late"
    shutil.move(run / "checkpoint-4", late)
    assert hubmerge("publish", str(run), "--to", to).code == 0
    shutil.move(late, run / "checkpoint-4")
    assert hubmerge("publish", str(run), "--to", to).code == 0
    assert set(tags(api, to)) == {"step2", "step4"}


def test_our_own_steps(hubmerge: Command, world: World, api: HfApi, to: str) -> None:
    steps = next(world.home.glob("runs/demo/mnist/*/steps"))
    theirs = read_local_manifest(steps / "step4")
    said = hubmerge("publish", str(steps), "--to", to)
    assert said.code == 0, said.err
    assert set(tags(api, to)) == {"step2", "step4", "step8"}
    row = hubmerge("steps", to, "--json").data[1]
    assert theirs is not None
    assert (row["task"], row["validation"]) == (theirs.task_name, theirs.validation[-1].accuracy)


def test_a_dry_run_sends_nothing(hubmerge: Command, api: HfApi, run: Path, to: str) -> None:
    said = hubmerge("publish", str(run), "--to", to, "--dry-run")
    assert said.code == 0, said.err
    assert "would publish" in said.out
    assert not api.repo_exists(to)


def test_the_trainer_state_says_the_step(hubmerge: Command, api: HfApi, run: Path, to: str) -> None:
    (run / "checkpoint-4").rename(run / "checkpoint-40")
    assert hubmerge("publish", str(run), "--to", to, "--json").data["steps"] == [2, 4]
    (run / "checkpoint-40" / "trainer_state.json").write_text('{"global_step": 2}')
    said = hubmerge("publish", str(run), "--to", to)
    assert said.code == 1
    assert "Two folders hold step 2." in said.err


def test_everything_is_checked_before_anything_is_sent(
    hubmerge: Command, api: HfApi, run: Path, to: str
) -> None:
    for folder in run.glob("checkpoint-*"):
        for file in folder.glob("*.safetensors"):
            file.write_bytes(b"broken")
    said = hubmerge("publish", str(run), "--to", to)
    assert said.code == 1
    assert "2 problems" in said.err
    assert not api.repo_exists(to)
    (run / "empty").mkdir()
    for words, sentence in (
        ((str(run / "empty"), "--to", to), "holds no checkpoints"),
        ((str(run / "nowhere"), "--to", to), "There is no folder"),
        ((str(run), "--to", to, "--base", "hubmerge/tiny-clip"), "both --base and --task"),
        ((str(run), "--to", "../x"), "is not a repository id"),
    ):
        said = hubmerge("publish", *words)
        assert said.code == 2
        assert sentence in said.err


def test_other_checkpoints_never_replace_published_ones(
    hubmerge: Command, api: HfApi, run: Path, to: str
) -> None:
    assert hubmerge("publish", str(run), "--to", to).code == 0
    before = tags(api, to)
    for file in (run / "checkpoint-2").glob("*.safetensors"):
        tensors = load_file(file)
        save_file({name: np.asarray(one + one) for name, one in tensors.items()}, file)
    said = hubmerge("publish", str(run), "--to", to)
    assert said.code == 3
    assert "already stands for other bytes" in said.err
    assert tags(api, to) == before
    assert hubmerge("publish", str(run), "--to", "hubmerge/tiny-clip").code == 3
