"""A task with data on a Hub: only its own files are read, at the given commit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hubmerge.server import lease
from hubmerge.tasks.data import SPLITS
from hubmerge.tasks.lookup import find_task
from tests.tasks.builders import write_repo, write_rows

# Run in another process, because `datasets` reads the address of the Hub on import.
LOAD = """
import dataclasses, json, sys
from hubmerge.tasks.data import SPLITS, load_split
from hubmerge.tasks.lookup import find_task
from tests.tasks.builders import rows_of
task = find_task("svhn")
data = task.spec.data.model_copy(update={"id": "me/svhn", "revision": sys.argv[1]})
task = dataclasses.replace(task, spec=task.spec.model_copy(update={"data": data}))
print(json.dumps([rows_of(load_split(task, split)) for split in SPLITS]))
"""

LOAD_CUSTOM = """
import json, sys
from hubmerge.tasks.data import SPLITS, load_split, load_stream
from hubmerge.tasks.lookup import find_task
task = find_task("hf://datasets/me/svhn@" + sys.argv[1])
spec = task.spec
print(json.dumps([spec.name, spec.kind, spec.data.revision, spec.splits.sources]))
task = find_task("hf://datasets/me/Re.views", {"label": "stars"})
splits = [load_split(task, split) for split in SPLITS]
epoch = [text for text, _ in load_stream(task, 20, 5).epoch(1)]
print(json.dumps([task.name, [len(split) for split in splits], splits[2].classes, sorted(epoch)]))
"""


def test_data_are_read_at_their_commit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with lease(tmp_path / "hub") as hub:
        api = HfApi(endpoint=hub.url, token=hub.token)
        api.create_repo("me/svhn", repo_type="dataset")
        commits = []
        for count in (40, 60):
            write_repo(
                tmp_path / "repo", find_task("svhn"), "0123456789", dict.fromkeys(SPLITS, count)
            )
            commits += [
                api.upload_folder(
                    repo_id="me/svhn", folder_path=tmp_path / "repo", repo_type="dataset"
                )
            ]
        api.create_repo("me/Re.views", repo_type="dataset")
        for name, count in (("train.jsonl", 40), ("dev.jsonl", 10), ("test.jsonl", 20)):
            rows = [{"text": f"{row:02}", "stars": "ab"[row % 2]} for row in range(count)]
            write_rows(tmp_path / "reviews" / name, rows)
        api.upload_folder(
            repo_id="me/Re.views", folder_path=tmp_path / "reviews", repo_type="dataset"
        )
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
        process = subprocess.run(
            [sys.executable, "-c", LOAD + LOAD_CUSTOM, commits[0].oid],
            cwd=Path(__file__).parents[2], env={**env, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (train, validation, test), hub_task, reviews = map(json.loads, process.stdout.splitlines())
    assert sorted(train + validation) == list(range(40))
    assert (len(validation), test) == (4, list(range(40)))
    by_name = {"train": "train", "validation": "train", "test": "test"}
    assert hub_task == ["svhn", "image", commits[0].oid, by_name]
    assert reviews == ["re-views", [40, 10, 20], ["a", "b"], [f"{row:02}" for row in range(20)]]
