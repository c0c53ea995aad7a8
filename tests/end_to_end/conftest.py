"""Shared by all end-to-end tests: an embedded Hub with two experts of a few steps each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

from hubmerge.hub.client import Hub
from hubmerge.lock import Lock
from hubmerge.server import ServerState, lease
from tests import locks
from tests.command_line import run_command

REPOS = ("demo/mnist", "demo/hebrew")
WEIGHTS = "open_clip_model.safetensors"

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


@dataclass(frozen=True)
class LocalHub:
    """A hubmerge home with a running Hub that has demo/mnist and demo/hebrew at steps 2, 4, 8."""

    home: Path
    server: ServerState


@pytest.fixture(scope="session")
def local_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHub]:
    home = tmp_path_factory.mktemp("home")
    os.environ["HUBMERGE_HOME"] = str(home)
    with lease(home / "hub") as server:
        for task in ("mnist", "hebrew"):
            result = run_hubmerge("train", *TRAIN, "--task", f"mini-{task}", "--to", f"demo/{task}")
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
