"""Shared by all end-to-end tests: an embedded Hub with two experts of a few steps each."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import Lock
from hubmerge.server import ServerState, lease
from hubmerge.tasks import lookup
from tests import locks
from tests.command_line import run_command

REPOS = ("demo/mnist", "demo/hebrew")
WEIGHTS = "open_clip_model.safetensors"
# Of each split of the mini image tasks, in place of 4000, 400 and 1000.
ROWS = {"train": 1000, "validation": 60, "test": 100}

TRAIN = (
    "--base", "hubmerge/tiny-clip", "--steps", "8", "--push-every", "2,4,8", "--lr", "5e-4",
    "--schedule", "constant", "--warmup-steps", "2", "--batch", "16",
)  # fmt: skip


@dataclass(frozen=True)
class CommandResult:
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., CommandResult]


def run_hubmerge(*words: object) -> CommandResult:
    """Run `hubmerge` in this process with the embedded Hub."""
    done = run_command(*words)
    return CommandResult(done.exit_code, done.stdout, done.stderr)


@pytest.fixture(scope="session")
def small_catalog(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the catalog whose mini image tasks have few rows, as tests measure them often."""
    package, root = lookup.CATALOG.parents[1], tmp_path_factory.mktemp("small")
    shutil.copytree(package / "mini", root / "mini")
    for path in (root / "mini/vision").glob("*.parquet"):
        rows = ROWS[path.stem.partition("-")[2]]
        pq.write_table(pq.read_table(path).slice(0, rows), path)
    return Path(shutil.copytree(lookup.CATALOG, root / "tasks/catalog"))


@contextmanager
def use_catalog(folder: Path) -> Iterator[None]:
    """Find the shipped tasks in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lookup, "CATALOG", folder)
        yield


@pytest.fixture(scope="package", autouse=True)
def few_rows(small_catalog: Path) -> Iterator[None]:
    """The tests in this folder use the small catalog."""
    with use_catalog(small_catalog):
        yield


@dataclass(frozen=True)
class LocalHub:
    """A hubmerge home with a running Hub that has demo/mnist and demo/hebrew at steps 2, 4, 8."""

    home: Path
    server: ServerState


@pytest.fixture(scope="session")
def local_hub(tmp_path_factory: pytest.TempPathFactory, small_catalog: Path) -> Iterator[LocalHub]:
    home = tmp_path_factory.mktemp("home")
    os.environ["HUBMERGE_HOME"] = str(home)
    with lease(home / "hub") as server:
        for task in ("mnist", "hebrew"):
            words = ("train", *TRAIN, "--task", f"mini-{task}", "--to", f"demo/{task}")
            with use_catalog(small_catalog):
                result = run_hubmerge(*words)
            assert result.code == 0, result.err
        yield LocalHub(home, server)


@pytest.fixture
def hubmerge(local_hub: LocalHub, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command `hubmerge` with the home of `local_hub`."""
    monkeypatch.setenv("HUBMERGE_HOME", str(local_hub.home))
    return run_hubmerge


@pytest.fixture(scope="session")
def api(local_hub: LocalHub) -> HfApi:
    """The Hub's official client, on that Hub."""
    return HfApi(endpoint=local_hub.server.url, token=local_hub.server.token)


@pytest.fixture(scope="session")
def hub(local_hub: LocalHub) -> Hub:
    """That Hub, as hubmerge uses it."""
    return Hub(
        local_hub.server.url,
        lambda: local_hub.server.token,
        local_hub.home / "hub/cache",
        "the embedded Hub",
    )


@pytest.fixture(scope="session")
def pinned(hub: Hub) -> Lock:
    """A lock of both repositories; no test changes it."""
    return locks.make_lock(hub, REPOS)
