"""One small world for all journeys: an embedded Hub with two experts of a few steps each."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi
from typer.testing import CliRunner

from hubmerge.cli.app import app
from hubmerge.hub.client import Hub
from hubmerge.lock import Lock
from hubmerge.server import ServerState, lease
from tests import locks

REPOS = ("demo/mnist", "demo/hebrew")
WEIGHTS = "open_clip_model.safetensors"

TRAIN = (
    "--base", "hubmerge/tiny-clip", "--steps", "8", "--push-every", "2,4,8", "--lr", "5e-4",
    "--schedule", "constant", "--warmup-steps", "2", "--batch", "16",
)  # fmt: skip


@dataclass(frozen=True)
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Said]


def command(*words: str) -> Said:
    """Run `hubmerge` in this process, as the shell would."""
    done = CliRunner().invoke(app, [str(word) for word in words], env={"HUBMERGE_HUB": "local"})
    return Said(done.exit_code, done.stdout, done.stderr)


@dataclass(frozen=True)
class World:
    """A hubmerge home whose Hub runs and holds demo/mnist and demo/hebrew at steps 2, 4 and 8."""

    home: Path
    server: ServerState


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    home = tmp_path_factory.mktemp("world")
    os.environ["HUBMERGE_HOME"] = str(home)
    with lease(home / "hub") as server:
        for task in ("mnist", "hebrew"):
            said = command("train", *TRAIN, "--task", f"mini-{task}", "--to", f"demo/{task}")
            assert said.code == 0, said.err
        yield World(home, server)


@pytest.fixture
def hubmerge(world: World, monkeypatch: pytest.MonkeyPatch) -> Command:
    """The command, in the world."""
    monkeypatch.setenv("HUBMERGE_HOME", str(world.home))
    return command


@pytest.fixture(scope="session")
def api(world: World) -> HfApi:
    """Straight to the world's Hub, past our code."""
    return HfApi(endpoint=world.server.url, token=world.server.token)


@pytest.fixture(scope="session")
def hub(world: World) -> Hub:
    """The world's Hub as flows see it."""
    return Hub(world.server.url, world.server.token, world.home / "hub/cache", "the embedded Hub")


@pytest.fixture(scope="session")
def pinned(hub: Hub) -> Lock:
    """A lock of the world's repositories, which no test changes."""
    return locks.lock_of(hub, REPOS)
