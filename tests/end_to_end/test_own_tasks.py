"""Own tasks are found again by the YAML that travels with each step, and by their data's digest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import HfApi

from hubmerge.choosing.candidates import open_pool
from hubmerge.errors import DataError, UsageError
from hubmerge.hub.client import Hub
from hubmerge.refs import parse_ref
from hubmerge.specs import TaskSpec, validate_spec
from hubmerge.tasks import lookup
from hubmerge.tasks.lookup import read_task
from hubmerge.tasks.task import Task
from hubmerge.tasks.task_file import task_file
from tests.end_to_end.conftest import Command
from tests.tasks.builders import png

TRAIN = ("--base", "hubmerge/tiny-clip", "--steps", "2", "--push-every", "1,2", "--batch", "16")
# A shipped task is called cars, too; its data are not on the embedded Hub.
OWN = {"digits": "mnist", "cars": "hebrew"}


def write_task(folder: Path, name: str, shipped: str) -> Path:
    """An own task with its rows beside it."""
    shipped_path = lookup.CATALOG / f"mini-{shipped}.yaml"
    fields = yaml.safe_load(shipped_path.read_text())
    data = folder / f"{name}-rows"
    data.mkdir(parents=True)
    for file in fields["data"]["files"].values():
        shutil.copyfile(shipped_path.parent / fields["data"]["path"] / file, data / file)
    fields |= {"name": name, "data": {**fields["data"], "path": data.name}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(fields))
    return path


def test_own_tasks_are_named_once(hubmerge: Command, api: HfApi, tmp_path: Path) -> None:
    first = tmp_path / "first"
    for name, shipped in OWN.items():
        path = write_task(first, name, shipped)
        result = hubmerge("train", *TRAIN, "--task", path, "--to", f"own/{name}")
        assert result.code == 0, result.err
    text = Path(api.hf_hub_download("own/digits", "task.yaml", revision="step1")).read_text()
    assert str(tmp_path) not in text
    assert yaml.safe_load(text)["data"]["path"] == "digits-rows"
    manifest = api.hf_hub_download("own/digits", "hubmerge.json", revision="step1")
    assert "task.yaml" not in json.loads(Path(manifest).read_text())["files"]
    select = ("select", "own/digits", "own/cars", "--target", "average", "--budget", "4")
    lock = ("--lock", tmp_path / "l.lock")
    result = hubmerge(*select, *lock, "--json")
    assert result.code in (0, 4), result.err
    assert [task["id"].partition("@")[0] for task in result.data["tasks"]] == ["digits", "cars"]
    merged = tmp_path / "merged"
    assert hubmerge("merge", "--lock", tmp_path / "l.lock", "--out", merged).code == 0
    result = hubmerge("eval", merged, "--split", "validation", "--json")
    assert result.code == 0, result.err
    assert len(result.data) == 2
    # Another model is measured by the tasks of the experts.
    named = ("--tasks", "own/digits@step1,mini-mnist,own/cars@step1", "--split", "validation")
    base = hubmerge("eval", "hubmerge/tiny-clip", *named, "--json")
    assert base.code == 0, base.err
    tasks_of_merge = [score["task"] for score in result.data]
    assert [score["task"] for score in base.data][::2] == tasks_of_merge

    second = first.rename(tmp_path / "second")
    result = hubmerge(*select, *lock)
    assert result.code == 1
    assert f"are no longer at {first / 'digits-rows'}" in result.err
    assert "Write --tasks" in result.err
    tasks = ",".join(str(second / f"{name}.yaml") for name in OWN)
    assert hubmerge(*select, *lock, "--tasks", tasks).code in (0, 4)
    assert hubmerge(*select, *lock).code in (0, 4)  # asked for once

    rows = second / "digits-rows" / "mnist-train.parquet"
    rows.write_bytes(rows.read_bytes() + b" ")
    result = hubmerge(*select, *lock)
    assert result.code == 1
    assert "are no longer those in" in result.err


def test_broken_rows_are_refused_or_left_out_and_counted(
    hubmerge: Command, api: HfApi, tmp_path: Path
) -> None:
    for label in ("dark", "light"):
        for row in range(40):
            path = tmp_path / "photos" / label / f"{row}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"no png" if row % 20 == 7 else png(row))
    train = ("train", *TRAIN, "--task", f"{tmp_path}/photos", "--to", "own/photos")
    refused = hubmerge(*train)
    assert refused.code == 1
    assert re.search(r"photos/(dark|light)/2?7.png", refused.err)
    result = hubmerge(*train, "--skip-broken")
    assert result.code == 0, result.err
    assert re.search(r"\d broken rows of photos train are left out", result.err)
    manifest = api.hf_hub_download("own/photos", "hubmerge.json", revision="step1")
    fields = json.loads(Path(manifest).read_text())
    skipped = fields["training"]["skipped_rows"]
    assert 0 < sum(skipped.values()) <= 4
    assert "--skip-broken" in fields["command"]
    scores = hubmerge("eval", "own/photos@step1", "--json")
    assert scores.code == 0, scores.err
    tested = scores.data[0]["count"]  # of a fifth of each class; four images are broken in all
    assert sum(skipped.values()) + 16 - tested == 4
    shipped = hubmerge("train", *TRAIN, "--task", "mini-mnist", "--to", "own/x", "--skip-broken")
    assert (shipped.code, "Leave --skip-broken out." in shipped.err) == (2, True)


def publish_with_task(api: HfApi, folder: Path, repo_id: str, task_id: str, text: bytes) -> None:
    """The expert demo/mnist as one of another task."""
    for step in (2, 8):
        step_folder = folder / f"{repo_id.partition('/')[2]}-{step}"
        api.snapshot_download("demo/mnist", revision=f"step{step}", local_dir=step_folder)
        fields = json.loads((step_folder / "hubmerge.json").read_text())
        (step_folder / "hubmerge.json").write_text(json.dumps({**fields, "task": task_id}))
        (step_folder / "task.yaml").write_bytes(text)
        api.create_repo(repo_id, exist_ok=True)
        api.upload_folder(repo_id=repo_id, folder_path=step_folder, ignore_patterns=[".cache/**"])
        api.create_tag(repo_id, tag=f"step{step}")


def unexpected_progress(text: str, done: int, total: int) -> None:
    """Called for every repository whose steps are pinned."""
    pytest.fail(text)


TARGET = {
    "name": "chat",
    "kind": "target",
    "prompt": "{{ q }}",
    "target": "{{ a }}",
    "data": {"id": "me/chat", "revision": "0" * 40},
}


def test_what_cannot_be_selected_is_refused_before_steps_are_pinned(
    hubmerge: Command, api: HfApi, hub: Hub, tmp_path: Path
) -> None:
    task = Task(validate_spec(TaskSpec, TARGET, "chat"), tmp_path)
    publish_with_task(api, tmp_path, "own/chat", task.id, task_file(task) or b"")
    publish_with_task(
        api, tmp_path, "own/forged", task.id, (task_file(task) or b"") + b"version: 2"
    )
    publish_with_task(api, tmp_path, "own/spoiled", "spoiled@1", b"name: [")
    for repo, message in {
        "own/chat": "measures chat by token_accuracy",
        "own/forged": "does not define chat@",
        "own/spoiled": "task.yaml of own/spoiled@step8",
    }.items():
        refs = [parse_ref(name) for name in ("demo/hebrew", repo)]
        with pytest.raises((UsageError, DataError), match=message):
            open_pool(hub, refs, (), None, unexpected_progress)


def test_a_task_that_comes_with_hubmerge_needs_no_file() -> None:
    assert task_file(read_task(lookup.CATALOG / "mini-mnist.yaml")) is None
