"""The curve in each step folder, and `hubmerge steps`, on a real Hub."""

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

from hubmerge.cards.figures import training_curve_png
from hubmerge.cli.tables import sparkline
from hubmerge.hub.client import Hub
from hubmerge.hub.publish import ensure_repo, publish
from hubmerge.manifest import MANIFEST_JSON, Manifest
from hubmerge.opening.integrity import matches_manifest
from hubmerge.opening.publication import CARD, finalize_folder, step_publication
from hubmerge.opening.references import read_local_manifest
from hubmerge.server.content import AddFile
from hubmerge.server.names import RepoId
from hubmerge.server.store import RepositoryStore
from hubmerge.source import Source
from hubmerge.training_curve import ValidationPoint
from tests.end_to_end.conftest import Command, LocalHub

ACCURACIES = {1: 0.5, 2: 0.6, 4: 0.9, 8: 0.9, 16: 0.8}
BASE = Source("hubmerge/tiny-clip@" + "b" * 12, "b" * 40, "d" * 64)
LORA = {"anneal": "trajectory", "tune": "lora"}
_numbers = itertools.count(1)


@pytest.fixture
def hub(local_hub: LocalHub, tmp_path: Path) -> Hub:
    return make_hub(local_hub, tmp_path / "cache")


@pytest.fixture(scope="module")
def stopped_run(local_hub: LocalHub, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The id of a repository with a run that early stopping ended at step 16; it never changes."""
    scratch, repo_id = tmp_path_factory.mktemp("stopped"), "demo/run0"
    hub = make_hub(local_hub, scratch / "cache")
    ensure_repo(hub, repo_id)
    publish_run(hub, repo_id, scratch, LORA)
    return repo_id


def make_hub(local_hub: LocalHub, cache: Path) -> Hub:
    return Hub(local_hub.server.url, lambda: local_hub.server.token, cache, "the test Hub")


@pytest.fixture
def repo(hub: Hub) -> str:
    """The id of a new repository."""
    repo_id = f"demo/run{next(_numbers)}"
    ensure_repo(hub, repo_id)
    return repo_id


def write_step(folder: Path, step: int, training: dict[str, Any]) -> Manifest:
    """Write a step folder as a run would, with weights of one number."""
    folder.mkdir(parents=True)
    save_file({"w": np.array([step], np.float32)}, folder / "model.safetensors")
    curve = tuple(
        ValidationPoint(point, 1.0 / point, accuracy, 400, 1e-4)
        for point, accuracy in ACCURACIES.items()
        if point <= step
    )
    manifest = Manifest(
        kind="expert", base=BASE, task="mini-cats@1", step=step, last_step=32, training=training,
        validation=curve, run="r" * 64, command="hubmerge train",
    )  # fmt: skip
    finalize_folder(folder, manifest)
    written = read_local_manifest(folder)
    assert written is not None
    return written


def publish_step(hub: Hub, repo: str, folder: Path, step: int, training: dict[str, Any]) -> str:
    return publish(hub, step_publication(folder, write_step(folder, step, training), repo))


def publish_run(hub: Hub, repo: str, into: Path, training: dict[str, Any]) -> None:
    """Publish a run that early stopping ended at step 16."""
    for step in ACCURACIES:
        stopped = {"stopped": "early"} if step == 16 else {}
        publish_step(hub, repo, into / f"{repo.replace('/', '-')}-{step}", step, training | stopped)


def test_a_step_is_published_with_its_curve(
    hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    commit = publish_step(hub, repo, tmp_path / "one", 4, LORA)
    assert {"curve.csv", "curve.png"} < set(api.list_repo_files(repo, revision="step4"))
    path = api.hf_hub_download(repo, "curve.csv", revision="step4", local_dir=tmp_path / "d")
    # sqrt(0.5 * 0.5 / 400), sqrt(0.6 * 0.4 / 400) and sqrt(0.9 * 0.1 / 400).
    assert Path(path).read_text() == (
        "step,loss,validation_accuracy,standard_error,lr\n"
        "1,1,0.5,0.025,0.0001\n"
        "2,0.5,0.6,0.0244949,0.0001\n"
        "4,0.25,0.9,0.015,0.0001\n"
    )
    # Written again, the step has the same bytes, so the tag stays at the same commit.
    assert publish_step(hub, repo, tmp_path / "again", 4, LORA) == commit


def test_the_manifest_does_not_list_figures(tmp_path: Path) -> None:
    manifest = write_step(tmp_path / "step", 4, LORA)
    assert set(manifest.files) == {"model.safetensors"}
    (tmp_path / "step" / "curve.png").write_bytes(b"drawn by another matplotlib")
    assert matches_manifest(tmp_path / "step", manifest)


def test_a_merge_has_no_curve(tmp_path: Path) -> None:
    save_file({"w": np.zeros(1, np.float32)}, tmp_path / "model.safetensors")
    finalize_folder(
        tmp_path, Manifest(kind="merge", base=BASE, experts=(BASE, BASE), method="average")
    )
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", MANIFEST_JSON, CARD}


def test_a_card_rendered_again_on_main_keeps_its_curve(
    hubmerge: Command, hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    publish_step(hub, repo, tmp_path / "step", 4, LORA)
    result = hubmerge("card", f"{repo}@step4", "--push", f"{repo}-card")
    assert result.code == 0, result.err
    assert "](curve.png)" in result.out
    copied = Path(api.hf_hub_download(f"{repo}-card", "curve.png", local_dir=tmp_path / "d"))
    manifest = read_local_manifest(tmp_path / "step")
    assert manifest is not None
    assert copied.read_bytes() == training_curve_png(manifest.validation)


def test_steps_are_marked(hubmerge: Command, stopped_run: str) -> None:
    rows = hubmerge("steps", stopped_run, "--json").data
    assert {row["step"]: row["marks"] for row in rows} == {
        1: [], 2: [], 4: ["best"], 8: [], 16: ["early stop", "last"],
    }  # fmt: skip
    assert {(row["anneal"], row["tune"]) for row in rows} == {("trajectory", "lora")}


def test_each_repository_has_its_own_marks_and_curve(
    hubmerge: Command, hub: Hub, stopped_run: str, tmp_path: Path
) -> None:
    repo, other = stopped_run, f"{stopped_run}b"
    ensure_repo(hub, other)
    publish_step(hub, other, tmp_path / "o1", 1, {})
    publish_step(hub, other, tmp_path / "o2", 2, {})
    result = hubmerge("steps", repo, other)
    # (0.6 - 0.5) / 0.4 is a quarter of the seven bars above the lowest, (0.8 - 0.5) / 0.4 three.
    assert f"{repo}  50.0 ▁▃██▆ 80.0  (steps 1 to 16, bars from 50.0 to 90.0 %)" in result.out
    assert f"{other}  50.0 ▁█ 60.0  (steps 1 to 2, bars from 50.0 to 60.0 %)" in result.out
    rows = {
        tuple(line.split()[:2]): line.rstrip() for line in result.out.splitlines() if line.strip()
    }
    assert rows[repo, "4"].endswith("trajectory   best")
    assert rows[repo, "16"].endswith("early stop, last")
    assert rows[other, "2"].endswith("-            best, last")
    assert (
        "best means the expert's own accuracy: an earlier step often merges better." in result.err
    )


def test_a_repository_without_manifests_is_listed_without_curve(
    hubmerge: Command, repo: str, api: HfApi
) -> None:
    for name in ("step1000", "step2000"):
        api.create_branch(repo, branch=name)
    result = hubmerge("steps", repo)
    assert result.code == 0, result.err
    assert "step2000" in result.out
    assert "%)" not in result.out
    assert "anneal" not in result.out
    assert result.err == ""
    rows = hubmerge("steps", repo, "--json").data
    assert [(row["step"], row["marks"], row["anneal"]) for row in rows] == [
        (1000, [], None), (2000, ["last"], None),
    ]  # fmt: skip


def test_a_hostile_manifest_is_listed(
    hubmerge: Command, hub: Hub, repo: str, api: HfApi, tmp_path: Path
) -> None:
    publish_step(hub, repo, tmp_path / "step", 2, {"anneal": "[red]\x1b[31m", "tune": ["lora"]})
    forged = (
        (tmp_path / "step" / MANIFEST_JSON)
        .read_text()
        .replace('"accuracy": 0.6', '"accuracy": NaN')
    )
    api.upload_file(path_or_fileobj=forged.encode(), path_in_repo=MANIFEST_JSON, repo_id=repo)
    api.create_tag(repo, tag="step4")
    result = hubmerge("steps", repo)
    assert result.code == 0, result.err
    assert "\x1b" not in result.out
    assert "[red]" in result.out
    rows = hubmerge("steps", repo, "--json").data
    assert [(row["validation"], row["tune"]) for row in rows] == [(0.6, None), (None, None)]


def test_a_terminal_that_cannot_print_bars_gets_the_table(
    local_hub: LocalHub, stopped_run: str
) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("hubmerge"), "steps", stopped_run],
        env={
            **os.environ, "HUBMERGE_HOME": str(local_hub.home), "HUBMERGE_HUB": "local",
            "PYTHONIOENCODING": "latin-1",
        },
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"early stop, last" in done.stdout
    assert b"bars from" not in done.stdout
    assert b"?" not in done.stdout


def push_commit(api: HfApi, repo: str, title: str, **files: str) -> str:
    """Commit files to main; `__` in a name stands for a slash."""
    operations = [
        CommitOperationAdd(name.replace("__", "/"), text.encode()) for name, text in files.items()
    ]
    return str(api.create_commit(repo, operations, commit_message=title).oid)


def test_steps_are_found_in_the_commit_history(hubmerge: Command, repo: str, api: HfApi) -> None:
    for run in "ab":
        for step in (2, 4):
            title = f"Training in progress, step {step}"
            sha = push_commit(api, repo, title, **{"model.safetensors": f"{run}{step}"})
    push_commit(
        api, repo, "Training in progress, step 6\x1b[31m [red]", **{"model.safetensors": "c"}
    )
    result = hubmerge("steps", repo)
    assert result.code == 0, result.err
    header, *lines = [line.strip() for line in result.out.splitlines() if line.strip()]
    assert header.split()[:3] == ["repository", "run", "step"]
    assert "sure %" in header
    assert [line.split()[1:3] for line in lines if line.startswith(repo)] == [
        ["1", "2"], ["1", "4"], ["2", "2"], ["2", "4"],
    ]  # fmt: skip
    assert "\x1b" not in result.out
    assert "[red]" not in result.out
    rows = hubmerge("steps", repo, "--json").data
    assert rows[-1] | {"note": ""} == {
        "repo_id": repo, "step": 4, "revision": sha[:12], "sha": sha, "found": "title",
        "confidence": 0.5, "ref": f"{repo}@{sha[:12]}", "subfolder": None, "run": 2, "note": "",
        "task": None, "validation": None, "anneal": None, "tune": None, "marks": ["last"],
    }  # fmt: skip
    assert rows[-1]["note"] == "its step is known only from the commit's title"


def test_merging_a_step_that_only_a_title_names_warns(
    hubmerge: Command, repo: str, api: HfApi, tmp_path: Path
) -> None:
    folder = Path(api.snapshot_download("demo/mnist", revision="step4", local_dir=tmp_path / "d"))
    (folder / MANIFEST_JSON).unlink()
    operations = [
        CommitOperationAdd(path.name, str(path)) for path in folder.iterdir() if path.is_file()
    ]
    api.create_commit(repo, operations, commit_message="Training in progress, step 4")
    result = hubmerge("merge", f"{repo}@step4", "demo/hebrew@step4", "--base",
                    "hubmerge/tiny-clip", "--method", "average", "--dry-run")  # fmt: skip
    assert result.code == 0, result.err
    assert "its step is known only from the commit's title" in result.err


def test_a_table_has_no_empty_columns(
    hubmerge: Command, hub: Hub, repo: str, tmp_path: Path
) -> None:
    publish_step(hub, repo, tmp_path / "one", 2, {})
    header = hubmerge("steps", repo).out.split("marks")[0]
    assert header.split() == ["repository", "step", "revision", "commit", "found", "by", "task",
                              "validation", "%"]  # fmt: skip


def test_search_finds_experts_on_the_hub(hubmerge: Command, local_hub: LocalHub, repo: str) -> None:
    hostile = b"---\nbase_model: hubmerge/tiny-clip\nlicense: '[red]x'\n---\n"
    # The embedded Hub refuses such a card from a client; another Hub may have it.
    store = RepositoryStore(local_hub.server.data)
    changes = [AddFile("README.md", hostile)]
    store.find(RepoId("models", *repo.split("/"))).commit("main", changes, "m", author="demo")
    result = hubmerge("steps", "--search", "base=hubmerge/tiny-clip", "author=demo")
    assert result.code == 0, result.err
    assert "[red]x" in result.out
    rows = hubmerge("steps", "author=demo", "--search", "base=hubmerge/tiny-clip", "--json").data
    by_repo = {row["repo_id"]: row for row in rows}
    mnist = by_repo["demo/mnist"]
    assert (mnist["kind"], mnist["fits"], mnist["steps"], mnist["last_step"], mnist["task"]) == (
        "full", "yes", 3, 8, "mini-mnist",
    )  # fmt: skip
    assert (by_repo[repo]["fits"], by_repo[repo]["why"]) == ("no", "no weights on main")
    few = hubmerge("steps", "--search", "author=demo", "--limit", "1")
    assert "--limit shows more" in few.err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "No repository is named."),
        (["--search", "bass=o/n"], "Did you mean base?"),
        (["--search", "base=o/n", "x"], "is not key=value"),
        (["--search", "collection=o/n"], "has no collection o/n"),
        (["o/n=x"], "is not a repository id"),
    ],
)
def test_bad_arguments_give_a_message(hubmerge: Command, words: list[str], sentence: str) -> None:
    result = hubmerge("steps", *words)
    assert result.code in (1, 2)
    assert sentence in result.err


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


def test_at_most_forty_bars_are_shown() -> None:
    bars = sparkline([float(number) for number in range(1000)])
    assert len(bars) == 40
    assert bars[0] == "▁"
    assert bars[-1] == "█"
    assert list(bars) == sorted(bars)
