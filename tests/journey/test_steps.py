"""Seeing a run: the curve beside each step's card, and `hubmerge steps`, on a real Hub."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from safetensors.numpy import save_file

from hubmerge.cards.figures import training_picture
from hubmerge.cli.tables import sparkline
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.manifest import NAME, Manifest, Point, Source
from hubmerge.opening.integrity import is_sealed
from hubmerge.opening.publication import CARD, seal, step_publication
from hubmerge.opening.references import read_local_manifest
from tests.journey.conftest import Command, World

ACCURACIES = {1: 0.5, 2: 0.6, 4: 0.9, 8: 0.9, 16: 0.8}
BASE = Source("hubmerge/tiny-clip@" + "b" * 12, "b" * 40, "d" * 64)
LORA = {"anneal": "trajectory", "tune": "lora"}
_numbers = itertools.count(1)


@pytest.fixture
def api(world: World) -> HfApi:
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture
def hub(world: World, tmp_path: Path) -> Hub:
    return Hub(world.server.url, world.server.token, tmp_path / "cache", "the test Hub")


@pytest.fixture
def repo(hub: Hub) -> str:
    """The id of a new repository."""
    repo_id = f"demo/run{next(_numbers)}"
    ensure_repo(hub, repo_id)
    return repo_id


def sealed(folder: Path, step: int, training: dict[str, Any]) -> Manifest:
    """A step folder as a run would have saved it, with weights of one number."""
    folder.mkdir(parents=True)
    save_file({"w": np.array([step], np.float32)}, folder / "model.safetensors")
    curve = tuple(
        Point(at, 1.0 / at, accuracy, 400, 1e-4)
        for at, accuracy in ACCURACIES.items()
        if at <= step
    )
    manifest = Manifest(
        kind="expert", base=BASE, task="mini-cats@1", step=step, last_step=32, training=training,
        validation=curve, run="r" * 64, command="hubmerge train",
    )  # fmt: skip
    seal(folder, manifest)
    whole = read_local_manifest(folder)
    assert whole is not None
    return whole


def published(hub: Hub, repo: str, folder: Path, step: int, training: dict[str, Any]) -> str:
    return publish(hub, step_publication(folder, sealed(folder, step, training), repo))


def run_of(hub: Hub, repo: str, into: Path, training: dict[str, Any]) -> None:
    """A run whose early stopping ended it at step 16."""
    for step in ACCURACIES:
        stopped = {"stopped": "early"} if step == 16 else {}
        published(hub, repo, into / f"{repo.replace('/', '-')}-{step}", step, training | stopped)


def test_a_step_is_published_with_its_curve(
    hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    commit = published(hub, repo, tmp_path / "one", 4, LORA)
    assert {"curve.csv", "curve.png"} < set(api.list_repo_files(repo, revision="step4"))
    there = Path(api.hf_hub_download(repo, "curve.csv", revision="step4", local_dir=tmp_path / "d"))
    # sqrt(0.5 * 0.5 / 400), sqrt(0.6 * 0.4 / 400) and sqrt(0.9 * 0.1 / 400).
    assert there.read_text() == (
        "step,loss,validation_accuracy,standard_error,lr\n"
        "1,1,0.5,0.025,0.0001\n"
        "2,0.5,0.6,0.0244949,0.0001\n"
        "4,0.25,0.9,0.015,0.0001\n"
    )
    # Saved again from nothing, it is the same step: the tag stands and stands for it.
    assert published(hub, repo, tmp_path / "again", 4, LORA) == commit


def test_the_manifest_does_not_vouch_for_a_drawing(tmp_path: Path) -> None:
    manifest = sealed(tmp_path / "step", 4, LORA)
    assert set(manifest.files) == {"model.safetensors"}
    (tmp_path / "step" / "curve.png").write_bytes(b"drawn by another matplotlib")
    assert is_sealed(tmp_path / "step", manifest)


def test_a_merge_has_no_curve(tmp_path: Path) -> None:
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    seal(tmp_path, Manifest(kind="merge", base=BASE, experts=(BASE, BASE), method="average"))
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", NAME, CARD}


def test_a_card_told_anew_on_main_keeps_its_curve(
    hubmerge: Command, hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    published(hub, repo, tmp_path / "step", 4, LORA)
    said = hubmerge("card", f"{repo}@step4", "--push", f"{repo}-card")
    assert said.code == 0, said.err
    assert "](curve.png)" in said.out
    copied = Path(api.hf_hub_download(f"{repo}-card", "curve.png", local_dir=tmp_path / "d"))
    manifest = read_local_manifest(tmp_path / "step")
    assert manifest is not None
    assert copied.read_bytes() == training_picture(manifest.validation)


def test_steps_are_marked(hubmerge: Command, hub: Hub, repo: str, tmp_path: Path) -> None:
    run_of(hub, repo, tmp_path, LORA)
    rows = hubmerge("steps", repo, "--json").data
    assert {row["step"]: row["marks"] for row in rows} == {
        1: [], 2: [], 4: ["best"], 8: [], 16: ["early stop", "last"],
    }  # fmt: skip
    assert {(row["anneal"], row["tune"]) for row in rows} == {("trajectory", "lora")}


def test_each_repository_has_its_own_marks_and_curve(
    hubmerge: Command, hub: Hub, repo: str, tmp_path: Path
) -> None:
    other = f"{repo}b"
    ensure_repo(hub, other)
    run_of(hub, repo, tmp_path, LORA)
    published(hub, other, tmp_path / "o1", 1, {})
    published(hub, other, tmp_path / "o2", 2, {})
    said = hubmerge("steps", repo, other)
    # (0.6 - 0.5) / 0.4 is a quarter of the seven bars above the lowest, (0.8 - 0.5) / 0.4 three.
    assert f"{repo}  50.0 ▁▃██▆ 80.0  (steps 1 to 16, bars from 50.0 to 90.0 %)" in said.out
    assert f"{other}  50.0 ▁█ 60.0  (steps 1 to 2, bars from 50.0 to 60.0 %)" in said.out
    rows = {
        tuple(line.split()[:2]): line.rstrip() for line in said.out.splitlines() if line.strip()
    }
    assert rows[repo, "4"].endswith("trajectory   best")
    assert rows[repo, "16"].endswith("early stop, last")
    assert rows[other, "2"].endswith("-            best, last")
    assert (
        "best is the expert's own accuracy: what merges best is often an earlier step." in said.err
    )


def test_a_foreign_repository_is_listed_without_curve(
    hubmerge: Command, repo: str, api: HfApi
) -> None:
    for name in ("step1000", "step2000"):
        api.create_branch(repo, branch=name)
    said = hubmerge("steps", repo)
    assert said.code == 0, said.err
    assert "step2000" in said.out
    assert "%)" not in said.out
    assert "anneal" not in said.out
    assert said.err == ""
    rows = hubmerge("steps", repo, "--json").data
    assert [(row["step"], row["marks"], row["anneal"]) for row in rows] == [
        (1000, [], None), (2000, ["last"], None),
    ]  # fmt: skip


def test_a_manifest_that_means_ill_is_listed_all_the_same(
    hubmerge: Command, hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    published(hub, repo, tmp_path / "step", 2, {"anneal": "[red]\x1b[31m", "tune": ["lora"]})
    forged = (tmp_path / "step" / NAME).read_text().replace('"accuracy": 0.6', '"accuracy": NaN')
    api.upload_file(path_or_fileobj=forged.encode(), path_in_repo=NAME, repo_id=repo)
    api.create_tag(repo, tag="step4")
    said = hubmerge("steps", repo)
    assert said.code == 0, said.err
    assert "\x1b" not in said.out
    assert "[red]" in said.out
    rows = hubmerge("steps", repo, "--json").data
    assert [(row["validation"], row["tune"]) for row in rows] == [(0.6, None), (None, None)]


def test_a_terminal_without_bars_gets_the_table(
    world: World, hub: Hub, repo: str, tmp_path: Path
) -> None:
    run_of(hub, repo, tmp_path, LORA)
    done = subprocess.run(
        [Path(sys.executable).with_name("hubmerge"), "steps", repo],
        env={
            **os.environ, "HUBMERGE_HOME": str(world.home), "HUBMERGE_HUB": "local",
            "PYTHONIOENCODING": "latin-1",
        },
        capture_output=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"early stop, last" in done.stdout
    assert b"bars from" not in done.stdout
    assert b"?" not in done.stdout


def pushed(api: HfApi, repo: str, title: str, **files: str) -> str:
    """A commit to main; `__` in a name stands for a slash."""
    operations = [
        CommitOperationAdd(name.replace("__", "/"), text.encode()) for name, text in files.items()
    ]
    return str(api.create_commit(repo, operations, commit_message=title).oid)


def test_a_history_is_mined(hubmerge: Command, repo: str, api: HfApi) -> None:
    for run in "ab":
        for step in (2, 4):
            title = f"Training in progress, step {step}"
            sha = pushed(api, repo, title, **{"model.safetensors": f"{run}{step}"})
    pushed(api, repo, "Training in progress, step 6\x1b[31m [red]", **{"model.safetensors": "c"})
    said = hubmerge("steps", repo)
    assert said.code == 0, said.err
    header, *lines = [line.strip() for line in said.out.splitlines() if line.strip()]
    assert header.split()[:3] == ["repository", "run", "step"]
    assert "sure %" in header
    assert [line.split()[1:3] for line in lines if line.startswith(repo)] == [
        ["1", "2"], ["1", "4"], ["2", "2"], ["2", "4"],
    ]  # fmt: skip
    assert "\x1b" not in said.out
    assert "[red]" not in said.out
    rows = hubmerge("steps", repo, "--json").data
    assert rows[-1] | {"note": ""} == {
        "repo_id": repo, "step": 4, "revision": sha[:12], "sha": sha, "found": "title",
        "confidence": 0.5, "ref": f"{repo}@{sha[:12]}", "subfolder": None, "run": 2, "note": "",
        "task": None, "validation": None, "anneal": None, "tune": None, "marks": ["last"],
    }  # fmt: skip
    assert rows[-1]["note"] == "only a title says so"


def test_merging_a_step_that_only_a_title_names_says_so(
    hubmerge: Command, repo: str, api: HfApi, tmp_path: Path
) -> None:
    there = Path(api.snapshot_download("demo/mnist", revision="step4", local_dir=tmp_path / "d"))
    (there / NAME).unlink()
    operations = [
        CommitOperationAdd(path.name, str(path)) for path in there.iterdir() if path.is_file()
    ]
    api.create_commit(repo, operations, commit_message="Training in progress, step 4")
    said = hubmerge("merge", f"{repo}@step4", "demo/hebrew@step4", "--base",
                    "hubmerge/tiny-clip", "--method", "average", "--dry-run")  # fmt: skip
    assert said.code == 0, said.err
    assert "only a title says so" in said.err


def test_a_table_has_no_columns_that_say_nothing(
    hubmerge: Command, hub: Hub, repo: str, tmp_path: Path
) -> None:
    published(hub, repo, tmp_path / "one", 2, {})
    header = hubmerge("steps", repo).out.split("marks")[0]
    assert header.split() == ["repository", "step", "revision", "commit", "found", "by", "task",
                              "validation", "%"]  # fmt: skip


def test_candidates_over_the_hub(hubmerge: Command, world: World, api: HfApi, repo: str) -> None:
    hostile = b"---\nbase_model: hubmerge/tiny-clip\nlicense: '[red]x'\n---\n"
    api.upload_file(path_or_fileobj=hostile, path_in_repo="README.md", repo_id=repo)
    said = hubmerge("steps", "--search", "base=hubmerge/tiny-clip", "author=demo")
    assert said.code == 0, said.err
    assert "[red]x" in said.out
    rows = hubmerge("steps", "author=demo", "--search", "base=hubmerge/tiny-clip", "--json").data
    told = {row["repo_id"]: row for row in rows}
    one = told["demo/mnist"]
    assert (one["kind"], one["fits"], one["steps"], one["last_step"], one["task"]) == (
        "full", "yes", 3, 8, "mini-mnist",
    )  # fmt: skip
    assert (told[repo]["fits"], told[repo]["why"]) == ("no", "no weights on main")
    few = hubmerge("steps", "--search", "author=demo", "--limit", "1")
    assert "--limit shows more" in few.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No repository is named."),
        (["--search", "bass=o/n"], "Did you mean base?"),
        (["--search", "base=o/n", "x"], "is not key=value"),
        (["--search", "collection=o/n"], "no collections at all"),
        (["o/n=x"], "is not a repository id"),
    ],
)
def test_a_search_that_cannot_be_meant(hubmerge: Command, words: list[str], sentence: str) -> None:
    said = hubmerge("steps", *words)
    assert said.code in (1, 2)
    assert sentence in said.err


@pytest.mark.parametrize(
    ("values", "bars"),
    [
        ([0.3], "▁"),
        ([0.3, 0.3], "▁▁"),
        ([0.0, 1.0], "▁█"),
        ([0.0, 0.5, 1.0, 0.0], "▁▅█▁"),  # 3.5 of 7 rounds to 4
    ],
)
def test_bars_go_from_the_lowest_to_the_highest(values: list[float], bars: str) -> None:
    assert sparkline(values) == bars


def test_of_many_values_forty_are_shown() -> None:
    bars = sparkline([float(number) for number in range(1000)])
    assert len(bars) == 40
    assert bars[0] == "▁"
    assert bars[-1] == "█"
    assert list(bars) == sorted(bars)
