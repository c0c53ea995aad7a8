"""A task whose data lie on a Hub: only its own files are read, at the commit it names."""

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
from hubmerge.tasks.task import find_task
from tests.tasks.worlds import write_repo

# A process of its own: `datasets` reads the Hub's address when it is imported.
LOAD = """
import dataclasses, json, sys
from hubmerge.tasks.data import SPLITS, load_split
from hubmerge.tasks.task import find_task
from tests.tasks.worlds import rows_of
task = find_task("svhn")
data = task.spec.data.model_copy(update={"id": "me/svhn", "revision": sys.argv[1]})
task = dataclasses.replace(task, spec=task.spec.model_copy(update={"data": data}))
print(json.dumps([rows_of(load_split(task, split)) for split in SPLITS]))
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
        env = {**os.environ, "HF_ENDPOINT": hub.url, "HF_TOKEN": hub.token, "HF_HOME": str(home)}
        said = subprocess.run(
            [sys.executable, "-c", LOAD, commits[0].oid],
            cwd=Path(__file__).parents[2], env={**env, "HF_HUB_DISABLE_XET": "1"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    assert said.returncode == 0, said.stderr
    train, validation, test = json.loads(said.stdout)
    assert sorted(train + validation) == list(range(40))
    assert (len(validation), test) == (4, list(range(40)))
